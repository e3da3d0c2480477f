"""The page of a sweep: a row for each job."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from html import escape
from typing import Any

from faceattr_lightning.report.charts import percent
from faceattr_lightning.report.html import number_cell, page, section, sortable_table

Row = dict[str, Any]

FIGURES = {
    "majority_accuracy": "Constant answer",
    "accuracy_at_half": "Accuracy at 0.5",
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "f1": "F1",
    "average_precision": "Average precision",
    "ece": "ECE",
}
"""What is shown of a job's summary, with its heading."""


def render_sweep(name: str, rows: Sequence[Row]) -> str:
    """Return the whole page; it fetches nothing.

    Args:
        name: of the sweep.
        rows: see `faceattr_lightning.tasks.collect.sweep_rows`.
    """
    states = Counter(row["state"] for row in rows)
    subtitle = ", ".join(f"{count} {state}" for state, count in states.most_common())
    plain = [key for key in (rows[0] if rows else ()) if key not in (*FIGURES, "reason", "folder")]
    heads = [
        *((key.replace("_", " "), f"what the job has for {key}", key == "job") for key in plain),
        *((heading, f"{heading} on the test split, mean over the attributes", True) for heading in FIGURES.values()),
        ("Reason", "why the job has no result", False),
    ]
    body = [
        "".join(_cell(row, key) for key in plain)
        + "".join(number_cell(key, row[key], percent) for key in FIGURES)
        + f"<td>{escape(row['reason'])}</td>"
        for row in rows
    ]
    lead = "A row for each job; means over the attributes of the test split. Choose a heading to sort by it."
    table = section("Jobs", lead, sortable_table("The jobs of the sweep", heads, body))
    unfinished = len(rows) - states["finished"]
    notice = (
        f'<p class="notice">{unfinished} of {len(rows)} jobs have no result. The command of the sweep with '
        "<code>sweep.resume=true</code> runs them, and only them.</p>"
        if unfinished
        else ""
    )
    return page(f"Sweep {name}", subtitle, {}, notice, [table])


def _cell(row: Row, key: str) -> str:
    value = row[key]
    if key == "job":
        return f'<td class="number" data-value="{value}"><a href="{value}/report/report.html">{value}</a></td>'
    return f"<td>{'' if value is None else escape(str(value))}</td>"
