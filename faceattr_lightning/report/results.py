"""``experiments/RESULTS.md``: what each experiment was measured to give, beside what is published."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any, TypedDict

from faceattr_lightning.errors import DataError

PLACEHOLDER = "=FILE"
"""What an override of a row ends with whose value is a file of the machine."""
OFFICIAL = {"celeba": (162_770, 19_867, 19_962)}
"""Images of the official splits, by which a run of a paper's protocol is known. LFWA's have too few marks: another draw
of the same sizes can't be told from the official one."""


@dataclass(frozen=True)
class ResultsTable:
    """A table of the page.

    Attributes:
        title: its heading.
        rows: the overrides of each row's training, the reference first.
        gpu: whether its rows are for a machine with a GPU.
    """

    title: str
    rows: list[str]
    gpu: bool = False


@dataclass(frozen=True)
class Published:
    """A published figure.

    Attributes:
        system: a model of ``conf/model``, beside whose rows it stands, or the name of another one.
        data: a data set of ``conf/data``.
        accuracy: mean over the attributes, in percent.
        source: where it stands.
    """

    system: str
    data: str
    accuracy: float
    source: str


class Resamples(TypedDict):
    """What the difference of a run to another one needs.

    Keys:
        tested: mark of the images, attributes and labels.
        accuracy_at_half: the mean over the attributes on the split as it is, then on its resamples (see `Draws`),
            float32, little-endian, in base64.
    """

    tested: str
    accuracy_at_half: str


class Row(TypedDict):
    """What is recorded of a row; rates are fractions.

    Keys:
        row: its overrides.
        runs: seed to the run's ``summary.json``.
        resamples: seed to the run's.
        figures: ``runs``, the `fingerprints` of those that they are of, and metric to ``value``, ``low`` and ``high``,
            over people and seeds.
        differences: reference's overrides to ``runs``, of both, and metric to ``value``, ``low``, ``high`` and
            ``verdict``.
    """

    row: str
    runs: dict[str, dict[str, Any]]
    resamples: dict[str, Resamples]
    figures: dict[str, Any]
    differences: dict[str, dict[str, Any]]


def read_row(path: Path, row: str) -> Row:
    """Return what is recorded of a row; nothing where there is no file.

    Raises:
        DataError: the file is damaged, or is another row's.
    """
    if not path.is_file():
        return {"row": row, "runs": {}, "resamples": {}, "figures": {}, "differences": {}}
    try:
        found: Row = json.loads(path.read_text(encoding="utf-8"))
        # The first rows were recorded without.
        found.setdefault("resamples", {})
        if found["row"] == row and found.keys() >= Row.__annotations__.keys():
            return found
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: no record of a row ({error}). Delete it, and run the row again.") from error
    raise DataError(f"{path}: a record of {found['row']}, not of {row}. Delete it, and run the row again.")


def fingerprints(row: Row) -> list[str]:
    """Return a mark of each of a row's runs, by which a figure that is of other runs is known."""
    summaries = (json.dumps(row["runs"][seed], sort_keys=True) for seed in sorted(row["runs"], key=int))
    return [hashlib.sha256(summary.encode()).hexdigest()[:12] for summary in summaries]


def render_results(
    tables: Sequence[ResultsTable], rows: Mapping[str, Row], published: Sequence[Published], reading: str
) -> str:
    """Return the page.

    Args:
        tables: in their order.
        rows: of each table's rows what is recorded.
        published: figures to set beside ours.
        reading: Markdown that says what the tables mean; it stands before them.
    """
    machines = sorted({run["machine"] for row in rows.values() for run in row["runs"].values()})
    lines = [
        "# Results",
        "",
        "`make results` runs what is missing and writes this page from the runs' own reports, which are recorded in "
        "[results/](results); no figure in its tables was typed. Each row is a command: `python run.py` and its "
        "overrides. Rates are in percent, means over the attributes of the test split, with the 95 % interval over "
        "people and seeds in brackets; *constant* is the accuracy of the training split's majority class. "
        "*Difference*: of the accuracy at 0.5 to the table's first row, on the same images, with a verdict only where "
        "its interval excludes 0. One seed stands for a trained model, not for a method. CPU minutes: of training and "
        "its validation.",
        "",
        f"Machines: {'; '.join(machines) or 'none yet'}.",
        "",
        *([reading.strip(), ""] if reading else []),
        *_published_table(published),
    ]
    for table in tables:
        lines += [f"## {table.title}", "", *_table(table, rows, published), ""]
    return "\n".join(lines).rstrip() + "\n"


