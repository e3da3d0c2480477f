"""Opening an exported ONNX file: onnxruntime alone is needed, neither torch nor Lightning."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from faceattr_lightning.description import KEY, problem
from faceattr_lightning.errors import DataError

if TYPE_CHECKING:
    import onnxruntime

_ERRORS_ONLY = 3


def open_session(path: str | Path, threads: int | None = None) -> onnxruntime.InferenceSession:
    """Open an exported file for the CPU.

    Args:
        path: of the file.
        threads: within an operation; ``None`` for one per core.

    Raises:
        DataError: there is no such file, or onnxruntime can't read it.
    """
    import onnxruntime

    if not Path(path).is_file():
        raise DataError(f"{path}: there is no such file; expected an ONNX file of task=export.")
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    # It warns that thresholds, which are an input, can't be folded into the graph.
    options.log_severity_level = _ERRORS_ONLY
    options.inter_op_num_threads = 1
    if threads is not None:
        options.intra_op_num_threads = threads
        # Threads that wait in a loop take the time of whatever else runs.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own types, none of which is public
        raise DataError(
            f"{path}: onnxruntime can't open it ({str(error).splitlines()[0]}). Export the checkpoint again."
        ) from error


def read_metadata(session: onnxruntime.InferenceSession, name: str | Path = "The ONNX file") -> dict[str, Any]:
    """Return what an exported file says of itself.

    Args:
        session: of the file.
        name: of the file, for an error.

    Returns:
        see `parse_metadata`.

    Raises:
        DataError: the file was not made by this program, or by a newer version of it.
    """
    return parse_metadata(session.get_modelmeta().custom_metadata_map.get(KEY), name)


def parse_metadata(text: str | bytes | None, name: str | Path) -> dict[str, Any]:
    """Read what an exported file, of whatever format, says of itself.

    Args:
        text: JSON; ``None`` where the file has none.
        name: as of `read_metadata`.

    Returns:
        ``version`` of the code; ``model`` and ``backbone``; ``data``, the class of the data module that it was trained
        with, empty where that is not known; ``precision``, float32 or int8; ``attribute_names`` in the
        order of the outputs' columns; ``groups``; ``age_groups``; the fitted ``thresholds``; ``licence``, an SPDX
        expression or ``None`` where none was stated; ``preprocessing`` as of `Preprocessing.to_dict`, with the
        alignment ``template`` and with ``mean`` and ``std`` of pixels from 0 to 1; ``preprocessing_inside``, whether
        the graph normalises by these; and ``input``, which says the same in words.

    Raises:
        DataError: see `read_metadata`.
    """
    try:
        metadata: Any = None if text is None else json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{name}: its metadata can't be read ({error}). Export the checkpoint again.") from error
    if found := problem(metadata, advice="Export the checkpoint again."):
        raise DataError(f"{name} {found}")
    described: dict[str, Any] = metadata
    return described


def file_input(images: NDArray[np.uint8], metadata: dict[str, Any]) -> NDArray[Any]:
    """Return what goes into an exported file's input ``image``.

    Args:
        images: uint8 (B, 3, S, S), RGB.
        metadata: the file's.

    Returns:
        the images, or, of a file with its preprocessing outside, ``(pixel / 255 - mean) / std``, float32.
    """
    # Files of older versions have it inside, and do not say so.
    if metadata.get("preprocessing_inside", True):
        return np.ascontiguousarray(images)
    mean, std = (np.array(metadata["preprocessing"][name], np.float32)[:, None, None] for name in ("mean", "std"))
    return np.ascontiguousarray((images.astype(np.float32) / 255 - mean) / std)
