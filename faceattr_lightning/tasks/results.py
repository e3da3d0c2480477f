"""``task=results``: the rows of ``experiments/RESULTS.md``, run where they are missing, and the page written anew."""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from faceattr_lightning.__main__ import CONF
from faceattr_lightning.description import without_folders
from faceattr_lightning.errors import ConfigError, DataError
from faceattr_lightning.files import write_text
from faceattr_lightning.metrics.bootstrap import Draws, mean_over_attributes
from faceattr_lightning.metrics.comparison import Comparison, Estimate, Pairing
from faceattr_lightning.processes import quote
from faceattr_lightning.report.files import write_summary_json
from faceattr_lightning.report.results import (
    PLACEHOLDER,
    Published,
    Resamples,
    ResultsTable,
    Row,
    fingerprints,
    read_row,
    render_results,
)
from faceattr_lightning.strategy import Process
from faceattr_lightning.tasks.compare import Run, compare_entries
from faceattr_lightning.tasks.run_folder import read_status

log = logging.getLogger(__name__)

EXPERIMENTS = CONF.parent / "experiments"
_LEVEL, _REPLICATES = 0.95, 2000


def results(
    config: dict[str, Any],
    ranks: list[Process],
    tables: list[dict[str, Any]],
    published: list[dict[str, Any]],
    run: bool = True,
    only: list[str] | None = None,
    seeds: list[int] | None = None,
    files: dict[str, str | None] | None = None,
) -> None:
    """Run the missing rows, a process after the other, record them, and write the page of all that is recorded.

    A row's runs lie in ``<paths.output_dir>/experiments/``; what is kept of them in ``experiments/results/``, a file a
    row: each run's ``summary.json``, the intervals over people and seeds, and the difference to the first row of the
    table. A run that was begun goes on; one that fails is named at the end, after all others.

    Args:
        config: the job's configuration as plain data.
        ranks: not used.
        tables: each a ``title``, ``rows``, which are the overrides of a training, the reference first, and ``gpu``,
            whether they need one.
        published: each a ``system``, ``data``, mean ``accuracy`` in percent and its ``source``.
        run: whether to run anything.
        only: the rows that hold one of these texts; ``None`` for all that this machine is for.
        seeds: of each row; ``None`` for 0.
        files: what ``FILE`` in a row stands for, by the last part of its key.

    Raises:
        ConfigError: a table or a figure lacks a key, or no row holds a text of ``only``.
        DataError: a row's run failed, or what is recorded is damaged.
    """
    planned, figures = _tables(tables), [_published(one) for one in published]
    commands = list(dict.fromkeys(row for table in planned for row in table.rows))
    chosen = [row for row in commands if only is None or any(text in row for text in only)]
    if not chosen:
        raise ConfigError([f"task.only: no row holds {' or '.join(only or ())}; see conf/task/results.yaml."])
    folder = EXPERIMENTS / "results"
    failed = []
    if run:
        gpu = {row for table in planned if table.gpu for row in table.rows}
        for row in chosen:
            if row in gpu and not torch.cuda.is_available():
                log.info("Needs a GPU: %s", row)
            elif missing := _missing_files(row, files or {}):
                log.warning("Needs task.files.%s=: %s", missing[0], row)
            else:
                failed += list(_run_row(config, row, seeds or [0], files or {}, folder))
                _record_intervals(config, planned, folder)
                _write_page(planned, figures, folder)
    _record_intervals(config, planned, folder)
    _write_page(planned, figures, folder)
    if failed:
        raise DataError("\n".join(failed))


def _missing_files(row: str, files: Mapping[str, str | None]) -> list[str]:
    """Return the names of a row's files that are not known, or not there."""
    names = [_file_name(part) for part in shlex.split(row) if part.endswith(PLACEHOLDER)]
    return [name for name in names if not (file := files.get(name)) or not Path(file).expanduser().exists()]


def _file_name(override: str) -> str:
    """Return ``pretrained`` of ``backbone.pretrained=FILE``."""
    return override.removesuffix(PLACEHOLDER).rpartition(".")[2]


def _run_row(
    config: Mapping[str, Any], row: str, seeds: Sequence[int], files: Mapping[str, str | None], folder: Path
) -> Iterator[str]:
    """Run the seeds of a row that are not recorded, and record them; yield the reason of each that failed."""
    record = read_row(folder / f"{slug(row)}.json", row)
    for seed in seeds:
        if str(seed) in record["runs"]:
            continue
        run_dir = _run_dir(config, row, seed)
        overrides = [
            f"{part.removesuffix('FILE')}{quote(str(files[_file_name(part)]))}" if part.endswith(PLACEHOLDER) else part
            for part in shlex.split(row)
        ]
        log.info("Running %s seed=%d", row, seed)
        # A process of its own, so that a run has the memory and the random numbers of a run by hand.
        command = [sys.executable, "-m", "faceattr_lightning", *overrides, f"seed={seed}"]
        command += [f"hydra.run.dir={quote(str(run_dir))}", "sweep.resume=true"]
        finished = subprocess.run(command, check=False)
        status = read_status(run_dir)
        if finished.returncode != 0 or status is None or status.state != "finished":
            # One that was refused before it began has left nothing but what it printed.
            reason = "see above" if status is None else f"{status.reason or status.state} (in {run_dir})"
            yield f"{row} seed={seed}: {reason}. The same command goes on with it."
            continue
        record["runs"][str(seed)] = _recorded(run_dir)
        record["resamples"][str(seed)] = _resampled(run_dir)
        write_summary_json(record, folder / f"{slug(row)}.json")


