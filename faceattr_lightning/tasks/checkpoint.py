"""Finding and opening checkpoints that describe themselves."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from packaging.version import InvalidVersion, Version

import faceattr_lightning
from faceattr_lightning.errors import ConfigError
from faceattr_lightning.instantiate import locate
from faceattr_lightning.models.module import CHECKPOINT_KEY, AttributeModule

BEST, LAST, PREVIOUS = "best", "last", "previous"
"""What ``ckpt_path`` can be beside a file, and the names of the files."""


def checkpoint_file(run_dir: Path, name: str) -> Path:
    """Return where a run keeps its checkpoint `BEST`, `LAST` or `PREVIOUS`."""
    return run_dir / "checkpoints" / f"{name}.ckpt"


def has_checkpoint(run_dir: Path) -> bool:
    """Return whether a run left a checkpoint that it can go on from."""
    return checkpoint_file(run_dir, LAST).is_file()


def newest_checkpoint(ckpt_path: str, output_dir: str) -> Path:
    """Return the file that ``ckpt_path`` means.

    Args:
        ckpt_path: a file; or ``best``, ``last`` or ``previous`` (the last but one), of the newest training run that has
            one.
        output_dir: the folder under which runs are made.

    Raises:
        ConfigError: there is no such file.
    """
    if ckpt_path in (BEST, LAST, PREVIOUS):
        base = Path(output_dir)
        found = [*base.glob(str(checkpoint_file(Path("train/*"), ckpt_path)))]
        found += base.glob(str(checkpoint_file(Path("multirun/*/*"), ckpt_path)))
        if not found:
            raise ConfigError(
                [
                    f"ckpt_path: no training run under {base} has a checkpoint '{ckpt_path}'. Train first, or give "
                    "the file."
                ]
            )
        return max(found, key=lambda path: path.stat().st_mtime)
    path = Path(ckpt_path).expanduser()
    if not path.is_file():
        raise ConfigError([f"ckpt_path: there is no file {path}; expected best, last, previous or a checkpoint file."])
    return path


def checkpoint_to_go_on_from(config: Mapping[str, Any]) -> Path:
    """Return the checkpoint from which a training goes on: its own folder's, if that holds the run, or another's.

    Raises:
        ConfigError: there is no such file.
    """
    wanted, paths = config["ckpt_path"], config["paths"]
    own = checkpoint_file(Path(paths["run_dir"]), wanted)
    return own if wanted in (LAST, PREVIOUS) and own.is_file() else newest_checkpoint(wanted, paths["output_dir"])


def read_checkpoint(path: Path, key: str = "ckpt_path") -> dict[str, Any]:
    """Return a checkpoint's content; its tensors stay in the file until they are used.

    Args:
        path: of the file.
        key: the configuration key that an error names.

    Raises:
        ConfigError: there is no such file, it is no checkpoint of this program, or is damaged.
    """
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
    if not isinstance(own, dict):
        raise ConfigError([f"{key}: {path} was not made by faceattr-lightning. Take another file."])
    missing = [key for key in ("state_dict", "loops") if key not in checkpoint]
    missing += [key for key in ("version", "model", "config") if key not in own]
    if missing:
        raise ConfigError([f"{key}: {path} is damaged: it lacks {', '.join(missing)}. {advice}"])
    try:
        newer = Version(own["version"]) > Version(faceattr_lightning.__version__)
    except InvalidVersion:
        raise ConfigError([f"{key}: {path} is damaged: its version is '{own['version']}'. {advice}"]) from None
    if newer:
        raise ConfigError(
            [
                f"{key}: {path} was made by version {own['version']}, which is newer than this one, "
                f"{faceattr_lightning.__version__}. Update the code, or take another file."
            ]
        )
    return checkpoint


def is_whole(path: Path) -> bool:
    """Return whether a file is one of ``torch.save``, with every byte as it was written.

    ``torch.load`` with ``mmap`` does not compare the checksums that ``torch.save`` has written.
    """
    try:
        with zipfile.ZipFile(path) as file:
            return file.testzip() is None
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, RuntimeError, zlib.error):
        return False


def check_weights(path: Path, checkpoint: dict[str, Any], model: AttributeModule) -> None:
    """Raise a ConfigError unless a checkpoint has just the tensors that a model has."""
    stored, expected = checkpoint["state_dict"], model.state_dict()
    differing = [
        name
        for name in sorted(stored.keys() | expected.keys())
        if name not in stored or name not in expected or stored[name].shape != expected[name].shape
    ]
    if differing:
        raise ConfigError([_other_code(path, checkpoint, f"{len(differing)} tensors differ, first {differing[0]}")])


def load_model(path: Path) -> AttributeModule:
    """Return the model of a checkpoint, of whatever class it is, with its weights, thresholds and configuration.

    Raises:
        ConfigError: the file is no checkpoint of this program, or of a version with another model.
    """
    checkpoint = read_checkpoint(path)
    try:
        model_class: Any = locate(checkpoint[CHECKPOINT_KEY]["model"])
        model: AttributeModule = model_class.load_from_checkpoint(path, map_location="cpu", weights_only=True)
    except (ImportError, RuntimeError, TypeError) as error:
        raise ConfigError([_other_code(path, checkpoint, " ".join(str(error).split()))]) from error
    return model


def _other_code(path: Path, checkpoint: dict[str, Any], reason: str) -> str:
    made_by = checkpoint[CHECKPOINT_KEY]["version"]
    return (
        f"ckpt_path: {path} does not fit the model of this version ({reason}). It was made by version {made_by}, this "
        f"is {faceattr_lightning.__version__}; take that version's code."
    )
