"""Metrics against torchmetrics, one attribute at a time, over the labelled samples alone."""

import math

import pytest
import torch
from torchmetrics.functional.classification import (
    binary_accuracy,
    binary_average_precision,
    binary_calibration_error,
    binary_f1_score,
    binary_recall,
    binary_specificity,
)

from faceattr_lightning.metrics.attribute_metrics import METRICS, attribute_metrics, average_precision, mean_metrics
from faceattr_lightning.metrics.predictions import Predictions, PredictionStore


def random_predictions(samples: int = 400, attributes: int = 6, seed: int = 0) -> Predictions:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(samples, attributes, generator=generator)
    logits[:, 1] = (logits[:, 1] * 2).round() / 2  # many ties
    chance = torch.linspace(0.05, 0.9, attributes)
    labels = (torch.rand(samples, attributes, generator=generator) < chance).to(torch.int8)
    labels[torch.rand(samples, attributes, generator=generator) < 0.2] = -1
    return Predictions(logits, labels, torch.arange(samples), torch.full((samples,), torch.nan))


def test_against_torchmetrics() -> None:
    predictions = random_predictions()
    thresholds = torch.tensor([0.2, 0.3, 0.4, 0.5, 0.6, 0.7])
    prevalence = torch.tensor([0.1, 0.9, 0.1, 0.9, 0.1, 0.9])
    metrics = attribute_metrics(predictions, thresholds, prevalence)
    assert tuple(metrics) == METRICS
    for column, threshold in enumerate(thresholds.tolist()):
        known = predictions.labels[:, column] >= 0
        scores = predictions.probabilities[known, column]
        truth = predictions.labels[known, column].int()
        # torchmetrics counts a score above the threshold, not one at it; no score lies at a threshold here.
        assert not (scores == threshold).any()
        for name, level in (("", threshold), ("_at_half", 0.5)):
            hard = (scores >= level).int()
            expected = {
                "accuracy": binary_accuracy(hard, truth),
                "balanced_accuracy": (binary_recall(hard, truth) + binary_specificity(hard, truth)) / 2,
                "f1": binary_f1_score(hard, truth),
            }
            for metric, value in expected.items():
                assert float(metrics[metric + name][column]) == pytest.approx(float(value), abs=1e-6), (metric, column)
        positive = float(truth.double().mean())
        constant = positive if prevalence[column] > 0.5 else 1 - positive
        assert metrics["support"][column] == known.sum()
        assert float(metrics["prevalence"][column]) == pytest.approx(positive)
        assert float(metrics["majority_accuracy"][column]) == pytest.approx(constant)
        assert float(metrics["gain"][column]) == pytest.approx(float(metrics["accuracy"][column]) - constant)
        assert float(metrics["average_precision"][column]) == pytest.approx(
            float(binary_average_precision(scores, truth)), abs=1e-6
        )
        # Theirs is the calibration of confidence in the winning class; on the scores of one side of 0.5 both agree.
        upper = scores > 0.5
        alone = Predictions(
            predictions.logits[known][upper][:, [column]],
            truth[upper][:, None].to(torch.int8),
            torch.arange(int(upper.sum())),
            scores,
        )
        ours = attribute_metrics(alone, torch.tensor([0.5]), torch.tensor([0.5]))["ece"]
        theirs = binary_calibration_error(scores[upper].float(), truth[upper], n_bins=15, norm="l1")
        if upper.any():
            assert float(ours[0]) == pytest.approx(float(theirs), abs=2e-3)


def test_ece_by_hand() -> None:
    # Two bins of fifteen: 0.2 (three samples, one positive) and 0.9 (two samples, two positives).
    probabilities = torch.tensor([0.21, 0.22, 0.23, 0.92, 0.92], dtype=torch.float64)
    labels = torch.tensor([0, 0, 1, 1, 1], dtype=torch.int8)[:, None]
    predictions = Predictions(torch.logit(probabilities)[:, None].float(), labels, torch.arange(5), probabilities)
    expected = 3 / 5 * abs(0.22 - 1 / 3) + 2 / 5 * abs(0.92 - 1)
    assert float(attribute_metrics(predictions, torch.tensor([0.5]), torch.tensor([0.4]))["ece"]) == pytest.approx(
        expected, abs=1e-6
    )


