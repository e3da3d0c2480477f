"""What can be said of the difference between models that were tested on the same images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Array = NDArray[np.float64]

LOWER_IS_BETTER = ("ece",)

_LEAST_FREEDOM = 4
"""With fewer degrees of freedom, runs of the same method are called different too often; see the tests."""


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


class Comparison:
    """Entries, each a method with S >= 1 runs that differ in their seed, on one metric.

    Two things move a figure: the test images, and the seed of the training. The first is measured by resampling images,
    the same for all entries; the second by the variance between seeds, which is taken to be the same for all entries
    and so pooled over them, as in an analysis of variance. Where all entries have the same seeds, a difference is one
    of runs of the same seed, and what a seed does to all entries alike does not count in it (randomised blocks, from
    three entries of three seeds, or two of five, on). Both variances together, with the degrees of freedom of Welch and
    Satterthwaite, give a t interval. Without a second seed in any entry there is only the first: what is compared then
    are these trained models, not the methods.

    Args:
        values: of each entry float (S, R + 1, ...): for each seed the metric on the split as it is, then on R
            resamples.
        paired: whether each entry has the same seeds, in the same order.
    """

    def __init__(self, values: Sequence[Array], paired: bool = False) -> None:
        self._means = [entry.mean(axis=0) for entry in values]
        self._seeds = [len(entry) for entry in values]
        observed = [entry[:, 0] for entry in values]
        deviations = [entry - entry.mean(axis=0) for entry in observed]
        self._within = _Variance.of(np.concatenate(deviations), sum(self._seeds) - len(values))
        self._between = self._within
        blocks = (len(values) - 1) * (self._seeds[0] - 1)
        if paired and blocks >= _LEAST_FREEDOM:
            table = np.stack(deviations)
            # What is left without the seed's own effect.
            residuals = (table - table.mean(axis=0)).reshape(-1, *table.shape[2:])
            self._between = _Variance.of(residuals, blocks)

    def of(self, entry: int, level: float = 0.95) -> Estimate:
        """Return an entry's figure."""
        return _estimate(self._means[entry], self._within, 1 / self._seeds[entry], level)

    def difference(self, entry: int, reference: int, level: float = 0.95) -> Estimate:
        """Return an entry's figure less the reference's, on the same images."""
        paired = self._means[entry] - self._means[reference]
        return _estimate(paired, self._between, 1 / self._seeds[entry] + 1 / self._seeds[reference], level)


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
    of_seeds = between_seeds.variance * seeds
    variance = of_images + of_seeds
    with np.errstate(divide="ignore", invalid="ignore"):
        freedom = np.where(of_seeds > 0, between_seeds.freedom * (variance / of_seeds) ** 2, np.inf)
    half = stats.t.ppf((1 + level) / 2, freedom) * np.sqrt(variance)
    return Estimate(values[0], values[0] - half, values[0] + half)


def simultaneous(level: float, count: int) -> float:
    """Return the level of each of ``count`` intervals with which all of them together have ``level`` (Bonferroni)."""
    return 1 - (1 - level) / max(1, count)
