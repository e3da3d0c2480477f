"""Opening an exported ONNX file: onnxruntime alone is needed, neither torch nor Lightning."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from faceattr_lightning.errors import DataError

if TYPE_CHECKING:
    import onnxruntime

METADATA_KEY = "faceattr_lightning"
"""The file's metadata hold under it, as JSON, what a checkpoint says of itself: see `read_metadata`."""

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


def read_metadata(session: onnxruntime.InferenceSession) -> dict[str, Any]:
    """Return what an exported file says of itself.

    Returns:
        ``version`` of the code, ``model`` and ``backbone``, ``precision`` float32 or int8, ``attribute_names`` in the
        order of the outputs' columns, ``groups``, ``age_groups``, the fitted ``thresholds``, and ``preprocessing`` as
        of `Preprocessing.to_dict`.

    Raises:
        DataError: the file was not made by this program.
    """
    text = session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
    if text is None:
        raise DataError("The ONNX file was not made by faceattr-lightning; expected one of task=export.")
    metadata: dict[str, Any] = json.loads(text)
    return metadata
