"""Reading checkpoints, and model folders, that describe themselves. Nothing here imports Lightning or Hydra."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

import torch

import faceattr_lightning
from faceattr_lightning.description import KEY, problem
from faceattr_lightning.errors import ConfigError
from faceattr_lightning.export.folder import read_folder

CHECKPOINT_KEY = KEY
"""Under it stands what a checkpoint says of itself."""

BEST, LAST, PREVIOUS = "best", "last", "previous"
"""What ``ckpt_path`` can be beside a file, and the names of the files."""


def read_checkpoint(path: Path, key: str = "ckpt_path", folder: bool = True) -> dict[str, Any]:
    """Return a checkpoint's content; its tensors stay in the file until they are used.

    Args:
        path: of the file, or of a model folder, which has the network and what it says of itself alone.
        key: the configuration key that an error names.
        folder: whether a model folder will do.

    Raises:
        ConfigError: there is no such file, it is no checkpoint of this program, or is damaged.
    """
    if path.is_dir():
        content = read_folder(path, key)
        if not folder:
            raise needs_checkpoint(path, key)
        return content
    if not path.is_file():
        raise ConfigError([f"{key}: there is no file {path}; expected a checkpoint file."])
    before = path.with_name(f"{PREVIOUS}.ckpt")
    advice = f"ckpt_path={PREVIOUS} takes the one before it." if path.stem == LAST and before.is_file() else ""
    advice = advice or "Take another file."
    if not is_whole(path):
        raise ConfigError(
            [
                f"{key}: {path} can't be read as a checkpoint ({path.stat().st_size:,} bytes); it is damaged, cut "
                f"short or no checkpoint. {advice}"
            ]
        )
    try:
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # whatever torch.load makes of it; its advice is not for our users
        raise ConfigError(
            [
                f"{key}: {path} can't be read as a checkpoint: it holds more than tensors and plain data, which could "
                f"be a program, and was not run. {advice}"
            ]
        ) from error
    own = checkpoint.get(CHECKPOINT_KEY) if isinstance(checkpoint, dict) else None
    if found := problem(own, ("version", "model", "config"), advice):
        raise ConfigError([f"{key}: {path} {found}"])
    missing = [name for name in ("state_dict", "loops") if name not in checkpoint]
    if missing:
        raise ConfigError([f"{key}: {path} is damaged: it lacks {', '.join(missing)}. {advice}"])
    return checkpoint


def needs_checkpoint(path: Path, key: str = "ckpt_path") -> ConfigError:
    """Return the error for a model folder where training, or a test, needs the checkpoint that it was made from."""
    return ConfigError(
        [
            f"{key}: {path} is a model folder, which holds the network alone: task=predict and task=export take it, "
            "and backbone.pretrained= begins a training with it. Here give the checkpoint that it was made from."
        ]
    )


def is_whole(path: Path) -> bool:
    """Return whether a file is one of ``torch.save`` or ``torch.export.save``, with every byte as it was written.

    ``torch.load`` with ``mmap`` does not compare the checksums that ``torch.save`` has written.
    """
    try:
        with zipfile.ZipFile(path) as file:
            return file.testzip() is None
    # What zipfile raises for a damaged file: of its end, its size, its methods, its flags, its content.
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, RuntimeError, zlib.error):
        return False


def other_code(path: Path, checkpoint: dict[str, Any], reason: str, key: str = "ckpt_path") -> ConfigError:
    """Return the error for a checkpoint whose model is another one in this version; ``key`` as of `read_checkpoint`."""
    made_by = checkpoint[CHECKPOINT_KEY]["version"]
    return ConfigError(
        [
            f"{key}: {path} does not fit the model of this version ({reason}). It was made by version {made_by}, this "
            f"is {faceattr_lightning.__version__}; take that version's code."
        ]
    )
