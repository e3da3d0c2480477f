"""Finding and opening checkpoints that describe themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from faceattr_lightning.errors import ConfigError
from faceattr_lightning.instantiate import locate
from faceattr_lightning.models.module import CHECKPOINT_KEY, AttributeModule


def newest_checkpoint(ckpt_path: str | None, output_dir: str) -> Path | None:
    """Return the file that ``ckpt_path`` means.

    Args:
        ckpt_path: a file; ``best`` or ``last``, of the newest training run that has one; or ``None``.
        output_dir: the folder under which runs are made.

    Raises:
        ConfigError: there is no such file.
    """
    if ckpt_path is None:
        return None
    if ckpt_path in ("best", "last"):
        base = Path(output_dir)
        found = [
            *base.glob(f"train/*/checkpoints/{ckpt_path}.ckpt"),
            *base.glob(f"multirun/*/*/checkpoints/{ckpt_path}.ckpt"),
        ]
        if not found:
            raise ConfigError(
                [
                    f"ckpt_path: no training run under {base} has a checkpoint "
                    f"'{ckpt_path}'. Train first, or give the file."
                ]
            )
        return max(found, key=lambda path: path.stat().st_mtime)
    path = Path(ckpt_path).expanduser()
    if not path.is_file():
        raise ConfigError([f"ckpt_path: there is no file {path}; expected best, last or a checkpoint file."])
    return path


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Return a checkpoint's content, on the CPU.

    Raises:
        ConfigError: the file is no checkpoint of this program.
    """
    try:
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        checkpoint[CHECKPOINT_KEY]["model"]
    except Exception as error:  # whatever torch.load makes of a file that is none
        raise ConfigError(
            [f"ckpt_path: {path} is no checkpoint of faceattr-lightning ({type(error).__name__}: {error})."]
        ) from error
    return checkpoint


def load_model(path: Path) -> AttributeModule:
    """Return the model of a checkpoint, of whatever class it is, with its weights, thresholds and configuration.

    Raises:
        ConfigError: the file is no checkpoint of this program.
    """
    model_class: Any = locate(read_checkpoint(path)[CHECKPOINT_KEY]["model"])
    model: AttributeModule = model_class.load_from_checkpoint(path, map_location="cpu", weights_only=True)
    return model
