"""A figure of a benchmark, and the table that figures make."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

PER_IMAGE = "ms/image"
"""A unit that the table also shows the other way round, in images a second."""


@dataclass(frozen=True)
class Row:
    """One figure, measured in several rounds; less is better.

    Attributes:
        name: of what was measured.
        unit: of ``ours`` and ``reference``.
        ours: a value per round.
        reference: what it is compared with, a value per round, taken right beside ours; ``None`` for a figure that
            stands alone.
        at_most: the mark, for the median ratio or, without a reference, for the median of ours; ``None`` for a figure
            without one.
    """

    name: str
    unit: str
    ours: Sequence[float]
    reference: Sequence[float] | None = None
    at_most: float | None = None

    @property
    def judged(self) -> list[float]:
        """What the spread and the mark speak of: ratios of rounds, so that a busy moment hits both sides, or ours."""
        if self.reference is None:
            return list(self.ours)
        return [ours / reference for ours, reference in zip(self.ours, self.reference, strict=True)]

    @property
    def met(self) -> bool | None:
        """Whether the mark is met; ``None`` without one."""
        return None if self.at_most is None else self.median <= self.at_most

    @property
    def median(self) -> float:
        """Of `judged`."""
        return statistics.median(self.judged)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for a JSON file, every round included."""
        return {
            "name": self.name,
            "unit": self.unit,
            "ours": list(self.ours),
            "reference": None if self.reference is None else list(self.reference),
            "median": self.median,
            "at_most": self.at_most,
            "met": self.met,
        }


def make_table(rows: Sequence[Row], title: str, before: Mapping[str, float] | None = None) -> Table:
    """Return medians of ours, the reference and the ratio, the least and the greatest round, and the mark.

    Args:
        rows: to print.
        title: of the table.
        before: `Row.median` by name of another run, for two columns more: that figure, and ours over it.
    """
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for heading in (
        "ours",
        "reference",
        "ratio",
        "times",
        "min to max",
        "mark",
        *(("before", "now") if before else ()),
    ):
        table.add_column(heading, justify="right")
    for row in rows:
        least, greatest = min(row.judged), max(row.judged)
        compared = row.reference is not None
        cells = [
            row.name,
            _figure(row.ours, row.unit),
            _figure(row.reference, row.unit) if row.reference is not None else "",
            f"{row.median:.3f}" if compared else "",
            f"{1 / row.median:.3g}x" if compared else "",
            f"{least:.3g} to {greatest:.3g}" if len(row.judged) > 1 else "",
            _mark(row),
        ]
        if before:
            earlier = before.get(row.name)
            cells += [f"{earlier:.3g}", f"{row.median / earlier:.2f}x"] if earlier else ["", ""]
        table.add_row(*cells)
    return table


def medians(benchmarks: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, float]:
    """Return `Row.median` by name from the ``benchmarks`` of a JSON file."""
    return {row["name"]: row["median"] for rows in benchmarks.values() for row in rows}


def _figure(values: Sequence[float], unit: str) -> str:
    median = statistics.median(values)
    return f"{median:.4g} {unit}" + (f" = {1000 / median:,.4g}/s" if unit == PER_IMAGE else "")


def _mark(row: Row) -> str:
    if row.at_most is None:
        return ""
    if row.reference is None:
        wanted = f"≤ {row.at_most:g} {row.unit}"
    elif row.at_most < 1:
        # What is to be so many times as fast, or as small.
        wanted = f"≥ {1 / row.at_most:.3g}x"
    else:
        wanted = f"≤ {row.at_most:.2f}"
    return f"[green]{wanted}  met[/]" if row.met else f"[red]{wanted}  not met[/]"
