"""How differently a model errs on the sides of a slice: men and women, age groups, races, data sets."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from faceattr_lightning.attributes import GENDER
from faceattr_lightning.data.table import Slice
from faceattr_lightning.errors import ConfigError, did_you_mean
from faceattr_lightning.metrics.attribute_metrics import confusion_counts

DEFAULT_SLICES = (GENDER, "Young", "age_group", "race", "database")
"""Looked at where the data has them and nothing else was asked for."""

LEAST_SUPPORT = 30
"""Ours: a rate over fewer images than this is shown, but takes no part in a gap."""

RATES = {"accuracy": "support", "false_positive_rate": "negatives", "false_negative_rate": "positives"}
"""Each rate, and the number of images that it is a share of."""


def choose_slices(
    requested: Sequence[str] | None, available: Mapping[str, Slice], key: str = "callbacks.report.slices"
) -> dict[str, Slice]:
    """Return the slices that were asked for; for ``None`` those of `DEFAULT_SLICES` that there are.

    Args:
        requested: names.
        available: see `FaceTable.all_slices`.
        key: the configuration key that an error names.

    Raises:
        ConfigError: a name that the data does not have, with the nearest one that it has.
    """
    if requested is None:
        return {name: available[name] for name in DEFAULT_SLICES if name in available}
    unknown = [name for name in requested if name not in available]
    if unknown:
        raise ConfigError(
            [
                f"{key}: the data has no attribute or other label '{name}' to slice by.{did_you_mean(name, available)}"
                for name in unknown
            ]
        )
    return {name: available[name] for name in requested}


def slice_rows(
    probabilities: Tensor, labels: Tensor, thresholds: Tensor, names: Sequence[str], slices: Mapping[str, Slice]
) -> list[dict[str, Any]]:
    """Return a row for each slice, attribute and side, with what the model gets wrong there.

    Left out are an attribute by its own labels, which has one class on each side, and one that is labelled on no side,
    as happens where data sets are fused.

    Args:
        probabilities: float64 (N, A) of presence.
        labels: int8 (N, A) in {0, 1, -1}.
        thresholds: float (A,) in [0, 1]; a probability at or above it counts as present.
        names: of the A attributes.
        slices: by name, of these N images.

    Returns:
        rows with ``slice``, ``attribute``, ``side``; ``support``, ``positives`` and ``negatives``, the side's labelled
        images; ``accuracy``; ``false_positive_rate``, the share of negatives that count as present;
        ``false_negative_rate``, the share of positives that do not (fractions, NaN over no image).
    """
    predicted = probabilities >= thresholds.double().cpu()
    labelled, positive = labels >= 0, labels == 1
    rows = []
    for slice_name, part in slices.items():
        code = torch.as_tensor(part.code)
        by_side = []
        for index in range(len(part.sides)):
            inside = code == index
            tp, fp, fn, tn = confusion_counts(predicted[inside], labelled[inside], positive[inside])
            values = {
                "support": tp + fp + fn + tn,
                "positives": tp + fn,
                "negatives": fp + tn,
                # Not of whole numbers, whose quotient would be a float32.
                "accuracy": (tp + tn).double() / (tp + fp + fn + tn),
                "false_positive_rate": fp.double() / (fp + tn),
                "false_negative_rate": fn.double() / (tp + fn),
            }
            by_side.append({key: vector.tolist() for key, vector in values.items()})
        for column, name in enumerate(names):
            if name == slice_name or not any(vectors["support"][column] for vectors in by_side):
                continue
            for side, vectors in zip(part.sides, by_side, strict=True):
                values = {key: vector[column] for key, vector in vectors.items()}
                rows.append({"slice": slice_name, "attribute": name, "side": side, **values})
    return rows


def largest_gaps(rows: Sequence[Mapping[str, Any]], least_support: int = LEAST_SUPPORT) -> list[dict[str, Any]]:
    """Return the differences between the sides with the highest and the lowest rate, the largest first.

    A side counts for a rate if that is a share of at least ``least_support`` images; without two such sides there is no
    gap. The first of many gaps is large by chance too: it says where to look, not what is so.

    Args:
        rows: see `slice_rows`.
        least_support: in images.

    Returns:
        rows with ``slice``, ``attribute``, ``rate`` (of `RATES`), ``gap`` (a difference of fractions), and
        ``high_side``, ``high``, ``high_support``, ``low_side``, ``low``, ``low_support``, the two sides with their rate
        and the number of images that it is a share of.
    """
    found = []
    for (slice_name, name), group in itertools.groupby(rows, lambda row: (row["slice"], row["attribute"])):
        sides = list(group)
        for rate, support in RATES.items():
            counted = [row for row in sides if row[support] >= least_support]
            if len(counted) < 2:
                continue
            low, high = (choose(counted, key=lambda row: row[rate]) for choose in (min, max))
            gap: dict[str, Any] = {"slice": slice_name, "attribute": name, "rate": rate, "gap": high[rate] - low[rate]}
            for end, row in (("high", high), ("low", low)):
                gap |= {f"{end}_side": row["side"], end: row[rate], f"{end}_support": row[support]}
            found.append(gap)
    return sorted(found, key=lambda gap: -gap["gap"])
