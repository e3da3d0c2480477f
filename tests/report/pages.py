"""Reports of invented numbers, for tests of the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from faceattr_lightning.data.table import Slice
from faceattr_lightning.metrics.consistency import consistency_rows
from faceattr_lightning.metrics.reliability import reliability_bins, reliability_rows
from faceattr_lightning.metrics.slices import LEAST_SUPPORT, largest_gaps, slice_rows
from faceattr_lightning.report import GridImage, History, ReportData, SplitReport
from faceattr_lightning.report.html import COLUMNS

METRICS = [key for key in COLUMNS if key != "support"]
NAMES = ["Bald", "Smiling", "Young", "Male", "Wearing_Hat", "Bangs"]


def make_split(
    names: Sequence[str], split: str = "test", fixed: Mapping[str, Any] = MappingProxyType({})
) -> SplitReport:
    """Return random figures of each attribute, with ``fixed`` ones among them."""
    rng = np.random.default_rng(0)
    rows = []
    for name in names:
        row: dict[str, Any] = {"attribute": name, "group": "all", "support": 200}
        row |= {metric: float(rng.uniform(0.1, 0.9)) for metric in METRICS}
        row["gain"] = row["accuracy"] - row["majority_accuracy"]
        rows.append({**row, **fixed})
    return SplitReport(split, rows, {metric: float(np.mean([row[metric] for row in rows])) for metric in METRICS})


def make_history(names: Sequence[str], epochs: int) -> History:
    """Return random curves."""
    rng = np.random.default_rng(1)
    return History(
        epochs=list(range(epochs)),
        thresholds={name: rng.uniform(0.3, 0.7, epochs).tolist() for name in names},
        weights={name: rng.uniform(0.5, 1.5, epochs).tolist() for name in names},
        curves={key: rng.uniform(0.2, 0.9, epochs).tolist() for key in ("train/loss", "val/loss", "val/f1", "lr")},
    )


def make_details(names: Sequence[str], samples: int = 400) -> dict[str, Any]:
    """Return the rows of the diagrams, slices and rules, of random predictions."""
    generator = torch.Generator().manual_seed(2)
    probabilities = torch.rand(samples, len(names), generator=generator).double()
    labels = (torch.rand(samples, len(names), generator=generator) < probabilities**2).to(torch.int8)
    labels[torch.rand(samples, len(names), generator=generator) < 0.1] = -1
    races = ("Black", "East Asian", "Indian", "White")
    slices = {
        names[-1]: Slice(("0", "1"), labels[:, -1].numpy()),
        "race": Slice(races, torch.randint(-1, 4, (samples,), generator=generator).numpy()),
    }
    scores = (probabilities, labels, torch.full((len(names),), 0.5))
    sides = slice_rows(*scores, names, slices)
    return {
        "reliability": reliability_rows(reliability_bins(probabilities, labels), list(names)),
        "slices": sides,
        "gaps": largest_gaps(sides),
        "least_support": LEAST_SUPPORT,
        "consistency": consistency_rows(*scores, names),
    }


def make_report(names: Sequence[str], epochs: int = 5) -> ReportData:
    """Return a report with every section."""
    grey = np.full((218, 178, 3), 90, np.uint8)
    face = GridImage(grey, "000001.jpg", [(names[0], 0.93, 0), (names[-1], 0.08, 1)], 3, 5)
    worst = GridImage(grey, "000002.jpg", face.wrong, 3, 5, note="Bald 0.51")
    facts = {"parameters": 11_689_512, "images_per_second": 312.44, "gmacs": 1.8214, "peak_memory_mb": 2480}
    return ReportData(
        title="A run",
        subtitle="on nothing",
        run={**facts, "seed": 123456, "git_commit": None},
        splits=[make_split(names), make_split(names, "validation")],
        **make_details(names),
        history=make_history(names, epochs),
        grids={"Best": [face], "Worst": [face, worst], "Most uncertain": []},
        warnings=["Bald has one class in validation."],
        config_yaml="seed: 1\n",
    )
