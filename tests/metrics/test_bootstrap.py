"""Resampled metrics against those of split copies, and how often intervals hold the truth."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from faceattr_lightning.metrics.attribute_metrics import attribute_metrics
from faceattr_lightning.metrics.bootstrap import METRICS, Draws, interval, mean_over_attributes, resampled_metrics
from faceattr_lightning.metrics.predictions import Predictions


def split(count: int, seed: int, people: int | None = None) -> tuple[Predictions, np.ndarray]:
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(count, 3)) * 2
    labels = (rng.random((count, 3)) < 1 / (1 + np.exp(-logits + 0.5))).astype(np.int8)
    labels[rng.random((count, 3)) < 0.1] = -1
    identity = rng.integers(0, people, count) if people else np.full(count, -1)
    return Predictions(torch.from_numpy(logits).float(), torch.from_numpy(labels), torch.arange(count), {}), identity


THRESHOLDS, PREVALENCE = torch.tensor([0.4, 0.5, 0.7]), torch.tensor([0.3, 0.6, 0.5])


@pytest.mark.parametrize("people", [None, 12])
def test_each_resample_is_the_metric_of_the_split_that_it_stands_for(people: int | None) -> None:
    predictions, identity = split(80, 0, people)
    draws = Draws.of(identity, replicates=5, seed=1)
    found = resampled_metrics(predictions, THRESHOLDS, PREVALENCE, draws)
    assert tuple(found) == METRICS
    for replicate in range(6):
        times = draws.weights[replicate][draws.cluster].astype(int)
        copied = predictions.of(torch.from_numpy(np.repeat(np.arange(80), times)))
        expected = attribute_metrics(copied, THRESHOLDS, PREVALENCE)
        for name in METRICS:
            torch.testing.assert_close(
                torch.from_numpy(found[name][replicate]), expected[name], rtol=1e-5, atol=1e-6, equal_nan=True
            )


def test_people_are_drawn_as_a_whole() -> None:
    identity = np.array([7, 7, -1, 3, -1, 7])
    draws = Draws.of(identity, replicates=50)
    assert len(set(draws.cluster[[0, 1, 5]])) == 1 and len(set(draws.cluster)) == 4
    assert (draws.weights.sum(axis=1) == 4).all() and (draws.weights[0] == 1).all()


def test_what_is_not_defined_has_no_interval() -> None:
    predictions, identity = split(30, 0)
    labels = predictions.labels.clone()
    labels[:, 0], labels[:, 1] = -1, 0
    predictions = Predictions(predictions.logits, labels, predictions.index, {})
    found = resampled_metrics(predictions, THRESHOLDS, PREVALENCE, Draws.of(identity, replicates=20))
    low, high = interval("balanced_accuracy", found["balanced_accuracy"])
    assert low[:2].isnan().all() and high[:2].isnan().all() and low[2] < high[2]
    low, _ = interval("accuracy", found["accuracy"])
    assert low.isnan().tolist() == [True, False, False]
    assert np.isfinite(mean_over_attributes(found["balanced_accuracy"])).all()


def simulate(rng: np.random.Generator, people: int, images: int) -> tuple[Predictions, np.ndarray]:
    """People whose images share luck: a person's answers are right with a probability of the person's own."""
    identity = np.repeat(np.arange(people), images)
    skill = rng.beta(4, 1, people)[identity]
    labels = (rng.random((len(identity), 1)) < 0.4).astype(np.int8)
    right = rng.random((len(identity), 1)) < skill[:, None]
    stated = rng.uniform(0.55, 0.95, (len(identity), 1))
    probability = np.where(right == (labels == 1), stated, 1 - stated)
    logits = torch.from_numpy(np.log(probability / (1 - probability))).float()
    return Predictions(logits, torch.from_numpy(labels), torch.arange(len(identity)), {}), identity


@pytest.mark.parametrize(
    ("metric", "people", "least"),
    [
        ("accuracy", 60, 0.84),
        ("balanced_accuracy", 60, 0.84),
        ("gain", 60, 0.84),
        ("f1", 60, 0.84),
        # Sixty are too few for it: 82 % instead of 90 %; the percentile interval would have 63 %.
        ("ece", 60, 0.78),
        pytest.param("ece", 400, 0.83, marks=pytest.mark.slow),
    ],
)
def test_intervals_hold_the_truth_as_often_as_they_say(metric: str, people: int, least: float) -> None:
    """Two hundred splits of some people with 8 images each; the truth is that of a split of 60,000 people."""
    half, prevalence = torch.tensor([0.5]), torch.tensor([0.4])
    whole, identity = simulate(np.random.default_rng(0), 60_000, 8)
    truth = float(attribute_metrics(whole, half, prevalence)[metric])
    held, held_by_image = 0, 0
    trials = 200
    for trial in range(trials):
        predictions, identity = simulate(np.random.default_rng(1 + trial), people, 8)
        for by_person in (True, False):
            draws = Draws.of(identity if by_person else np.full(len(identity), -1), replicates=400, seed=trial)
            low, high = interval(metric, resampled_metrics(predictions, half, prevalence, draws)[metric], 0.9)
            if by_person:
                held += float(low) <= truth <= float(high)
            else:
                held_by_image += float(low) <= truth <= float(high)
    # 90 % with a standard error of 2.1 %.
    assert least <= held / trials <= 0.96, (held / trials, held_by_image / trials)
    if metric == "accuracy":
        # Images of one person taken for independent: too sure.
        assert held_by_image < held
