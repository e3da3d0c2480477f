"""Where a command goes on: the folder of the run that ``ckpt_path=last`` means, of the sweep that ``sweep.resume=true``
means, or of the run that several processes share.

Hydra chooses a run's folder before the job starts, so this looks at the command line as a whole.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from faceattr_lightning.errors import ConfigError
from faceattr_lightning.files import write_text
from faceattr_lightning.processes import quote, shared_run_name

SWEEP_FILE = "sweep.json"


def folder_overrides(config: DictConfig, multirun: bool, overrides: Sequence[str]) -> list[str]:
    """Return what has to be added to a command line, so that it works in the folder that it means.

    Args:
        config: composed from the command line, of its first job, with Hydra's part.
        multirun: whether the command is a sweep.
        overrides: of the command line.

    Raises:
        ConfigError: there is nothing to go on with, or torchrun gives no name for the run.
    """
    key = "hydra.sweep.dir" if multirun else "hydra.run.dir"
    if any(override.startswith(f"{key}=") for override in overrides):
        return []
    task = config.hydra.runtime.choices.task
    try:
        output_dir, ckpt_path = Path(config.paths.output_dir), config.ckpt_path
    except OmegaConfBaseException:  # a value that is known only when the job runs
        return []
    folder: Path | None = None
    if multirun and config.sweep.resume:
        folder = sweep_of(overrides, output_dir)
    elif not multirun and task == "train" and ckpt_path in ("last", "previous"):
        # Here, since it imports torch.
        from faceattr_lightning.tasks.checkpoint import newest_checkpoint

        folder = newest_checkpoint(ckpt_path, str(output_dir)).parents[1]
    elif not multirun and task == "predict":
        folder = unfinished_run(lasting_overrides(overrides, task), output_dir / task)
    elif (name := shared_run_name()) is not None:
        folder = output_dir / ("multirun" if multirun else task) / name
    return [] if folder is None else [f"{key}={quote(str(folder))}"]


def lasting_overrides(overrides: Sequence[str], task: str) -> list[str]:
    """Return what a command does: its overrides without Hydra's own, and without those that say how it goes on.

    Args:
        overrides: of a command line or of a job.
        task: of the command; ``last`` and ``previous`` say how a training goes on, and what any other task looks at.
    """
    going_on = r"sweep\.resume=.*" + (r"|ckpt_path=(last|previous)" if task == "train" else "")
    return [one for one in overrides if not re.fullmatch(rf"\+*(hydra[./].*|{going_on})", one)]


def unfinished_run(overrides: list[str], runs: Path) -> Path | None:
    """Return the folder of the newest run that was begun with a command line, unless it has finished or is running.

    Args:
        overrides: see `lasting_overrides`.
        runs: the folder of a task's runs.
    """
    from faceattr_lightning.tasks.run_folder import STATUS_FILE, is_occupied, read_status

    for path in sorted(runs.glob(f"*/{STATUS_FILE}"), key=lambda path: path.stat().st_mtime, reverse=True):
        status = read_status(path.parent)
        if status is not None and status.overrides == overrides:
            return None if status.state == "finished" or is_occupied(path.parent) else path.parent
    return None


def sweep_of(overrides: Sequence[str], output_dir: Path) -> Path:
    """Return the folder of the newest sweep that was begun with a command line.

    Args:
        overrides: the command line's.
        output_dir: the folder under which runs are made.

    Raises:
        ConfigError: there is none.
    """
    wanted = lasting_overrides(overrides, "")
    files = sorted(output_dir.glob(f"multirun/*/{SWEEP_FILE}"), key=lambda path: path.stat().st_mtime, reverse=True)
    begun = [(path.parent, read_sweep(path.parent).get("overrides", [])) for path in files]
    for folder, had in begun:
        if lasting_overrides(had, "") == wanted:
            return folder
    problem = f"sweep.resume: no sweep under {output_dir / 'multirun'} was begun with this command line."
    if begun:
        problem += f" The newest, {begun[0][0]}, was begun with: {' '.join(begun[0][1])}"
    raise ConfigError([problem])


class SweepRecord(Callback):
    """Hydra's callback that writes a sweep's command line and jobs into its folder, for `sweep_of` and
    ``task=collect``.
    """

    folder: Path | None = None
    """Of the sweep of this process."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        folder = Path(config.hydra.sweep.dir)
        SweepRecord.folder = folder
        if not (folder / SWEEP_FILE).exists():
            overrides = list(config.hydra.overrides.task)
            record = {"overrides": overrides, "jobs": planned_jobs(config, overrides)}
            write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", folder / SWEEP_FILE)


def planned_jobs(config: DictConfig, overrides: Sequence[str]) -> list[list[str]] | None:
    """Return the overrides of each job of a sweep in their order; ``None`` where a sweeper chooses them on the way."""
    if not config.hydra.sweeper._target_.endswith("BasicSweeper"):
        return None
    params = [f"{key}={value}" for key, value in (config.hydra.sweeper.params or {}).items()]
    parser = OverridesParser.create(GlobalHydra.instance().config_loader())
    (jobs,) = BasicSweeper.split_arguments(parser.parse_overrides([*params, *overrides]), None)
    return jobs


def read_sweep(sweep: Path) -> dict[str, Any]:
    """Return what `SweepRecord` wrote; empty for a folder without."""
    try:
        record: dict[str, Any] = json.loads((sweep / SWEEP_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record


def job_folders(sweep: Path) -> Iterator[Path]:
    """Yield the folders of a sweep's jobs in the order of their numbers."""
    yield from sorted((path for path in sweep.iterdir() if path.name.isdecimal()), key=lambda path: int(path.name))
