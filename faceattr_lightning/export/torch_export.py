"""A trained model as a ``.pt2`` file of `torch.export`: a graph that torch runs without this program's classes.

Its inputs and outputs are those of the ONNX file, see `faceattr_lightning.export.onnx`, but that ``thresholds`` has to
be given; the fitted ones stand in the metadata.

Opening such a file is *not* safe if it comes from a stranger, unlike a checkpoint, a model folder or an ONNX file:
`torch.export.load` unpickles what the file marks as pickled (torch 2.14: weights and constants with
``weights_only=False``, and the example inputs, too, if they can't be read otherwise), which can run any program, and
its documentation says never to load data from an untrusted source. `open_program` looks first whether the file says
that it was made by this program, but anyone can write that into a file.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export.passes import move_to_device_pass

from faceattr_lightning.checkpoint import is_whole
from faceattr_lightning.description import KEY
from faceattr_lightning.errors import DataError
from faceattr_lightning.export.deployed import Where, describe_file, exported_file, quiet, trace
from faceattr_lightning.export.session import parse_metadata
from faceattr_lightning.networks.load import LoadedNetwork

_METADATA = f"{KEY}.json"

Program = Callable[[Tensor, Tensor], tuple[Tensor, ...]]
"""From ``image`` and ``thresholds`` to the outputs."""


def export_program(
    loaded: LoadedNetwork, path: Path, preprocessing: Where = "inside", licence: str | None = None
) -> None:
    """Write a model as a ``.pt2`` file, whole or not at all; arguments and errors as of `export_onnx`."""
    content = io.BytesIO()
    metadata = json.dumps(describe_file(loaded, preprocessing, licence), ensure_ascii=False)
    with quiet():
        torch.export.save(trace(loaded, preprocessing), content, extra_files={_METADATA: metadata})
    with exported_file(path) as partial:
        partial.write_bytes(content.getvalue())


def open_program(path: Path, device: str | torch.device = "cpu") -> tuple[Program, dict[str, Any]]:
    """Open an exported file; only one that you trust, see above.

    Args:
        path: of the file.
        device: of torch, on which it is to run.

    Returns:
        the model, and what it says of itself; see `parse_metadata`.

    Raises:
        DataError: there is no such file, it is damaged, was not made by this program or by a newer version of it.
    """
    if not path.is_file():
        raise DataError(f"{path}: there is no such file; expected one of task=export task.format=torch_export.")
    whole, text = is_whole(path), None
    if whole:
        with zipfile.ZipFile(path) as file:
            # Of a file that was cut short, a smaller one inside it may be found.
            whole = min((part.header_offset for part in file.infolist()), default=-1) == 0
            name = next((name for name in file.namelist() if name.endswith(f"/extra/{_METADATA}")), None)
            text = None if name is None else file.read(name)
    if not whole:
        raise DataError(f"{path}: can't be read as a .pt2 file; it is damaged, cut short or none.")
    metadata = parse_metadata(text, path)
    try:
        with quiet():
            program: Any = move_to_device_pass(torch.export.load(path), device).module()
    except Exception as error:  # whatever torch's reader raises, which is not documented
        reason = " ".join(str(error).split())[:200]
        raise DataError(
            f"{path}: torch {torch.__version__} can't open it ({type(error).__name__}: {reason}). Export the "
            "checkpoint again."
        ) from error
    return program, metadata
