"""Finding and opening checkpoints that describe themselves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from faceattr_lightning.checkpoint import (
    BEST,
    CHECKPOINT_KEY,
    LAST,
    PREVIOUS,
    needs_checkpoint,
    other_code,
    read_checkpoint,
)
from faceattr_lightning.errors import ConfigError
from faceattr_lightning.instantiate import check_class, locate
from faceattr_lightning.models.module import AttributeModule


def checkpoint_file(run_dir: Path, name: str) -> Path:
    """Return where a run keeps its checkpoint `BEST`, `LAST` or `PREVIOUS`."""
    return run_dir / "checkpoints" / f"{name}.ckpt"


def has_checkpoint(run_dir: Path) -> bool:
    """Return whether a run left a checkpoint that it can go on from."""
    return checkpoint_file(run_dir, LAST).is_file()


def newest_checkpoint(ckpt_path: str, output_dir: str) -> Path:
    """Return the file, or the model folder, that ``ckpt_path`` means.

    Args:
        ckpt_path: a file or a folder; or ``best``, ``last`` or ``previous`` (the last but one), of the newest training
            run that has one.
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
    if not path.exists():
        raise ConfigError(
            [f"ckpt_path: there is no file {path}; expected best, last, previous, a checkpoint file or a model folder."]
        )
    return path


def checkpoint_to_go_on_from(config: Mapping[str, Any]) -> Path:
    """Return the checkpoint from which a training goes on: its own folder's, if that holds the run, or another's.

    Raises:
        ConfigError: there is no such file, or a training is to go on from a model folder.
    """
    wanted, paths = config["ckpt_path"], config["paths"]
    own = checkpoint_file(Path(paths["run_dir"]), wanted)
    if wanted in (LAST, PREVIOUS) and own.is_file():
        return own
    path = newest_checkpoint(wanted, paths["output_dir"])
    if path.is_dir() and config["task"]["_target_"].endswith(".train"):
        raise needs_checkpoint(path)
    return path


def check_weights(path: Path, checkpoint: dict[str, Any], model: AttributeModule) -> None:
    """Raise a ConfigError unless a checkpoint has just the tensors that a model has."""
    stored, expected = checkpoint["state_dict"], model.state_dict()
    differing = [
        name
        for name in sorted(stored.keys() | expected.keys())
        if name not in stored or name not in expected or stored[name].shape != expected[name].shape
    ]
    if differing:
        raise other_code(path, checkpoint, f"{len(differing)} tensors differ, first {differing[0]}")


def load_model(path: Path) -> AttributeModule:
    """Return the model of a checkpoint, of whatever class it is, with its weights, thresholds and configuration.

    Raises:
        ConfigError: the file is no checkpoint of this program, or of a version with another model.
    """
    checkpoint = read_checkpoint(path, folder=False)
    try:
        check_class(checkpoint[CHECKPOINT_KEY]["model"], AttributeModule)
        model_class: Any = locate(checkpoint[CHECKPOINT_KEY]["model"])
        model: AttributeModule = model_class.load_from_checkpoint(path, map_location="cpu", weights_only=True)
    except (ImportError, RuntimeError, TypeError) as error:
        raise other_code(path, checkpoint, " ".join(str(error).split())) from error
    return model
