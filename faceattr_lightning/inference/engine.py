"""What answers: a checkpoint, a model folder or a .pt2 file through torch, an ONNX file through onnxruntime alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from faceattr_lightning.errors import ConfigError
from faceattr_lightning.export.session import file_input, open_session, read_metadata

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class ModelFacts:
    """What a model says of itself.

    Attributes:
        attribute_names: A names, in the order of the answers' columns.
        groups: group name to attribute names.
        age_groups: G names, youngest first; empty where none were learned.
        thresholds: float32 (A,), fitted on validation.
        image_size: height and width of the network's input in pixels.
        source_size: (height, width) in pixels of the aligned images of its data set.
        crop: (left, top, right, bottom) in pixels of those.
        template: (L, 2) mean landmarks as fractions of the crop; empty where its data set has none.
        any_size: whether its data set's images were of any size, and brought to `source_size` by
            `faceattr_lightning.data.images.fit_image`.
        version: of this program, that made the file.
        data: class of the data module that it was trained with; empty where the file does not say.
    """

    attribute_names: list[str]
    groups: dict[str, list[str]]
    age_groups: list[str]
    thresholds: NDArray[np.float32]
    image_size: int
    source_size: tuple[int, int]
    crop: tuple[int, int, int, int]
    template: Sequence[Sequence[float]]
    any_size: bool
    version: str
    data: str

    @property
    def crop_size(self) -> tuple[int, int]:
        """(height, width) of the crop in pixels."""
        left, top, right, bottom = self.crop
        return bottom - top, right - left


class Engine(Protocol):
    """A trained model as a function."""

    facts: ModelFacts

    def __call__(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """Return probabilities, float32 (B, A), and those of the age groups, (B, G), of a model that has them.

        Args:
            images: uint8 (B, S, S, 3), RGB, aligned, cropped and resized.
        """


class TorchEngine:
    """A checkpoint or a model folder, on the CPU or another of torch's devices.

    Args:
        path: of either.
        device: such as ``cpu`` or ``cuda``.

    Raises:
        ConfigError: see `load_network`, or there is no such device.
    """

    def __init__(self, path: Path, device: str = "cpu") -> None:
        # Here, so that an ONNX file needs no torch.
        from faceattr_lightning.networks.load import load_network

        loaded = load_network(path, "model")
        self.facts = _facts(
            loaded.preprocessing.to_dict(), {**vars(loaded), "data": loaded.data}, loaded.thresholds.numpy()
        )
        self.device = _device(device)
        self.network = loaded.network.to(self.device)
        self.temperatures = loaded.temperatures.to(self.device)

    def __call__(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """See `Engine`."""
        import torch

        with torch.inference_mode():
            batch = torch.from_numpy(images).to(self.device).permute(0, 3, 1, 2)
            output: Any = self.network(batch)
            probabilities = (output["logits"].float() / self.temperatures).sigmoid().cpu().numpy()
            ages = output["age_group"].float().softmax(dim=1).cpu().numpy() if "age_group" in output else None
        return probabilities, ages


class OnnxEngine:
    """A file of ``task=export``, on the CPU; neither torch nor Lightning is imported.

    Args:
        path: of the file.
        threads: within an operation; ``None`` for one per core.

    Raises:
        DataError: the file is missing, damaged or not of ``task=export``.
    """

    def __init__(self, path: Path, threads: int | None = None) -> None:
        self.session = open_session(path, threads)
        self.metadata = read_metadata(self.session, path)
        self.facts = _file_facts(self.metadata)

    def __call__(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """See `Engine`."""
        batch = file_input(images.transpose(0, 3, 1, 2), self.metadata)
        names = ["probabilities", *(["age_group"] if self.facts.age_groups else [])]
        probabilities, *ages = self.session.run(names, {"image": batch})
        return probabilities, ages[0] if ages else None


class ProgramEngine:
    """A ``.pt2`` file of ``task=export``, on the CPU or another of torch's devices.

    Opening it may run a program that it holds: open only a file that you trust, see
    `faceattr_lightning.export.torch_export`.

    Args:
        path: of the file.
        device: such as ``cpu`` or ``cuda``.

    Raises:
        ConfigError: there is no such device.
        DataError: the file is missing, damaged or not of ``task=export``.
    """

    def __init__(self, path: Path, device: str = "cpu") -> None:
        from faceattr_lightning.export.torch_export import open_program

        self.device = _device(device)
        self.program, self.metadata = open_program(path, self.device)
        self.facts = _file_facts(self.metadata)

    def __call__(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """See `Engine`."""
        import torch

        arrays = file_input(images.transpose(0, 3, 1, 2), self.metadata), self.facts.thresholds
        with torch.inference_mode():
            outputs = self.program(*(torch.from_numpy(array).to(self.device) for array in arrays))
        probabilities, _, *ages = (output.cpu().numpy() for output in outputs)
        return probabilities, ages[0] if ages else None


def open_engine(model: str | Path, device: str = "cpu") -> Engine:
    """Return the engine of a checkpoint, a model folder, or an exported file, told by its name.

    Raises:
        ConfigError: there is no such file, or see `TorchEngine`.
        DataError: see `OnnxEngine` and `ProgramEngine`.
    """
    path = Path(model).expanduser()
    if not path.exists():
        raise ConfigError(
            [
                f"model: there is no file {path}; expected a checkpoint (.ckpt), an exported file (.onnx, .pt2) or a "
                "model folder."
            ]
        )
    if path.is_dir():
        return TorchEngine(path, device)
    if path.suffix == ".onnx":
        return OnnxEngine(path)
    return ProgramEngine(path, device) if path.suffix == ".pt2" else TorchEngine(path, device)


def _device(name: str) -> torch.device:
    import torch

    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError([f"device: torch has no '{name}' here ({str(error).splitlines()[0]})."]) from error
    return device


def _file_facts(metadata: dict[str, Any]) -> ModelFacts:
    return _facts(metadata["preprocessing"], metadata, np.array(metadata["thresholds"], np.float32))


def _facts(preprocessing: dict[str, Any], said: dict[str, Any], thresholds: NDArray[np.float32]) -> ModelFacts:
    height, width = preprocessing["source_size"]
    left, top, right, bottom = preprocessing["crop"]
    return ModelFacts(
        attribute_names=list(said["attribute_names"]),
        groups=said["groups"],
        age_groups=list(said["age_groups"]),
        thresholds=thresholds,
        image_size=preprocessing["image_size"],
        source_size=(height, width),
        crop=(left, top, right, bottom),
        template=preprocessing["template"],
        # Older files say neither this nor their data.
        any_size=preprocessing.get("any_size", False),
        version=said["version"],
        data=said.get("data", ""),
    )
