"""``task=compare``: what can be said of the difference between runs that were tested on the same images."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.console import Console
from rich.table import Table

from faceattr_lightning.__main__ import CONF
from faceattr_lightning.errors import ConfigError
from faceattr_lightning.files import write_text
from faceattr_lightning.metrics.bootstrap import Draws, Values, mean_over_attributes, resampled_metrics
from faceattr_lightning.metrics.comparison import Comparison, Estimate, Pairing, simultaneous
from faceattr_lightning.metrics.saved_predictions import SavedPredictions
from faceattr_lightning.report.comparison import METRICS, ComparedEntry, markdown, tex
from faceattr_lightning.report.files import write_split_csv
from faceattr_lightning.strategy import Process
from faceattr_lightning.tasks.train import LEARNING_CALLBACKS

log = logging.getLogger(__name__)

_SECTIONS = ("model", "backbone", "data", "weighting", "calibration", "trainer")
# What does not make another method: where the files are, how they are read, on what machine.
_FREE = {"seed", "root", "cache_dir", "prepared", "landmark_file", "mask_checkpoint", "num_workers"}
_FREE |= {"accelerator", "devices", "num_nodes", "strategy"}


@dataclass(frozen=True)
class Run:
    """A finished run's folder, and what its model said of a split."""

    folder: Path
    saved: SavedPredictions

    @classmethod
    def read(cls, folder: Path, split: Literal["test", "validation"] = "test") -> Run:
        """Read a run.

        Raises:
            DataError: its predictions are missing or damaged.
        """
        name = "predictions.npz" if split == "test" else f"predictions_{split}.npz"
        return cls(folder, SavedPredictions.read(folder / "report" / name))

    @property
    def seed(self) -> int:
        return int(self.saved.config["seed"])

    @property
    def method(self) -> dict[str, Any]:
        """The configuration without what may differ between runs of one method, flat."""
        config = self.saved.config
        callbacks = {name: (config["callbacks"] or {}).get(name) for name in LEARNING_CALLBACKS}
        sections = {**{section: config[section] for section in _SECTIONS}, "callbacks": callbacks}
        return {
            f"{section}.{key}": value
            for section, node in sections.items()
            for key, value in _flat(node).items()
            if key.rpartition(".")[2] not in _FREE
        }

    def resampled(self, draws: Draws) -> Values:
        """Return the metrics of every resample, with draws of its own images."""
        saved = self.saved
        return resampled_metrics(saved.predictions, saved.thresholds, saved.train_prevalence, draws)


def compare(
    config: dict[str, Any],
    ranks: list[Process],
    split: Literal["test", "validation"] = "test",
    level: float = 0.95,
    replicates: int = 2000,
) -> None:
    """Compare ``runs``, and write ``comparison.md``, ``.tex`` and ``.csv`` into the run's folder.

    Runs that differ in their seed alone are seeds of one entry. The first run's entry is the reference.

    Args:
        config: the job's configuration as plain data.
        ranks: not used.
        split: whose predictions are compared.
        level: of the confidence intervals, in (0, 1).
        replicates: resamples of the split, at least 100.

    Raises:
        ConfigError: fewer than two runs, runs of other images, labels or attributes, or one seed twice.
        DataError: a run's predictions are missing or damaged.
    """
    runs = [Run.read(folder, split) for folder in find_runs(config["runs"])]
    check_same_images(runs)
    entries = group(runs)
    first = runs[0].saved
    if max(map(len, entries.values())) == 1:
        log.warning("One seed each: what is compared are these trained models, not the methods.")
    compared = compare_entries(entries, level, replicates)
    rows = [row for metric in METRICS for entry in compared for row in _rows(entry, metric, first.attribute_names)]

    title = f"{_last(first.config['data']['_target_']).lower()}, {split} split"
    facts = {
        "images": len(first.files),
        "people": len(set(first.identity[first.identity >= 0].tolist())),
        "runs": len(runs),
        "level": level,
        "replicates": replicates,
    }
    run_dir = Path(config["paths"]["run_dir"])
    write_split_csv(rows, run_dir / "comparison.csv")
    write_text(markdown(title, facts, compared, first.attribute_names), run_dir / "comparison.md")
    write_text(tex(title, facts, compared), run_dir / "comparison.tex")
    _print(title, compared)
    log.info("Comparison: %s", run_dir / "comparison.md")


