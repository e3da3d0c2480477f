"""Static int8 quantisation of an exported ONNX file by onnxruntime.

Feature maps, and the convolutions that make them, become 8 bits, each filter with its own scale. Heads, whose cost does
not show and whose rounding does, stay float32, as do inputs and outputs: the file is used like the one it came from.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from faceattr_lightning.export.deployed import exported_file, quiet
from faceattr_lightning.export.onnx import set_metadata
from faceattr_lightning.export.session import file_input, open_session, read_metadata

if TYPE_CHECKING:
    import onnx

Calibration = Literal["minmax", "percentile", "entropy"]

_METHODS = {"minmax": "MinMax", "percentile": "Percentile", "entropy": "Entropy"}
_QUANTISED = ("Conv", "Relu", "Clip", "Add", "MaxPool", "AveragePool")
_AXES_OF_A_MAP = 4
_BATCH = 4
_ERRORS_ONLY, _WARNINGS = 3, 2


class _Images:
    """Hands out calibration images by the batch, in ranges: the feature maps of a range are in memory all at once."""

    def __init__(self, images: NDArray[np.uint8], metadata: dict[str, Any]) -> None:
        self._metadata = metadata
        # Whole ranges are asked for.
        self._images = images[: max(1, len(images) // _BATCH) * _BATCH]
        self.stride = min(_BATCH, len(self._images))
        self.set_range(0, len(self._images))

    def __len__(self) -> int:
        return len(self._images)

    def set_range(self, start_index: int, end_index: int) -> None:
        self._next, self._end = start_index, end_index

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        start, self._next = self._next, min(self._next + _BATCH, self._end)
        batch = self._images[start : self._next]
        return {"image": file_input(batch, self._metadata)} if len(batch) else None


def quantise(path: Path, target: Path, images: NDArray[np.uint8], calibration: Calibration = "minmax") -> None:
    """Write the int8 version of an exported file, whole or not at all.

    Args:
        path: of the float32 file.
        target: to write.
        images: uint8 (N, 3, S, S), as the network is to see them, not augmented; the ranges of the feature maps are
            taken from the first N that fill groups of four.
        calibration: how a map's range follows from its values: the least and the greatest of all, the middle 99.999 %,
            or the range that loses the least entropy. The last two take several times as long.

    Raises:
        DataError: the file is none of ours, or the new one can't be written.
    """
    import onnx
    import onnxruntime
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    metadata = {**read_metadata(open_session(path), path), "precision": "int8"}
    reader = _Images(images, metadata)
    onnxruntime.set_default_logger_severity(_ERRORS_ONLY)
    try:
        with quiet(), tempfile.TemporaryDirectory() as folder, exported_file(target) as partial:
            prepared = Path(folder) / "prepared.onnx"
            quant_pre_process(str(path), str(prepared), skip_symbolic_shape=True)
            quantize_static(
                str(prepared),
                str(partial),
                reader,
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=list(_QUANTISED),
                nodes_to_quantize=_on_feature_maps(onnx.load(prepared)),
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                calibrate_method=CalibrationMethod[_METHODS[calibration]],
                extra_options={"CalibStridedMinMax": reader.stride},
            )
            graph = onnx.load(partial)
            set_metadata(graph, metadata)
            partial.write_bytes(graph.SerializeToString())
    finally:
        onnxruntime.set_default_logger_severity(_WARNINGS)


def _on_feature_maps(graph: onnx.ModelProto) -> list[str]:
    """Return the names of the nodes to quantise: additions of heads, for one, are not among them."""
    axes = {value.name: len(value.type.tensor_type.shape.dim) for value in graph.graph.value_info}
    return [
        node.name
        for node in graph.graph.node
        if node.op_type in _QUANTISED and axes.get(node.output[0]) == _AXES_OF_A_MAP
    ]
