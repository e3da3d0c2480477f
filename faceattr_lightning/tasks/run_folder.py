"""A run's folder: its configuration, how the run went, and that one run at a time writes into it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from filelock import FileLock, Timeout

from faceattr_lightning.errors import ConfigError
from faceattr_lightning.files import PARTIAL, write_text

STATUS_FILE = "status.json"
_LOCK_FILE = ".lock"


@dataclass(frozen=True)
class RunStatus:
    """How a run went.

    Attributes:
        state: ``running`` also stands in the folder of a run that was killed; `is_occupied` tells which.
        task: of the run, such as ``train``.
        overrides: the command line's, of this job alone.
        reason: why the run failed, else empty.
        value: what the task returned; of ``train``, the best value of the monitored metric.
    """

    state: Literal["running", "finished", "failed", "stopped"]
    task: str
    overrides: list[str]
    reason: str = ""
    value: float | None = None


def read_status(run_dir: Path) -> RunStatus | None:
    """Return how the run of a folder went; ``None`` if it holds none."""
    try:
        return RunStatus(**json.loads((run_dir / STATUS_FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def write_status(status: RunStatus, run_dir: Path) -> None:
    """Write ``status.json``, whole or not at all.

    Raises:
        ConfigError: the folder can't be written to.
    """
    with _writable(run_dir):
        write_text(json.dumps(asdict(status), indent=2, ensure_ascii=False) + "\n", run_dir / STATUS_FILE)


def save_config(config: dict[str, Any], run_dir: Path) -> None:
    """Write ``config.yaml``, whole and resolved.

    Raises:
        ConfigError: the folder can't be written to.
    """
    with _writable(run_dir):
        write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True), run_dir / "config.yaml")


@contextmanager
def occupied(run_dir: Path) -> Iterator[None]:
    """Keep every other run out of a folder, on any machine that shares it; a killed process lets go of it.

    Raises:
        ConfigError: another run writes into the folder, or it can't be written to.
    """
    lock = FileLock(run_dir / _LOCK_FILE)
    with _writable(run_dir):
        run_dir.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise ConfigError(
                [
                    f"hydra.run.dir: another run is writing into {run_dir}. Wait for it, or name the folder of the run "
                    "that you mean: hydra.run.dir=FOLDER."
                ]
            ) from None
    try:
        # What a killed process was writing.
        for partial in (*run_dir.glob(PARTIAL), *run_dir.glob(f"*/{PARTIAL}")):
            with suppress(OSError):
                partial.unlink()
        yield
    finally:
        lock.release()


def is_occupied(run_dir: Path) -> bool:
    """Return whether a run is writing into a folder."""
    if not (run_dir / _LOCK_FILE).exists():
        return False
    lock = FileLock(run_dir / _LOCK_FILE)
    try:
        lock.acquire(timeout=0)
    except (Timeout, OSError):
        return True
    lock.release()
    return False


@contextmanager
def _writable(run_dir: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or os.strerror(error.errno or 0)
        raise ConfigError(
            [f"paths.output_dir: can't write to {run_dir} ({reason}). Choose another paths.output_dir."]
        ) from error