def compare_entries(entries: Mapping[str, Sequence[Run]], level: float, replicates: int) -> list[ComparedEntry]:
    """Return what can be said of entries that were tested on the same images, and of their difference to the first.

    Args:
        entries: name to the runs of one method, which differ in their seed alone.
        level: see `compare`.
        replicates: see `compare`.
    """
    groups = [sorted(members, key=lambda run: run.seed) for members in entries.values()]
    draws = Draws.of(groups[0][0].saved.identity, replicates)
    resampled = [[run.resampled(draws) for run in members] for members in groups]
    seeds = [[run.seed for run in members] for members in groups]
    pairing: Pairing = "none"
    if all(one == seeds[0] for one in seeds):
        trained = [_without_calibration(members[0].method) for members in groups]
        pairing = "models" if len(groups) > 1 and all(one == trained[0] for one in trained) else "seeds"
    shared = simultaneous(level, len(groups[0][0].saved.attribute_names))
    compared = [ComparedEntry(name, len(members), {}, {}, {}, {}) for name, members in entries.items()]
    for metric in METRICS:
        values = [np.stack([one[metric] for one in members]) for members in resampled]
        single = Comparison(values, pairing)
        mean = Comparison([mean_over_attributes(entry) for entry in values], pairing)
        for index, entry in enumerate(compared):
            entry.figures[metric] = mean.of(index, level)
            entry.by_attribute[metric] = single.of(index, shared)
            if index:
                entry.differences[metric] = mean.difference(index, 0, level)
                entry.differences_by_attribute[metric] = single.difference(index, 0, shared)
    return compared


def find_runs(given: Sequence[str] | None) -> list[Path]:
    """Return the folders of finished runs.

    Args:
        given: folders of runs, folders of sweeps, or patterns of either.

    Raises:
        ConfigError: nothing is given, or one of them has no finished run.
    """
    if not given:
        raise ConfigError(
            ["runs: expected the folders to compare, such as 'runs=[outputs/train/A,outputs/train/B]', found none."]
        )
    found: list[Path] = []
    problems = []
    for pattern in given:
        folders = [Path(match) for match in sorted(glob(str(Path(pattern).expanduser())))]
        runs = [folder for folder in folders if (folder / "report" / "summary.json").is_file()]
        for folder in folders:
            jobs = [path.parent.parent for path in folder.glob("*/report/summary.json")]
            runs += sorted(jobs, key=lambda job: (len(job.name), job.name))
        if not runs:
            what = "no finished run is in it" if folders else "there is no such folder"
            problems.append(f"runs: {pattern}: {what}; expected a folder with report/summary.json, or of a sweep.")
        found += runs
    unique = list(dict.fromkeys(path.resolve() for path in found))
    if not problems and len(unique) < 2:
        problems.append(f"runs: there is one run alone, {unique[0]}; a comparison needs at least two.")
    if problems:
        raise ConfigError(problems)
    return unique


def check_same_images(runs: Sequence[Run]) -> None:
    """Raise a ConfigError unless all runs have the first one's attributes, images and labels."""
    first = runs[0]
    problems = []
    for run in runs[1:]:
        if run.saved.attribute_names != first.saved.attribute_names:
            what = "attributes"
        elif run.saved.files != first.saved.files:
            what = "images"
        elif not run.saved.predictions.labels.equal(first.saved.predictions.labels):
            what = "labels"
        else:
            continue
        problems.append(f"runs: {run.folder} was tested with other {what} than {first.folder}; leave it out.")
    if problems:
        raise ConfigError(problems)


