"""The tables of a comparison: for reading, and for a paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isnan
from typing import Any

from faceattr_lightning.metrics.comparison import Estimate
from faceattr_lightning.report.latex import escape

METRICS = {
    "accuracy": "accuracy",
    "accuracy_at_half": "accuracy at 0.5",
    "gain": "gain",
    "balanced_accuracy": "balanced accuracy",
    "balanced_accuracy_at_half": "balanced at 0.5",
    "f1": "F1",
    "ece": "ECE",
}
"""What is compared, with its heading."""
SHOWN = [metric for metric in METRICS if not metric.endswith("_at_half")]
"""What the pages show of it; the table of all is ``comparison.csv``."""


@dataclass(frozen=True)
class ComparedEntry:
    """What is known of an entry, by metric; rates as fractions.

    Attributes:
        name: says in what it differs from the others.
        seeds: number of its runs.
        figures: means over the attributes.
        by_attribute: (A,), with simultaneous intervals.
        differences: of the means to the reference's; empty for the reference.
        differences_by_attribute: (A,), with simultaneous intervals.
    """

    name: str
    seeds: int
    figures: dict[str, Estimate]
    by_attribute: dict[str, Estimate]
    differences: dict[str, Estimate]
    differences_by_attribute: dict[str, Estimate]


def markdown(title: str, facts: Mapping[str, Any], entries: Sequence[ComparedEntry], names: Sequence[str]) -> str:
    """Return a page of the means, the differences of the means, and the attributes that are decided.

    Args:
        title: the heading.
        facts: ``images``, ``people``, ``runs``, ``level`` and ``replicates``.
        entries: the reference first.
        names: A attribute names.
    """
    level = f"{100 * facts['level']:g} %"
    resampled = f"{facts['people']:,} people" if facts["people"] else "images"
    heads = [METRICS[metric] for metric in SHOWN]
    lines = [
        f"# Comparison: {title}",
        "",
        f"{facts['images']:,} images, {facts['runs']} runs. In percent: means over the attributes, plus or minus half "
        f"of the {level} interval, from {facts['replicates']:,} resamples of the {resampled} and from the variance "
        "between the seeds. ECE: lower is better.",
        "",
        *_table(
            ["entry", "seeds", *heads],
            [
                [entry.name, str(entry.seeds), *(_plus_minus(entry.figures[metric]) for metric in SHOWN)]
                for entry in entries
            ],
        ),
        "",
        f"Differences to *{entries[0].name}*, in percentage points, with the {level} interval; a verdict only where it "
        "excludes 0.",
        "",
        *_table(
            ["entry", *heads],
            [[entry.name, *(_judged(metric, entry.differences[metric]) for metric in SHOWN)] for entry in entries[1:]],
        ),
        "",
        f"Attributes that are decided, with intervals that hold for all {len(names)} attributes at once with {level}:",
        "",
    ]
    for entry in entries[1:]:
        for metric in SHOWN:
            change = entry.differences_by_attribute[metric]
            verdicts = change.verdict(metric).tolist()
            decided = [
                f"{name} {100 * float(value):+.1f}"
                for name, value, verdict in zip(names, change.value.tolist(), verdicts, strict=True)
                if verdict != "undecided"
            ]
            if decided:
                lines.append(f"- *{entry.name}*, {METRICS[metric]}: {', '.join(decided)}")
    if lines[-1] == "":
        lines.append("none.")
    return "\n".join(lines) + "\n"


def tex(title: str, facts: Mapping[str, Any], entries: Sequence[ComparedEntry]) -> str:
    """Return a ``tabular`` of the means; what is decided against the reference is bold, or in italics if worse."""
    wrap = {"better": r"\textbf{%s}", "worse": r"\textit{%s}"}
    body = []
    for entry in entries:
        cells = [escape(entry.name)]
        for metric in SHOWN:
            figure = entry.figures[metric]
            verdict = str(entry.differences[metric].verdict(metric)) if entry.differences else ""
            text = f"{100 * float(figure.value):.2f}"
            half = 50 * float(figure.high - figure.low)
            cells.append(wrap.get(verdict, "%s") % text + rf" $\pm$ {half:.2f}")
        body.append(" & ".join(cells) + r" \\")
    heading = " & ".join(["", *(METRICS[metric] for metric in SHOWN)])
    return "\n".join(
        [
            f"% {title}: {facts['runs']} runs, {facts['images']} images; percent, plus or minus half",
            f"% of the {100 * facts['level']:g} % interval; bold: better than the first row, italic: worse.",
            r"% Needs \usepackage{booktabs}.",
            r"\begin{tabular}{l" + "r" * len(SHOWN) + "}",
            r"\toprule",
            heading + r" \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(cells) + " |" for cells in (heads, *rows)]
    return [lines[0], "|---" + "|---:" * (len(heads) - 1) + "|", *lines[1:]]


def _plus_minus(figure: Estimate) -> str:
    if isnan(figure.value):
        return "not defined"
    return f"{100 * float(figure.value):.2f} ± {50 * float(figure.high - figure.low):.2f}"


def _judged(metric: str, change: Estimate) -> str:
    if isnan(change.value):
        return "not defined"
    value, low, high = (100 * float(part) for part in (change.value, change.low, change.high))
    verdict = str(change.verdict(metric))
    return f"{value:+.2f} [{low:+.2f}, {high:+.2f}] {f'**{verdict}**' if verdict != 'undecided' else verdict}"
