"""A trained model as an ONNX file, whose answers are compared with those of the model that it was made from.

The graph takes pixels as they are decoded and holds the network's own normalisation:

- input ``image`` uint8 (B, 3, S, S), RGB, cropped and resized as the metadata's ``preprocessing`` says; B is free;
- input ``thresholds`` float32 (A,) in [0, 1], optional; left out, it is the checkpoint's fitted thresholds;
- output ``probabilities`` float32 (B, A); ``decisions`` bool (B, A), whether a probability is at or above its
  threshold; and ``age_group`` float32 (B, G), probabilities, of models that have age groups.

Where several databases were fused, a model with biases of each takes their mean, as for images of none of them.
"""

from __future__ import annotations

import copy
import importlib.util
import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import faceattr_lightning
from faceattr_lightning.errors import ConfigError, DataError
from faceattr_lightning.export.session import METADATA_KEY
from faceattr_lightning.files import whole_file

if TYPE_CHECKING:
    import onnx
    import onnxruntime

    from faceattr_lightning.models.module import AttributeModule

_PACKAGES = ("onnx", "onnxscript", "onnxruntime")

TOLERANCE = 1e-4
"""The greatest difference of a probability between the model and its float32 file: rounding in another order."""


def check_installed() -> None:
    """Raise a ConfigError unless the packages of the extra ``export`` are there."""
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            [
                f"task: export needs {', '.join(missing)}, not installed here; run: "
                "pip install 'faceattr-lightning[export]'."
            ]
        )


class Deployed(nn.Module):
    """A network with the steps that follow it in use: what is exported.

    Args:
        network: of an `AttributeModule`.
        temperatures: float (A,), its calibrator's.
    """

    temperatures: Tensor

    def __init__(self, network: nn.Module, temperatures: Tensor) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("temperatures", temperatures.detach().cpu().float())

    def forward(self, image: Tensor, thresholds: Tensor) -> tuple[Tensor, ...]:
        """Return probabilities float (B, A), decisions bool (B, A) and, where there are age groups, their
        probabilities float (B, G).

        Args:
            image: uint8 (B, 3, S, S).
            thresholds: float (A,).
        """
        output = self.network(image)
        probabilities = (output["logits"] / self.temperatures).sigmoid()
        answers = (probabilities, probabilities >= thresholds)
        return (*answers, output["age_group"].softmax(dim=1)) if "age_group" in output else answers


def export_onnx(model: AttributeModule, path: Path) -> None:
    """Write a model as an ONNX file of this module's inputs and outputs, whole or not at all.

    Raises:
        DataError: the file can't be written.
    """
    # A copy in plain memory order: strides of channels-last tensors would become operations of the graph.
    network = copy.deepcopy(model.network).cpu().float().eval().to(memory_format=torch.contiguous_format)
    size = model.preprocessing.image_size
    example = torch.zeros(2, 3, size, size, dtype=torch.uint8)
    thresholds = model.calibrator.thresholds.detach().cpu().float()
    outputs = ["probabilities", "decisions", *(["age_group"] if model.age_groups else [])]
    with quiet():
        traced = torch.export.export(
            Deployed(network, model.calibrator.temperatures),
            (example, thresholds),
            dynamic_shapes={"image": {0: torch.export.Dim("batch", min=1)}, "thresholds": None},
            # Where a network asks for len(image), the other way of tracing would take the example's batch for any.
            strict=True,
        ).run_decompositions({torch.ops.aten.adaptive_max_pool2d.default: _adaptive_max_pool})
        program: Any = torch.onnx.export(
            traced,
            dynamo=True,
            verbose=False,
            input_names=["image", "thresholds"],
            output_names=outputs,
            dynamic_shapes={"image": {0: "batch"}, "thresholds": None},
        )
    graph: onnx.ModelProto = program.model_proto
    default = _initializer("thresholds", thresholds.numpy())
    graph.graph.initializer.append(default)
    set_metadata(graph, {**describe(model), "precision": "float32"})
    with exported_file(path) as partial:
        partial.write_bytes(graph.SerializeToString())


def describe(model: AttributeModule) -> dict[str, Any]:
    """Return what an exported file says of itself; see `read_metadata`."""
    return {
        "version": faceattr_lightning.__version__,
        "model": type(model).__name__,
        "backbone": model.network.backbone.name,  # type: ignore[union-attr]
        "attribute_names": model.attribute_names,
        "groups": model.groups,
        "age_groups": model.age_groups,
        "thresholds": model.calibrator.thresholds.tolist(),
        "preprocessing": model.preprocessing.to_dict(),
    }


def set_metadata(graph: onnx.ModelProto, metadata: dict[str, Any]) -> None:
    """Put metadata into an ONNX model, in the place of any that it has."""
    import onnx

    del graph.metadata_props[:]
    onnx.helper.set_model_props(graph, {METADATA_KEY: json.dumps(metadata, ensure_ascii=False)})


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


def check_parity(parity: Parity, path: Path) -> None:
    """Raise a DataError if a float32 file's probabilities are further from the model's than `TOLERANCE`."""
    # NaN is no agreement either.
    if not parity.greatest <= TOLERANCE:
        raise DataError(
            f"{path}: its probabilities differ from the model's by up to {parity.greatest:.2g}, more than "
            f"{TOLERANCE:g}. Don't use it; another version of torch or onnxruntime may export this network right."
        )


def run_model(deployed: Deployed, thresholds: Tensor, images: Tensor) -> list[NDArray[Any]]:
    """Return the model's own answers as arrays, in the order of a file's outputs; ``images`` uint8 (B, 3, S, S)."""
    with torch.inference_mode():
        return [answer.numpy() for answer in deployed(images, thresholds)]


def run_file(session: onnxruntime.InferenceSession, images: Tensor) -> list[NDArray[Any]]:
    """Return a file's answers, with its own thresholds; ``images`` uint8 (B, 3, S, S)."""
    answers: list[NDArray[Any]] = session.run(None, {"image": images.contiguous().numpy()})
    return answers


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


def _adaptive_max_pool(features: Tensor, bins: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Pool (B, C, h, w) into ``bins`` by operations that ONNX has; second, the places of the maxima, which nothing here
    asks for, are 0.
    """
    for dimension, count in zip((2, 3), bins, strict=True):
        size = features.shape[dimension]
        # Neighbouring bins share a row where the size is no multiple of their number.
        edges = [(bin * size // count, -(-(bin + 1) * size // count)) for bin in range(count)]
        parts = [features.narrow(dimension, start, end - start) for start, end in edges]
        features = torch.cat([part.amax(dim=dimension, keepdim=True) for part in parts], dim=dimension)
    return features, torch.zeros_like(features, dtype=torch.int64)


def _initializer(name: str, values: NDArray[np.float32]) -> onnx.TensorProto:
    import onnx

    return onnx.numpy_helper.from_array(values, name)


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
