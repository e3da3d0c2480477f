"""The best decision thresholds of a split: exact over every threshold there is, O(N log N) an attribute."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from faceattr_lightning.metrics.ranking import labelled_columns, operating_points

Counts = NDArray[Any]
Number = int | float


def _youden(tp: Counts, fp: Counts, positives: Number, negatives: int) -> Counts:
    return tp * negatives - fp * positives


def _mcc(tp: Counts, fp: Counts, positives: Number, negatives: int) -> Counts:
    # Of a constant answer it would be 0 / 0; 0 as in scikit-learn.
    chance = (tp + fp) * (positives + negatives - tp - fp)
    gain = _youden(tp, fp, positives, negatives)
    return np.where(chance > 0, gain / np.sqrt(np.where(chance > 0, chance, 1)), 0.0)


OBJECTIVES: dict[str, Callable[[Counts, Counts, Number, int], Counts]] = {
    "accuracy": lambda tp, fp, positives, negatives: tp - fp,
    "balanced_accuracy": _youden,
    "f1": lambda tp, fp, positives, negatives: tp / (tp + fp + positives),
    "mcc": _mcc,
    "youden": _youden,
}
"""What each metric comes to for given numbers of labels, as a function of true and false positives that is greatest for
the same threshold; integers where they suffice, so that equal is equal."""

TARGETS: dict[str, Callable[[Counts, Counts, int, float], NDArray[np.bool_]]] = {
    "precision": lambda tp, fp, negatives, target: (tp + fp > 0) & (tp / np.where(tp + fp > 0, tp + fp, 1) >= target),
    "false_positive_rate": lambda tp, fp, negatives, target: fp / negatives <= target,
}
"""Which thresholds keep a target: a precision of at least, a false positive rate of at most ``target``."""


def best_thresholds(
    probabilities: Tensor,
    labels: Tensor,
    metric: str,
    target: float | None = None,
    prevalence: Tensor | None = None,
) -> Tensor:
    """Return each attribute's best threshold for ``probability >= threshold``, float32 (A,) in [0, 1].

    The best of all numbers that a float32 can hold, which is what a module keeps its thresholds in. Two probabilities
    with no such number between them (the lower one excluded) can't be told apart, and count as a tie: of those near 1,
    which come closer to each other than float32 resolves, that can matter. Everything present and, where no
    probability is 1, everything absent are among the choices. Missing labels are left out.

    The threshold lies halfway between its neighbouring probabilities, 0 and 1 standing in where there is none. Of
    several equally good ones the nearest to 0.5 is taken, as the one that asks for the least departure from not
    calibrating, and of two as near the lower.

    Args:
        probabilities: float64 (N, A) in [0, 1].
        labels: int8 (N, A) in {0, 1, -1}.
        metric: to be greatest, of `OBJECTIVES` (``youden``, sensitivity + specificity - 1 (Youden, Cancer 1950), has
            the thresholds of balanced accuracy; ``mcc`` of a constant answer is 0); or to be kept to ``target``, of
            `TARGETS`, with the highest recall that allows, and of those the fewest false positives.
        target: in [0, 1], with the latter only.
        prevalence: float (A,) in (0, 1), the share of positives where the thresholds are to be used, if another than
            here: a positive then counts ``p / (1 - p) * N- / N+`` times as much as a negative (label shift: Saerens,
            Latinne, Decaestecker, 2002). NaN for the share here.

    Returns:
        NaN for an attribute whose labelled samples do not have both classes, and where no threshold keeps the target:
        the precision of predicting nothing is not defined, and keeps none.
    """
    shares = [float("nan")] * labels.shape[1] if prevalence is None else prevalence.tolist()
    columns = labelled_columns(probabilities.double(), labels)
    found = [
        _best(probability.astype(np.float64, copy=False), positive, metric, target, share)
        for (probability, positive), share in zip(columns, shares, strict=True)
    ]
    return torch.tensor(found, dtype=torch.float32)


def _best(
    probability: NDArray[np.float64], positive: NDArray[np.bool_], metric: str, target: float | None, share: float
) -> float:
    positives = int(np.count_nonzero(positive))
    negatives = len(positive) - positives
    if not positives or not negatives:
        return float("nan")
    # p >= t for a float32 t exactly if the greatest float32 that is not above p is >= t.
    rounded = probability.astype(np.float32)
    bits = rounded.view(np.uint32) - (rounded > probability)
    ranked, tp, predicted = operating_points(bits, positive)
    scores = ranked.view(np.float32).astype(np.float64)
    if scores[-1] < 1:
        tp, predicted = np.append(tp, 0), np.append(predicted, 0)
    fp = predicted - tp
    # Whole numbers where nothing is shifted, so that equal is equal.
    counts: tuple[Counts, Number] = (tp, positives)
    if not np.isnan(share):
        odds = share / (1 - share) * negatives / positives
        counts = (tp * odds, positives * odds)
    if target is None:
        value = OBJECTIVES[metric](counts[0], fp, counts[1], negatives)
    else:
        kept = TARGETS[metric](counts[0], fp, negatives, target)
        value = np.where(kept, tp * (negatives + 1) - fp, -1)
        if not kept.any():
            return float("nan")
    # Numbers that differ by rounding alone are equal.
    best = np.flatnonzero(value >= value.max() - 1e-12 * abs(value.max()))
    lower, upper = np.concatenate([[0], scores])[best], np.concatenate([scores, [1]])[best]
    middle = ((lower + upper) / 2).astype(np.float32)
    # Neighbouring floats have none between them.
    threshold = np.where(middle > lower, middle, upper)
    return float(threshold[np.abs(threshold - 0.5).argmin()])