def _published_table(published: Sequence[Published]) -> list[str]:
    sets = list(dict.fromkeys(one.data for one in published))
    accuracies = {(one.system, one.data): f"{one.accuracy:.2f}" for one in published}
    lines = [
        "## What others have published",
        "",
        "A row of ours is comparable only where its run had all images of CelebA's official splits. LFWA's official "
        "draw can't be told from another one of the same sizes, so that no row of it is.",
        "",
        f"| system | {' | '.join(sets)} | source |",
        f"|---|{'---:|' * len(sets)}---|",
    ]
    for system, source in dict.fromkeys((one.system, one.source) for one in published):
        cells = [accuracies.get((system, name), "") for name in sets]
        lines.append(f"| {system} | {' | '.join(cells)} | {source} |")
    return [*lines, ""]


_HEADS = (
    "`python run.py`",
    "seeds",
    "constant",
    "accuracy at 0.5",
    "difference",
    "accuracy",
    "balanced accuracy",
    "F1",
    "average precision",
    "published accuracy",
    "CPU minutes",
    "precision",
    "M parameters",
    "GMACs",
    "commit",
)


def _table(table: ResultsTable, rows: Mapping[str, Row], published: Sequence[Published]) -> list[str]:
    lines = [f"| {' | '.join(_HEADS)} |", "|---|" + "---:|" * (len(_HEADS) - 1)]
    for row in table.rows:
        cells = _cells(rows[row], rows[table.rows[0]])
        beside = _beside(row, rows[row], published)
        if not cells:
            missing = "not run yet" + (": needs a GPU" if table.gpu else "")
            cells = [missing, *[""] * (len(_HEADS) - 2)]
        cells[_HEADS.index("published accuracy") - 1] = beside
        lines.append(f"| `{row}` | {' | '.join(cells)} |")
    return lines


def _cells(row: Row, reference: Row) -> list[str]:
    """Return a row's cells but the first; of a row without a run none."""
    runs = list(row["runs"].values())
    if not runs:
        return []
    commits = dict.fromkeys(_short(commit) for run in runs for commit in (run["git_commit"] or "unknown").split())
    return [
        str(len(runs)),
        _percent(_mean(runs, "majority_accuracy")),
        _figure(row, "accuracy_at_half"),
        _difference(row, reference),
        *(_figure(row, metric) for metric in ("accuracy", "balanced_accuracy", "f1")),
        _percent(_mean(runs, "average_precision")),
        "",
        f"{_mean(runs, 'training_cpu_seconds') / 60:.1f}",
        # The first rows were recorded without.
        " ".join(dict.fromkeys(run.get("precision", "") for run in runs)),
        f"{_mean(runs, 'parameters') / 1e6:.1f}",
        f"{_mean(runs, 'gmacs'):.2f}",
        " ".join(commits),
    ]


def _beside(row: str, recorded: Row, published: Sequence[Published]) -> str:
    """Return the published figure of a row's system and data, and whether the row's runs may be compared with it."""
    # Of an ablation nothing is published.
    experiment, *changes = (part for part in row.removeprefix("experiment=").split() if not part.endswith(PLACEHOLDER))
    found = [one for one in published if experiment.removeprefix("cpu_") == f"{one.system}_{one.data}" and not changes]
    if not found:
        return ""
    runs = list(recorded["runs"].values())
    # Of a row that was not run its experiment tells, as far as it can.
    same = found[0].data in OFFICIAL and not experiment.startswith("cpu_")
    if runs:
        counts = (tuple(run[f"{split}_images"] for split in ("train", "validation", "test")) for run in runs)
        same = all(OFFICIAL.get(found[0].data) == count for count in counts)
    return f"{found[0].accuracy:.2f}" + ("" if same else ", not comparable")


def _figure(row: Row, metric: str) -> str:
    known = row["figures"].get(metric)
    if known is None or row["figures"]["runs"] != fingerprints(row):
        return _percent(_mean(list(row["runs"].values()), metric))
    return f"{_percent(known['value'])} [{_percent(known['low'])}, {_percent(known['high'])}]"


def _difference(row: Row, reference: Row) -> str:
    found = row["differences"].get(reference["row"])
    if found is None or found["runs"] != [fingerprints(reference), fingerprints(row)]:
        return ""
    change = found["accuracy_at_half"]
    verdict = change["verdict"]
    shown = verdict if verdict == "undecided" else f"**{verdict}**"
    return f"{100 * change['value']:+.2f} [{100 * change['low']:+.2f}, {100 * change['high']:+.2f}] {shown}"


def _mean(runs: Sequence[Mapping[str, Any]], key: str) -> float:
    return mean(float(run[key]) for run in runs)


def _percent(value: float) -> str:
    return f"{100 * value:.2f}"


def _short(commit: str) -> str:
    name, _, dirty = commit.partition("-")
    return name[:7] + (f"-{dirty}" if dirty else "")
