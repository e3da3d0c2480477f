"""``task=collect``, and the end of each sweep: every job's result, or why it has none, in one table."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import WandbLogger
from rich.console import Console
from rich.table import Table

from faceattr_lightning.errors import ConfigError
from faceattr_lightning.files import write_text
from faceattr_lightning.going_on import job_folders, read_sweep
from faceattr_lightning.report.files import write_split_csv
from faceattr_lightning.report.sweep import FIGURES, Row, render_sweep
from faceattr_lightning.strategy import Process
from faceattr_lightning.tasks.run_folder import is_occupied, read_status
from faceattr_lightning.tasks.trainer import make_loggers

_FACTS = ("parameters", "images_per_second", "git_commit")
_MOST_SHOWN = 40


def collect(config: dict[str, Any], ranks: list[Process]) -> None:
    """Collect the sweeps of ``runs``, or the newest one: ``sweep.csv`` and ``sweep.html`` in a sweep's folder.

    With ``logger=wandb`` the table is sent, too, as a run of the sweep's group.

    Args:
        config: the job's configuration as plain data.
        ranks: not used.

    Raises:
        ConfigError: there is no such sweep.
    """
    sweeps = [Path(given).expanduser() for given in config["runs"] or [newest_sweep(config["paths"]["output_dir"])]]
    problems = [
        f"runs: {sweep} is no sweep's folder; expected one such as outputs/multirun/<date_time>."
        for sweep in sweeps
        if not sweep.is_dir() or not any(job_folders(sweep))
    ]
    if problems:
        raise ConfigError(problems)
    for sweep in sweeps:
        rows = collect_sweep(sweep)
        node = (config["logger"] or {}).get("wandb")
        if node:
            loggers = make_loggers({**config, "logger": {"wandb": {**node, "name": "sweep", "group": sweep.name}}})
            for logger in loggers:
                if isinstance(logger, WandbLogger):
                    log_table(logger, rows)
                    logger.experiment.finish()


def newest_sweep(output_dir: str) -> str:
    """Return the folder of the newest sweep.

    Raises:
        ConfigError: there is none.
    """
    found = [path for path in Path(output_dir).glob("multirun/*") if any(job_folders(path))]
    if not found:
        raise ConfigError([f"runs: there is no sweep under {Path(output_dir) / 'multirun'}; name its folder."])
    return str(max(found, key=lambda path: path.stat().st_mtime))


def collect_sweep(sweep: Path) -> list[Row]:
    """Write and print the table of a sweep, and return its rows."""
    rows = sweep_rows(sweep)
    write_split_csv(rows, sweep / "sweep.csv")
    write_text(render_sweep(sweep.name, rows), sweep / "sweep.html")
    _print(sweep, rows)
    return rows


def sweep_rows(sweep: Path) -> list[Row]:
    """Return a row for each job of a sweep, also those that were never begun.

    Its keys: ``job``; the keys whose values differ between the jobs; ``state`` (finished, failed, stopped, killed,
    running or missing); the figures of the test split; what the network is and costs; ``reason`` and ``folder``.
    """
    planned = read_sweep(sweep).get("jobs") or []
    overrides: dict[int, dict[str, str]] = {number: _by_key(job) for number, job in enumerate(planned)}
    states: dict[int, tuple[str, str]] = dict.fromkeys(overrides, ("missing", ""))
    figures: dict[int, dict[str, Any]] = {}
    for folder in job_folders(sweep):
        number, status = int(folder.name), read_status(folder)
        if status is None:
            states[number] = ("killed", "before its folder was set up")
            overrides.setdefault(number, {})
            continue
        overrides[number] = _by_key(status.overrides)
        killed = status.state == "running" and not is_occupied(folder)
        states[number] = ("killed" if killed else status.state, status.reason)
        try:
            figures[number] = json.loads((folder / "report" / "summary.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
    keys = dict.fromkeys(key for job in overrides.values() for key in job)
    varied = [key for key in keys if len({job.get(key) for job in overrides.values()}) > 1]
    rows = []
    for number in sorted(states):
        state, reason = states[number]
        found = figures.get(number, {}) if state == "finished" else {}
        row: Row = {"job": number}
        row |= {key: overrides[number].get(key, "") for key in varied}
        row |= {"state": state}
        row |= {name: found.get(name) for name in (*FIGURES, *_FACTS)}
        row |= {"reason": reason, "folder": str(sweep / str(number))}
        rows.append(row)
    return rows


def log_table(logger: WandbLogger, rows: Sequence[Row]) -> None:
    """Send the table as ``sweep``."""
    import wandb

    columns: list[str | int] = list(rows[0])
    logger.experiment.log({"sweep": wandb.Table(columns, [list(row.values()) for row in rows])})


def _by_key(overrides: Sequence[str]) -> dict[str, str]:
    pairs = (override.lstrip("+").partition("=") for override in overrides)
    return {key: value for key, _, value in pairs}


def _print(sweep: Path, rows: Sequence[Row]) -> None:
    hidden = {*FIGURES, *_FACTS, "folder", "reason", "job", "state"}
    varied = [key for key in rows[0] if key not in hidden] if rows else []
    table = Table("job", *varied, "state", "accuracy", "balanced", "reason")
    for row in rows[:_MOST_SHOWN]:
        shown = [
            "" if row[metric] is None else f"{100 * row[metric]:.2f} %" for metric in ("accuracy", "balanced_accuracy")
        ]
        reason = (row["reason"].splitlines() or [""])[-1]
        table.add_row(str(row["job"]), *(row[key] for key in varied), row["state"], *shown, reason)
    states = Counter(row["state"] for row in rows)
    console = Console(highlight=False, soft_wrap=True)
    console.print(table)
    console.print(f"Jobs: {', '.join(f'{count} {state}' for state, count in states.most_common())}", markup=False)
    if states.total() > states["finished"]:
        console.print("The same command with sweep.resume=true runs those that are not finished.")
    console.print(f"Sweep: {sweep / 'sweep.html'}", markup=False)