def group(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Return the runs of each method under a name that says in what it differs from the others.

    Raises:
        ConfigError: a method has one seed twice.
    """
    methods: list[tuple[dict[str, Any], list[Run]]] = []
    for run in runs:
        members = next((members for method, members in methods if method == run.method), None)
        if members is None:
            methods.append((run.method, [run]))
        else:
            members.append(run)
    problems = [
        f"runs: {other.folder} has the seed {run.seed} of {run.folder}, and the same configuration; leave one out."
        for _, members in methods
        for place, run in enumerate(members)
        for other in members[place + 1 :]
        if run.seed == other.seed
    ]
    if not problems and len(methods) < 2:
        problems.append("runs: they differ in the seed alone, so that there is nothing to compare.")
    if problems:
        raise ConfigError(problems)
    names = describe([method for method, _ in methods])
    return {name: members for name, (_, members) in zip(names, methods, strict=True)}


def describe(methods: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a name for each flat configuration, of what distinguishes it from the others.

    Of a section with several classes that is the class, and what differs within a class.
    """
    names: list[list[str]] = [[] for _ in methods]
    for section in (*_SECTIONS, *(f"callbacks.{name}" for name in LEARNING_CALLBACKS)):
        target = f"{section}._target_"
        classes = [method.get(target) for method in methods]
        keys = dict.fromkeys(key for method in methods for key in method if key.startswith(f"{section}."))
        for name, method, own in zip(names, methods, classes, strict=True):
            alike = [other for other, its in zip(methods, classes, strict=True) if its == own]
            differing = [
                f"{key.removeprefix(f'{section}.')}={method[key]}"
                for key in keys
                if key != target and key in method and any(other.get(key) != method[key] for other in alike)
            ]
            if len(set(classes)) > 1:
                name.append(f"{section}={_option(section, own)}" + (f" ({', '.join(differing)})" if differing else ""))
            else:
                name += [f"{section}.{one}" for one in differing]
    return [", ".join(name) for name in names]


def _option(section: str, target: str | None) -> str:
    """Return the file of conf/ that alone names a class, else the class."""
    files = [path.stem for path in (CONF / section).glob("*.yaml") if f"_target_: {target}\n" in path.read_text()]
    return files[0] if len(files) == 1 else _last(target or "none")


def _without_calibration(method: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in method.items() if not key.startswith("calibration.")}


def _flat(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in node.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _last(target: str) -> str:
    return target.rpartition(".")[2]


def _rows(entry: ComparedEntry, metric: str, names: Sequence[str]) -> list[dict[str, Any]]:
    """Return the rows of ``comparison.csv`` of one metric: the mean, then each attribute."""
    rows = []
    for place, attribute in [(None, "(mean)"), *enumerate(names)]:
        figure = entry.figures[metric] if place is None else _at(entry.by_attribute[metric], place)
        row: dict[str, Any] = {"entry": entry.name, "seeds": entry.seeds, "metric": metric, "attribute": attribute}
        row |= {"value": float(figure.value), "low": float(figure.low), "high": float(figure.high)}
        if entry.differences:
            whole = entry.differences[metric] if place is None else entry.differences_by_attribute[metric]
            change = whole if place is None else _at(whole, place)
            row |= {"difference": float(change.value), "difference_low": float(change.low)}
            row |= {"difference_high": float(change.high), "verdict": str(change.verdict(metric))}
        rows.append(row)
    return rows


def _at(estimate: Estimate, place: int) -> Estimate:
    return Estimate(estimate.value[place], estimate.low[place], estimate.high[place])


# A terminal has no room for all of them.
_SHOWN = ("accuracy", "balanced_accuracy", "ece")


def _print(title: str, entries: Sequence[ComparedEntry]) -> None:
    table = Table(title=f"{title}: means over the attributes, and less the first entry's", title_justify="left")
    table.add_column("", overflow="fold")
    for metric in _SHOWN:
        table.add_column(METRICS[metric], justify="right")
    for entry in entries:
        cells = []
        for metric in _SHOWN:
            text = f"{100 * float(entry.figures[metric].value):.2f}"
            if entry.differences:
                change = entry.differences[metric]
                text += f"\n{100 * float(change.value):+.2f} {change.verdict(metric)}"
            cells.append(text)
        table.add_row(entry.name, *cells)
    Console().print(table)