def _recorded(run_dir: Path) -> dict[str, Any]:
    """Return what is recorded of a run: its summary without what holds on this machine alone."""
    summary = json.loads((run_dir / "report" / "summary.json").read_text(encoding="utf-8"))
    del summary["checkpoint"]
    recorded: dict[str, Any] = without_folders(summary)
    return recorded


def _resampled(run_dir: Path) -> Resamples:
    """Return of a run what its difference to a run of another machine needs."""
    run = Run.read(run_dir)
    saved = run.saved
    values = run.resampled(Draws.of(saved.identity, _REPLICATES))["accuracy_at_half"]
    tested = json.dumps([saved.files, saved.attribute_names, saved.predictions.labels.tolist()])
    return {
        "tested": hashlib.sha256(tested.encode()).hexdigest()[:12],
        "accuracy_at_half": base64.b64encode(mean_over_attributes(values).astype("<f4").tobytes()).decode(),
    }


def _record_intervals(config: Mapping[str, Any], planned: Sequence[ResultsTable], folder: Path) -> None:
    """Record the intervals of rows whose runs lie on this machine, and the differences whose resamples are known."""
    for table in planned:
        first = table.rows[0]
        for row in table.rows:
            path = folder / f"{slug(row)}.json"
            record, other = read_row(path, row), read_row(folder / f"{slug(first)}.json", first)
            own, both = fingerprints(record), [fingerprints(other), fingerprints(record)]
            changed = False
            # Predictions are read only where there is something to say of them.
            if own and record["figures"].get("runs") != own and (runs := _runs(config, record)):
                (alone,) = compare_entries({row: runs}, _LEVEL, _REPLICATES)
                record["figures"] = {"runs": own, **_plain(alone.figures)}
                changed = True
            known = row == first or record["differences"].get(first, {}).get("runs") == both
            if not known and (change := _difference(record, other)):
                record["differences"][first] = {"runs": both, **_plain({"accuracy_at_half": change})}
                changed = True
            if changed:
                write_summary_json(record, path)


def _difference(record: Row, reference: Row) -> Estimate | None:
    """Return a row's accuracy at 0.5 less the reference's; ``None`` where a run of either has no resamples recorded.

    Raises:
        DataError: they were tested on other images, labels or attributes.
    """
    sides = [record, reference]
    if not all(side["runs"] and side["runs"].keys() == side["resamples"].keys() for side in sides):
        return None
    if len({one["tested"] for side in sides for one in side["resamples"].values()}) > 1:
        raise DataError(
            f"{record['row']} and {reference['row']} were tested on other images, labels or attributes, so that one "
            "table can't hold both. Delete the records of one, and run it on the other's data."
        )
    seeds = [sorted(side["runs"], key=int) for side in sides]
    values = [
        np.stack([np.frombuffer(base64.b64decode(side["resamples"][seed]["accuracy_at_half"]), "<f4") for seed in own])
        for side, own in zip(sides, seeds, strict=True)
    ]
    pairing: Pairing = "seeds" if seeds[0] == seeds[1] else "none"
    return Comparison([one.astype(np.float64) for one in values], pairing).difference(0, 1, _LEVEL)


def _plain(estimates: Mapping[str, Estimate]) -> dict[str, dict[str, Any]]:
    return {
        metric: {
            "value": float(one.value),
            "low": float(one.low),
            "high": float(one.high),
            "verdict": str(one.verdict(metric)),
        }
        for metric, one in estimates.items()
    }


def _runs(config: Mapping[str, Any], record: Row) -> list[Run]:
    """Return a row's recorded runs; none unless all lie on this machine."""
    folders = [_run_dir(config, record["row"], int(seed)) for seed in sorted(record["runs"], key=int)]
    # A folder may hold another run than the one that was recorded elsewhere.
    whole = all(
        (one / "report/predictions.npz").is_file() and _recorded(one) == record["runs"][one.name.removeprefix("seed_")]
        for one in folders
    )
    return [Run.read(one) for one in folders] if whole else []


def _run_dir(config: Mapping[str, Any], row: str, seed: int) -> Path:
    return Path(config["paths"]["output_dir"]) / "experiments" / slug(row) / f"seed_{seed}"


def slug(row: str) -> str:
    """Return a row's overrides as the name of a file."""
    parts = [part.removeprefix("experiment=") for part in shlex.split(row) if not part.endswith(PLACEHOLDER)]
    return re.sub(r"[^\w=.,-]", "_", ",".join(parts))


def _write_page(planned: Sequence[ResultsTable], figures: Sequence[Published], folder: Path) -> None:
    rows: dict[str, Row] = {row: read_row(folder / f"{slug(row)}.json", row) for table in planned for row in table.rows}
    page = EXPERIMENTS / "RESULTS.md"
    reading = EXPERIMENTS / "READING.md"
    text = reading.read_text(encoding="utf-8") if reading.is_file() else ""
    write_text(render_results(planned, rows, figures, text), page)
    log.info("Results: %s", page)


def _tables(tables: Sequence[Mapping[str, Any]]) -> list[ResultsTable]:
    try:
        planned = [ResultsTable(**table) for table in tables]
    except TypeError as error:
        raise ConfigError([f"task.tables: expected title, rows and perhaps gpu in each ({error})."]) from error
    if empty := [table.title for table in planned if not table.rows]:
        raise ConfigError([f"task.tables: no rows in {', '.join(empty)}; expected at least one in each."])
    return planned


def _published(figure: Mapping[str, Any]) -> Published:
    try:
        return Published(**figure)
    except TypeError as error:
        raise ConfigError([f"task.published: expected system, data, accuracy and source in each ({error})."]) from error
