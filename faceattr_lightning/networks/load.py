"""A trained network out of its checkpoint or model folder, without what trained it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from faceattr_lightning.checkpoint import CHECKPOINT_KEY, other_code, read_checkpoint
from faceattr_lightning.data.preprocessing import Preprocessing
from faceattr_lightning.description import USED, problem
from faceattr_lightning.errors import ConfigError
from faceattr_lightning.instantiate import build, locate

_FIELDS = (*USED, "temperatures")
_OF_TRAINING = ("epoch_sums", "epoch_count")
_PREFIX = "network."


@dataclass(frozen=True, eq=False)
class LoadedNetwork:
    """A trained network and what has to be known to use it.

    The probability of attribute j is ``sigmoid(logits[j] / temperatures[j])``, and the attribute is present where that
    is at or above ``thresholds[j]``.

    Attributes:
        network: in eval mode, on the CPU; images (B, 3, S, S) of 0 to 255 in, `Output` out. Given images alone,
            MTL-CNN's takes the mean of an attribute's biases over the fused databases, as a test on another data set
            does; the other networks take nothing else in a test either.
        attribute_names: A names, in the order of the logits.
        groups: group name to attribute names.
        age_groups: G names, youngest first; empty where none were learned.
        thresholds: float32 (A,), in [0, 1].
        temperatures: float32 (A,), positive.
        preprocessing: from a source image to the network's input.
        version: of this program, that made the checkpoint.
        facts: what else the checkpoint says of itself: ``model``, ``network`` (its node), ``config`` (the run's),
            ``task_weights``, ``effective_batch_size``, ``learning_rate``, ``epoch``, ``global_step``; a model folder
            also ``licence``.
    """

    network: nn.Module
    attribute_names: list[str]
    groups: dict[str, list[str]]
    age_groups: list[str]
    thresholds: Tensor
    temperatures: Tensor
    preprocessing: Preprocessing
    version: str
    facts: dict[str, Any]

    @property
    def data(self) -> str:
        """Class of the data module that it was trained with; empty where the file does not say."""
        config = self.facts.get("config")
        data = config.get("data") if isinstance(config, dict) else None
        return str(data.get("_target_", "")) if isinstance(data, dict) else ""

    @classmethod
    def of(cls, network: nn.Module, own: Mapping[str, Any]) -> LoadedNetwork:
        """Return a network with what its checkpoint says of it, under `CHECKPOINT_KEY`."""
        return cls(
            network,
            own["attribute_names"],
            own["groups"],
            own["age_groups"],
            torch.tensor(own["thresholds"], dtype=torch.float32),
            torch.tensor(own["temperatures"], dtype=torch.float32),
            Preprocessing.from_dict(own["preprocessing"]),
            own["version"],
            {name: value for name, value in own.items() if name not in (*_FIELDS, *_OF_TRAINING)},
        )


def make_network(node: Mapping[str, Any]) -> Any:
    """Make a network of the plain data that describes it, with random weights.

    Arguments that are nodes themselves, such as the backbone, are made first, in their order.

    Args:
        node: ``_target_``, a subclass of `torch.nn.Module` or something of `faceattr_lightning.networks`, and its
            arguments.

    Raises:
        ConfigError: ``_target_`` is neither, or an argument is out of its range.
        ImportError: there is no ``_target_``.
    """
    target = locate(node["_target_"])
    own = str(getattr(target, "__module__", "")).startswith(f"{__package__}.")
    # A node may come from a stranger's checkpoint, whose other parts can't name a program either.
    if not own and not (isinstance(target, type) and issubclass(target, nn.Module)):
        raise ConfigError([f"'{node['_target_']}' is no network; expected a subclass of torch.nn.Module."])
    made = {
        key: make_network(value) for key, value in node.items() if isinstance(value, Mapping) and "_target_" in value
    }
    return build(node, **made)


def load_network(path: str | Path, key: str = "ckpt_path") -> LoadedNetwork:
    """Return the trained network of a checkpoint or a model folder.

    Args:
        path: of the file or folder.
        key: the configuration key, or argument, that an error names.

    Raises:
        ConfigError: see `read_checkpoint`; or the checkpoint does not describe its network, or describes one that this
            version does not have.
    """
    path = Path(path).expanduser()
    checkpoint = read_checkpoint(path, key)
    own = checkpoint[CHECKPOINT_KEY]
    if found := problem(own, _FIELDS):
        raise ConfigError([f"{key}: {path} {found}"])
    if not isinstance(own.get("network"), Mapping):
        raise ConfigError(
            [
                f"{key}: {path} does not say what its network is made of: it was made before checkpoints did, or "
                f"{own['model']} does not use make_network. task=calibrate ckpt_path={path} writes a copy that does."
            ]
        )
    state = checkpoint["state_dict"]
    weights = {name.removeprefix(_PREFIX): state[name] for name in state if name.startswith(_PREFIX)}
    try:
        # A backbone tries a backward pass on itself; whoever calls this may have switched gradients off.
        with torch.inference_mode(False), torch.enable_grad():
            network: nn.Module = make_network(own["network"])
        network.load_state_dict(weights)
        trained = {name: checkpoint.get(name) for name in ("epoch", "global_step")}
        return LoadedNetwork.of(network.eval(), {**trained, **own})
    except (AttributeError, ConfigError, ImportError, KeyError, RuntimeError, TypeError, ValueError) as error:
        reason = "; ".join(error.problems) if isinstance(error, ConfigError) else " ".join(str(error).split())
        raise other_code(path, checkpoint, reason, key) from error
