"""What every exported file holds: a network with the steps that follow it in use; and how its answers are compared."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import faceattr_lightning
from faceattr_lightning.data.preprocessing import Preprocessing
from faceattr_lightning.description import KEY, without_folders
from faceattr_lightning.errors import DataError
from faceattr_lightning.files import whole_file
from faceattr_lightning.networks.load import LoadedNetwork

if TYPE_CHECKING:
    from faceattr_lightning.models.module import AttributeModule

Where = Literal["inside", "outside"]
"""Where an exported file's images are normalised by the network's mean and std."""

TOLERANCE = 1e-4
"""The greatest difference of a probability between the model and its float32 file: rounding in another order."""

_INPUT = {
    "inside": "uint8 (B, 3, {0}, {0}), RGB, pixels of 0 to 255; normalised inside",
    "outside": "float32 (B, 3, {0}, {0}), RGB, (pixel / 255 - mean) / std",
}


class Deployed(nn.Module):
    """A network with the steps that follow it in use: what is exported.

    Args:
        network: images of 0 to 255 in, `Output` out.
        temperatures: float (A,), its calibrator's.
        normalised_by: if the images are to come normalised, what by.
    """

    temperatures: Tensor
    scale: Tensor
    shift: Tensor

    def __init__(self, network: nn.Module, temperatures: Tensor, normalised_by: Preprocessing | None = None) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("temperatures", temperatures.detach().cpu().float())
        self.normalised = normalised_by is not None
        if normalised_by is not None:
            self.register_buffer("scale", 255 * torch.tensor(normalised_by.std).view(1, -1, 1, 1))
            self.register_buffer("shift", 255 * torch.tensor(normalised_by.mean).view(1, -1, 1, 1))

    def forward(self, image: Tensor, thresholds: Tensor) -> tuple[Tensor, ...]:
        """Return probabilities float (B, A), decisions bool (B, A) and, where there are age groups, their
        probabilities float (B, G).

        Args:
            image: uint8 (B, 3, S, S), or float normalised images.
            thresholds: float (A,).
        """
        # Back to pixels, since a network may have parts that normalise otherwise, such as MGMTN's of masks.
        output = self.network(image * self.scale + self.shift if self.normalised else image)
        probabilities = (output["logits"] / self.temperatures).sigmoid()
        answers = (probabilities, probabilities >= thresholds)
        return (*answers, output["age_group"].softmax(dim=1)) if "age_group" in output else answers


def loaded_from(model: AttributeModule) -> LoadedNetwork:
    """Return a model's network, not a copy, with what its checkpoint would say of it."""
    checkpoint: dict[str, Any] = {}
    model.on_save_checkpoint(checkpoint)
    return LoadedNetwork.of(model.network, checkpoint[KEY])


def trace(loaded: LoadedNetwork, preprocessing: Where) -> torch.export.ExportedProgram:
    """Return a `Deployed` network as a graph, in evaluation, on the CPU, for any number of images.

    Its inputs are ``image`` and ``thresholds``.
    """
    # A copy in plain memory order: strides of channels-last tensors would become operations of the graph.
    network = copy.deepcopy(loaded.network).cpu().float().eval().to(memory_format=torch.contiguous_format)
    size, inside = loaded.preprocessing.image_size, preprocessing == "inside"
    return torch.export.export(
        Deployed(network, loaded.temperatures, None if inside else loaded.preprocessing),
        (torch.zeros(2, 3, size, size, dtype=torch.uint8 if inside else torch.float32), loaded.thresholds),
        dynamic_shapes={"image": {0: torch.export.Dim("batch", min=1)}, "thresholds": None},
        # Where a network asks for len(image), the other way of tracing would take the example's batch for any.
        strict=True,
    )


def describe(loaded: LoadedNetwork, licence: str | None = None) -> dict[str, Any]:
    """Return what an exported model, of whatever format, says of itself; see `parse_metadata`."""
    backbone: Any = loaded.network.backbone
    return {
        "version": faceattr_lightning.__version__,
        "model": loaded.facts["model"],
        "backbone": backbone.name,
        "data": loaded.data,
        "licence": licence,
        "attribute_names": loaded.attribute_names,
        "groups": loaded.groups,
        "age_groups": loaded.age_groups,
        "thresholds": loaded.thresholds.tolist(),
        "preprocessing": loaded.preprocessing.to_dict(),
    }


def describe_file(loaded: LoadedNetwork, preprocessing: Where, licence: str | None) -> dict[str, Any]:
    """Return `describe` with what a file says of its input."""
    inside = preprocessing == "inside"
    text = _INPUT[preprocessing].format(loaded.preprocessing.image_size)
    return {**describe(loaded, licence), "preprocessing_inside": inside, "input": text, "precision": "float32"}


def describe_folder(loaded: LoadedNetwork, licence: str | None) -> dict[str, Any]:
    """Return `describe` with what else is needed to make the network again, and with nothing of the machine that it was
    trained on.
    """
    config = without_folders({key: value for key, value in loaded.facts["config"].items() if key != "paths"})
    again = {"temperatures": loaded.temperatures.tolist(), "config": config}
    return {**loaded.facts, **describe(loaded, licence), **again}


@dataclass(frozen=True)
class Parity:
    """How far a file's answers are from the model's.

    Attributes:
        images: how many were compared.
        greatest: the greatest difference of a probability.
        mean: the mean difference.
        decisions: share of the decisions that differ.
    """

    images: int
    greatest: float
    mean: float
    decisions: float


def compare(expected: list[list[NDArray[Any]]], found: list[list[NDArray[Any]]]) -> Parity:
    """Compare answers batch by batch.

    Args:
        expected: of each batch the model's outputs.
        found: of each batch the file's.
    """
    first, second = ([np.concatenate(part) for part in zip(*answers, strict=True)] for answers in (expected, found))
    differences = [np.abs(one - other).ravel() for one, other in zip(first, second, strict=True) if one.dtype != bool]
    joined = np.concatenate(differences)
    return Parity(len(first[0]), float(joined.max()), float(joined.mean()), float((first[1] != second[1]).mean()))


def check_parity(parity: Parity, path: Path, tolerance: float = TOLERANCE) -> None:
    """Raise a DataError if a float32 file's probabilities are further from the model's than ``tolerance``."""
    # NaN is no agreement either.
    if not parity.greatest <= tolerance:
        raise DataError(
            f"{path}: its probabilities differ from the model's by up to {parity.greatest:.2g}, more than "
            f"{tolerance:g}. Don't use it; another version of torch or onnxruntime may export this network right."
        )


def run_model(deployed: Deployed, thresholds: Tensor, images: Tensor) -> list[NDArray[Any]]:
    """Return the model's own answers as arrays, in the order of a file's outputs; ``images`` uint8 (B, 3, S, S)."""
    with torch.inference_mode():
        return [answer.numpy() for answer in deployed(images, thresholds)]


@contextmanager
def exported_file(path: Path) -> Iterator[Path]:
    """Give a file to write, as `whole_file` does.

    Raises:
        DataError: it can't be written.
    """
    try:
        with whole_file(path) as partial:
            yield partial
    except OSError as error:
        raise DataError(f"{path}: can't be written ({error.strerror or error}). Choose another folder.") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Keep back what the exporter says of its own parts, and have attention exported as its single operations."""
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
        torch.backends.mha.set_fastpath_enabled(fast_path)
