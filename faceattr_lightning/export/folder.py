"""A model folder: a network's weights, what it says of itself, and its card, to be put on a model hub as it is.

- ``model.safetensors``: the network's state, by the names of its ``state_dict``;
- ``config.json``: plain data; under `KEY` what a checkpoint says of itself, ``licence``, and ``weights_sha256``;
- ``README.md``: the model card.

No part of it can hold a program.
"""

from __future__ import annotations

import glob
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from faceattr_lightning.description import KEY, USED, problem
from faceattr_lightning.errors import ConfigError, DataError
from faceattr_lightning.files import sha256

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"

_NEEDED = (*USED, "model", "temperatures", "network", "config", "weights_sha256")
_AGAIN = "Export the checkpoint again, or take another folder."


def check_free(path: Path) -> None:
    """Raise a DataError if something is there where a model folder is to be written."""
    if os.path.lexists(path):
        raise DataError(f"{path}: this is there already, and is not overwritten. Choose another hydra.run.dir.")


def write_folder(path: Path, description: Mapping[str, Any], state: Mapping[str, Tensor], card: str) -> None:
    """Write a model folder, whole or not at all.

    Args:
        path: to make.
        description: of plain data; see `read_folder`.
        state: the network's.
        card: the model card.

    Raises:
        DataError: there is something at ``path``, or it can't be written.
    """
    from safetensors.torch import save_file

    check_free(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    # Of a process that was killed.
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
        shutil.rmtree(left, ignore_errors=True)
    try:
        partial.mkdir()
        # Copies, since tensors that share memory, or lie in another order in it, have no place in the format.
        tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
        save_file(tensors, partial / WEIGHTS, {"format": "pt"})
        content = {KEY: {**description, "weights_sha256": sha256(partial / WEIGHTS)}}
        text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
        (partial / CONFIG).write_text(text + "\n", encoding="utf-8")
        (partial / CARD).write_text(card, encoding="utf-8")
        partial.rename(path)
    except OSError as error:
        raise DataError(f"{path}: can't be written ({error.strerror or error}). Choose another folder.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def read_folder(path: Path, key: str) -> dict[str, Any]:
    """Return a model folder's content in the form of a checkpoint without what training needs: `KEY` and
    ``state_dict``.

    Args:
        path: of the folder.
        key: the configuration key that an error names.

    Raises:
        ConfigError: it is no model folder, is damaged, or was made by a newer version.
    """
    from safetensors.torch import load_file

    try:
        content = json.loads((path / CONFIG).read_text(encoding="utf-8"))
    except FileNotFoundError:
        expected = "expected a checkpoint, or a model folder of task=export task.format=safetensors"
        raise ConfigError([f"{key}: the folder {path} has no {CONFIG}; {expected}."]) from None
    except (OSError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError([f"{key}: {path / CONFIG} can't be read as JSON ({reason}). {_AGAIN}"]) from error
    own = content.get(KEY) if isinstance(content, dict) else None
    if found := problem(own, _NEEDED, _AGAIN):
        raise ConfigError([f"{key}: {path / CONFIG} {found}"])
    assert own is not None
    weights = path / WEIGHTS
    try:
        if sha256(weights) != own["weights_sha256"]:
            raise ConfigError(
                [f"{key}: {weights} is not what {CONFIG} describes: it is damaged or another's. {_AGAIN}"]
            )
        state = load_file(weights)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise ConfigError([f"{key}: {weights} can't be read as weights ({reason}). {_AGAIN}"]) from error
    return {KEY: own, "state_dict": {f"network.{name}": tensor for name, tensor in state.items()}}
