"""Intervals of differences against textbook formulas, and how often runs of one method are called different."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from faceattr_lightning.metrics.bootstrap import Draws
from faceattr_lightning.metrics.comparison import Comparison, Pairing, simultaneous


def accuracies(right: np.ndarray, draws: Draws) -> np.ndarray:
    """Resampled share of right answers, (S, R + 1), of bool (S, N)."""
    counts = draws.sums(np.ones(right.shape[1], dtype=np.float32))
    return np.stack([draws.sums(row.astype(np.float32)) / counts for row in right])


def test_one_seed_each_is_the_paired_test() -> None:
    rng = np.random.default_rng(0)
    right = rng.random((2, 900)) < [[0.8], [0.85]]
    draws = Draws.of(np.full(900, -1), replicates=3000)
    found = Comparison([accuracies(right[:1], draws), accuracies(right[1:], draws)]).difference(1, 0)
    difference = right[1].astype(float) - right[0]
    standard_error = difference.std(ddof=1) / math.sqrt(900)
    assert found.value == pytest.approx(difference.mean())
    assert found.high - found.value == pytest.approx(1.96 * standard_error, rel=0.06)


def test_seeds_alone_are_the_pooled_t_test() -> None:
    first, second, third = np.array([0.80, 0.82, 0.81]), np.array([0.84, 0.83, 0.88]), np.array([0.7, 0.71])
    # No image moves a figure: every resample is the split.
    values = [np.repeat(entry[:, None], 6, axis=1) for entry in (first, second, third)]
    found = Comparison(values).difference(1, 0)
    pooled = sum(((entry - entry.mean()) ** 2).sum() for entry in (first, second, third)) / 5
    half = stats.t.ppf(0.975, 5) * math.sqrt(pooled * (1 / 3 + 1 / 3))
    assert (found.low, found.high) == pytest.approx((0.04 - half, 0.04 + half))
    alone = Comparison(values).of(2)
    assert float(alone.high - alone.value) == pytest.approx(stats.t.ppf(0.975, 5) * math.sqrt(pooled / 2))


def test_the_same_seeds_are_randomised_blocks() -> None:
    # The seed moves both alike: paired, the difference is exact to 0.005, unpaired it drowns.
    first, second = np.array([0.70, 0.80, 0.90]), np.array([0.745, 0.85, 0.955])
    values = [np.repeat(entry[:, None], 6, axis=1) for entry in (first, second)]
    found = Comparison(values, "seeds").difference(1, 0)
    by_hand = stats.ttest_rel(second, first).confidence_interval()
    assert (found.low, found.high) == pytest.approx((by_hand.low, by_hand.high))
    assert Comparison(values).difference(1, 0).verdict("accuracy") == "undecided"


def test_the_same_models_are_paired_each_difference_by_itself() -> None:
    model = np.array([0.70, 0.80, 0.90])
    entries = [model, model + 0.01, model + np.array([0.0, 0.1, 0.05])]
    values = [np.repeat(entry[:, None], 6, axis=1) for entry in entries]
    comparison = Comparison(values, "models")
    found = comparison.difference(1, 0)
    assert (found.low, found.high) == pytest.approx((0.01, 0.01))
    by_hand = stats.ttest_rel(entries[2], entries[0]).confidence_interval()
    found = comparison.difference(2, 0)
    assert (found.low, found.high) == pytest.approx((by_hand.low, by_hand.high))
    alone = comparison.of(0)
    by_hand = stats.ttest_1samp(model, 0).confidence_interval()
    assert (alone.low, alone.high) == pytest.approx((by_hand.low, by_hand.high))


def test_verdicts() -> None:
    first, second = (np.stack([np.full((5, 2), value), np.full((5, 2), value + 0.001)]) for value in (0.5, 0.6))
    comparison = Comparison([first, second])
    assert comparison.difference(1, 0).verdict("accuracy").tolist() == ["better", "better"]
    assert comparison.difference(1, 0).verdict("ece").tolist() == ["worse", "worse"]
    assert comparison.difference(0, 1).verdict("ece").tolist() == ["better", "better"]
    assert comparison.difference(0, 0).verdict("ece").tolist() == ["undecided", "undecided"]


def test_simultaneous_level() -> None:
    assert simultaneous(0.95, 40) == pytest.approx(1 - 0.05 / 40)


@pytest.mark.parametrize(
    ("seeds", "pairing"), [(1, "none"), (2, "none"), (3, "none"), (3, "seeds"), (2, "models"), (3, "models")]
)
def test_runs_of_one_method_are_seldom_called_different(seeds: int, pairing: Pairing) -> None:
    """A/A: 400 comparisons of two sets of runs that differ in nothing but luck, on 80 people with 5 images.

    A seed makes a model better or worse as a whole where there are several; a single one's models are equally good.
    """
    rng = np.random.default_rng(1)
    trials, decided = 400, 0
    for trial in range(trials):
        identity = np.repeat(np.arange(80), 5)
        ease = rng.normal(1.2, 1.0, 80)[identity]
        luck = rng.normal(0, 0.25 if seeds > 1 else 0, (2 * seeds, 1))
        right = rng.normal(size=(2 * seeds, 400)) < ease + luck
        draws = Draws.of(identity, replicates=200, seed=trial)
        values = accuracies(right, draws)
        found = Comparison([values[:seeds], values[seeds:]], pairing).difference(1, 0)
        decided += str(found.verdict("accuracy")) != "undecided"
    # 5 % with a standard error of 1.1 %; with several seeds perhaps less.
    assert 0.01 <= decided / trials <= 0.08, decided / trials


def test_a_difference_is_found() -> None:
    rng = np.random.default_rng(2)
    draws = Draws.of(np.full(2000, -1), replicates=200)
    right = rng.random((6, 2000)) < np.array([0.80] * 3 + [0.84] * 3)[:, None]
    values = accuracies(right, draws)
    assert Comparison([values[:3], values[3:]]).difference(1, 0).verdict("accuracy") == "better"
