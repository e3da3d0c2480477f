"""A trained model as an ONNX file, whose answers are compared with those of the model that it was made from.

The graph takes pixels as they are decoded and holds the network's own normalisation:

- input ``image`` uint8 (B, 3, S, S), RGB, cropped and resized as the metadata's ``preprocessing`` says; B is free. With
  the preprocessing outside it is float32, ``(pixel / 255 - mean) / std`` by the metadata's mean and std;
- input ``thresholds`` float32 (A,) in [0, 1], optional; left out, it is the checkpoint's fitted thresholds;
- output ``probabilities`` float32 (B, A); ``decisions`` bool (B, A), whether a probability is at or above its
  threshold; and ``age_group`` float32 (B, G), probabilities, of models that have age groups.

Where several databases were fused, a model with biases of each takes their mean, as for images of none of them.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from faceattr_lightning.description import KEY
from faceattr_lightning.errors import ConfigError
from faceattr_lightning.export.deployed import (
    Deployed,
    Where,
    describe_file,
    exported_file,
    loaded_from,
    quiet,
    run_model,
    trace,
)
from faceattr_lightning.export.session import file_input, read_metadata
from faceattr_lightning.networks.load import LoadedNetwork

if TYPE_CHECKING:
    import onnx
    import onnxruntime

    from faceattr_lightning.models.module import AttributeModule

__all__ = ["Deployed", "check_installed", "export_onnx", "run_file", "run_model", "set_metadata"]

_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


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


def export_onnx(
    model: LoadedNetwork | AttributeModule, path: Path, preprocessing: Where = "inside", licence: str | None = None
) -> None:
    """Write a model as an ONNX file of this module's inputs and outputs, whole or not at all.

    Args:
        model: stays as it is.
        path: of the file.
        preprocessing: where the images are normalised.
        licence: an SPDX expression; ``None`` for none stated.

    Raises:
        DataError: the file can't be written.
    """
    import onnx

    loaded = model if isinstance(model, LoadedNetwork) else loaded_from(model)
    names = ["probabilities", "decisions", *(["age_group"] if loaded.age_groups else [])]
    pooling: Any = {torch.ops.aten.adaptive_max_pool2d.default: _adaptive_max_pool}
    with quiet():
        program: Any = torch.onnx.export(
            trace(loaded, preprocessing).run_decompositions(pooling),
            dynamo=True,
            verbose=False,
            input_names=["image", "thresholds"],
            output_names=names,
            dynamic_shapes={"image": {0: "batch"}, "thresholds": None},
        )
    graph: onnx.ModelProto = program.model_proto
    graph.graph.initializer.append(onnx.numpy_helper.from_array(loaded.thresholds.numpy(), "thresholds"))
    set_metadata(graph, describe_file(loaded, preprocessing, licence))
    with exported_file(path) as partial:
        partial.write_bytes(graph.SerializeToString())


def set_metadata(graph: onnx.ModelProto, metadata: dict[str, Any]) -> None:
    """Put metadata into an ONNX model, in the place of any that it has."""
    import onnx

    del graph.metadata_props[:]
    onnx.helper.set_model_props(graph, {KEY: json.dumps(metadata, ensure_ascii=False)})


def run_file(session: onnxruntime.InferenceSession, images: Tensor) -> list[NDArray[Any]]:
    """Return a file's answers, with its own thresholds; ``images`` uint8 (B, 3, S, S)."""
    answers: list[NDArray[Any]] = session.run(None, {"image": file_input(images.numpy(), read_metadata(session))})
    return answers


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