def test_what_is_not_defined_is_nan_and_left_out_of_the_mean() -> None:
    labels = torch.tensor([[0, 1, -1, 1], [0, 1, -1, 0]], dtype=torch.int8)
    logits = torch.tensor([[-1.0, 2.0, 3.0, 2.0], [-2.0, 1.0, 3.0, -2.0]])
    predictions = Predictions(logits, labels, torch.arange(2), torch.zeros(2))
    metrics = attribute_metrics(predictions, torch.full((4,), 0.5), torch.tensor([0.1, 0.9, math.nan, 0.2]))
    assert metrics["balanced_accuracy"].isnan().tolist() == [True, True, True, False]
    assert metrics["f1"].isnan().tolist() == [True, False, True, False]
    assert metrics["average_precision"].isnan().tolist() == [True, False, True, False]
    assert metrics["accuracy"].isnan().tolist() == [False, False, True, False]
    assert metrics["ece"].isnan().tolist() == [False, False, True, False]
    assert metrics["support"].tolist() == [2, 2, 0, 2]
    assert mean_metrics(metrics)["balanced_accuracy"] == 1.0


def test_the_constant_answer_is_the_training_majority() -> None:
    # Positive in most of this split, but in few training images: who always answers "absent" is mostly wrong.
    labels = torch.tensor([[1], [1], [1], [0]], dtype=torch.int8)
    predictions = Predictions(torch.zeros(4, 1), labels, torch.arange(4), torch.zeros(4))
    metrics = attribute_metrics(predictions, torch.tensor([0.5]), torch.tensor([0.2]))
    assert float(metrics["majority_accuracy"]) == 0.25


def test_average_precision_ignores_order_within_ties() -> None:
    scores = torch.tensor([0.5, 0.5, 0.5, 0.1], dtype=torch.float64)[:, None]
    for labels in ([1, 0, 0, 1], [0, 0, 1, 1], [0, 1, 0, 1]):
        # At the tie precision is 1/3 at recall 1/2; at the end 2/4 at recall 1.
        assert float(average_precision(scores, torch.tensor(labels, dtype=torch.int8)[:, None])) == pytest.approx(
            0.5 / 3 + 0.5 / 2
        )


def test_losses_by_hand() -> None:
    predictions = random_predictions(50, 3)
    losses = predictions.attribute_losses()
    for column in range(3):
        known = predictions.labels[:, column] >= 0
        p, y = predictions.probabilities[known, column], predictions.labels[known, column].double()
        assert float(losses[column]) == pytest.approx(float(-(y * p.log() + (1 - y) * (1 - p).log()).mean()))


def test_the_store_sorts_by_row_and_keeps_one_sample_of_one_attribute() -> None:
    store = PredictionStore()
    for logits, labels, index, error in (([2.0, 1.0], [1, 0], [7, 3], [torch.nan] * 2), ([5.0], [-1], [5], [0.25])):
        store.update(
            torch.tensor(logits)[:, None],
            torch.tensor(labels, dtype=torch.int8)[:, None],
            torch.tensor(index),
            {"error": torch.tensor(error), "unknown": torch.full((len(index),), torch.nan)},
        )
    gathered = store.gather()
    assert gathered.index.tolist() == [3, 5, 7]
    assert gathered.logits.tolist() == [[1.0], [5.0], [2.0]]
    assert gathered.labels.tolist() == [[0], [-1], [1]]
    assert gathered.measures["error"][1] == 0.25 and gathered.measures["error"][0].isnan()
    assert gathered.measure_means() == {"error": 0.25}
    part = gathered.of(torch.tensor([False, True, True]))
    assert part.index.tolist() == [5, 7] and part.measures["error"][0] == 0.25
    single = PredictionStore()
    single.update(torch.tensor([[2.0]]), torch.tensor([[1]], dtype=torch.int8), torch.tensor([0]))
    assert single.gather().logits.shape == (1, 1) and single.gather().measures == {}
