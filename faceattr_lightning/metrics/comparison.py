"""What can be said of the difference between models that were tested on the same images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Array = NDArray[np.float64]

LOWER_IS_BETTER = ("ece",)


@dataclass(frozen=True)
class Estimate:
    """A figure with its confidence interval, float64 (...) each; NaN where not defined.

    Attributes:
        value: the figure, a mean over the seeds.
        low: the interval's lower end.
        high: its upper end.
    """

    value: Array
    low: Array
    high: Array

    def verdict(self, metric: str) -> NDArray[np.str_]:
        """Return of differences ``better``, ``worse`` or, where the interval holds 0, ``undecided``."""
        sign = -1 if metric in LOWER_IS_BETTER else 1
        above, below = self.low > 0, self.high < 0
        better, worse = (above, below) if sign > 0 else (below, above)
        return np.where(better, "better", np.where(worse, "worse", "undecided"))


Pairing = Literal["none", "seeds", "models"]


class Comparison:
    """Entries, each a method with S >= 1 runs that differ in their seed, on one metric.

    Two things move a figure: the test images, and the seed of the training. The first is measured by resampling images,
    the same for all entries, and gives a normal interval; the second by the variance between seeds, and gives a t
    interval. The squares of their halves are added (ours: no smaller than Welch's and Satterthwaite's interval, which
    calls runs of one method different too often where two or three seeds happen to lie close together; see the tests).
    Without a second seed in any entry there is only the first: what is compared then are these trained models, not the
    methods.

    The variance between seeds is taken to be the same for all entries, and so pooled over them, as in an analysis of
    variance. Where all entries have the same seeds, a difference is one of runs of the same seed, and what a seed does
    to all entries alike does not count in it (randomised blocks). Where a seed even stands for the same trained model
    in all entries, which differ in what was made of it, the variance is that of the entries' own figures and
    differences: nothing makes it the same for all.

    Args:
        values: of each entry float (S, R + 1, ...): for each seed the metric on the split as it is, then on R
            resamples.
        pairing: ``none``, or whether each entry has the same ``seeds`` or ``models``, in the same order.
    """

    def __init__(self, values: Sequence[Array], pairing: Pairing = "none") -> None:
        self._values, self._pairing = values, pairing
        deviations = [entry[:, 0] - entry[:, 0].mean(axis=0) for entry in values]
        seeds = [len(entry) for entry in values]
        self._within = _Variance.of(np.concatenate(deviations), sum(seeds) - len(values))
        self._between = self._within
        blocks = (len(values) - 1) * (seeds[0] - 1)
        if pairing == "seeds" and blocks:
            table = np.stack(deviations)
            # What is left without the seed's own effect.
            residuals = (table - table.mean(axis=0)).reshape(-1, *table.shape[2:])
            self._between = _Variance.of(residuals, blocks)

    def of(self, entry: int, level: float = 0.95) -> Estimate:
        """Return an entry's figure."""
        values = self._values[entry]
        within = _own_variance(values) if self._pairing == "models" else self._within
        return _estimate(values.mean(axis=0), within, 1 / len(values), level)

    def difference(self, entry: int, reference: int, level: float = 0.95) -> Estimate:
        """Return an entry's figure less the reference's, on the same images."""
        first, second = self._values[entry], self._values[reference]
        difference = first.mean(axis=0) - second.mean(axis=0)
        if self._pairing == "models":
            return _estimate(difference, _own_variance(first - second), 1 / len(first), level)
        return _estimate(difference, self._between, 1 / len(first) + 1 / len(second), level)


def _own_variance(values: Array) -> _Variance:
    observed = values[:, 0]
    return _Variance.of(observed - observed.mean(axis=0), len(values) - 1)


@dataclass(frozen=True)
class _Variance:
    """A variance between seeds, float64 (...), and its degrees of freedom; 0 and 0 where there is one seed each."""

    variance: Array
    freedom: int

    @classmethod
    def of(cls, residuals: Array, freedom: int) -> _Variance:
        squares = (residuals**2).sum(axis=0)
        return cls(squares / freedom if freedom else np.zeros_like(squares), freedom)


def _estimate(values: Array, between_seeds: _Variance, seeds: float, level: float) -> Estimate:
    of_images = values[1:].var(axis=0, ddof=1) if len(values) > 2 else np.full_like(values[0], np.nan)
    half = stats.norm.ppf((1 + level) / 2) ** 2 * of_images
    if between_seeds.freedom:
        half = half + stats.t.ppf((1 + level) / 2, between_seeds.freedom) ** 2 * between_seeds.variance * seeds
    half = np.sqrt(half)
    return Estimate(values[0], values[0] - half, values[0] + half)


def simultaneous(level: float, count: int) -> float:
    """Return the level of each of ``count`` intervals with which all of them together have ``level`` (Bonferroni)."""
    return 1 - (1 - level) / max(1, count)
