"""Exact thresholds against every cut there is, counted one by one."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, matthews_corrcoef

from faceattr_lightning.metrics.thresholds import best_thresholds

SCORES = {
    "accuracy": accuracy_score,
    "balanced_accuracy": balanced_accuracy_score,
    "f1": lambda truth, predicted: f1_score(truth, predicted, zero_division=0),
    "mcc": matthews_corrcoef,
    "youden": lambda truth, predicted: 2 * balanced_accuracy_score(truth, predicted) - 1,
}


def case(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A small split with ties, missing labels, saturated and constant scores."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 25))
    logits = rng.normal(size=(count, 6)) * rng.choice([0.5, 3, 60], size=6)
    logits[:, 1] = np.round(logits[:, 1])
    logits[:, 2] = 0.0
    labels = rng.integers(-1, 2, size=(count, 6))
    labels[:, 3] = np.where(labels[:, 3] < 0, 0, labels[:, 3])
    return torch.from_numpy(logits).float().double().sigmoid(), torch.from_numpy(labels).to(torch.int8)


@pytest.mark.parametrize("metric", SCORES)
@pytest.mark.parametrize("seed", range(12))
def test_no_threshold_is_better(metric: str, seed: int) -> None:
    probabilities, labels = case(seed)
    thresholds = best_thresholds(probabilities, labels, metric)
    assert thresholds.dtype == torch.float32
    for column, threshold in enumerate(thresholds.tolist()):
        known = (labels[:, column] >= 0).numpy()
        scores, truth = probabilities[known, column].numpy(), labels[known, column].numpy()
        if len(set(truth)) < 2:
            assert math.isnan(threshold)
            continue
        ends = np.array([0, 1], dtype=np.float32)
        near = scores.astype(np.float32)
        # A cut in float32 at, just below and just above each score.
        cuts = np.concatenate([near, np.nextafter(near, ends[0]), np.nextafter(near, ends[1]), ends])
        reached = [SCORES[metric](truth, scores >= float(cut)) for cut in cuts]
        found = SCORES[metric](truth, scores >= threshold)
        assert found == pytest.approx(max(reached), abs=1e-12)


def test_of_equally_good_ones_the_nearest_to_a_half() -> None:
    probabilities = torch.tensor([[0.1, 0.7], [0.2, 0.8], [0.6, 0.9], [0.9, 0.95]], dtype=torch.float64)
    labels = torch.tensor([[0, 0], [0, 0], [1, 1], [1, 1]], dtype=torch.int8)
    # Halfway between the neighbours 0.2 and 0.6, and 0.8 and 0.9.
    assert best_thresholds(probabilities, labels, "accuracy").tolist() == pytest.approx([0.4, 0.85])
    # Accuracy 3/4 below 0.3 and above 0.7: 0.15 and 0.8 are as good.
    probabilities = torch.tensor([[0.1], [0.2], [0.7], [0.9]], dtype=torch.float64)
    labels = torch.tensor([[0], [1], [0], [1]], dtype=torch.int8)
    assert best_thresholds(probabilities, labels, "accuracy").tolist() == pytest.approx([0.8])


def test_neighbouring_floats_are_parted() -> None:
    low = np.float32(0.7)
    scores = [float(low), float(np.nextafter(low, np.float32(1)))]
    probabilities = torch.tensor(scores, dtype=torch.float64)[:, None]
    labels = torch.tensor([[0], [1]], dtype=torch.int8)
    threshold = best_thresholds(probabilities, labels, "accuracy").double()
    assert (probabilities >= threshold).flatten().tolist() == [False, True]


def test_targets() -> None:
    probabilities = torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9], dtype=torch.float64)[:, None]
    labels = torch.tensor([0, 1, 0, 1, 1], dtype=torch.int8)[:, None]
    # 0.7 and 0.9 alone are all positive; with 0.5 and 0.3, three of four.
    assert best_thresholds(probabilities, labels, "precision", 0.9).item() == pytest.approx(0.6)
    assert best_thresholds(probabilities, labels, "precision", 0.75).item() == pytest.approx(0.2)
    assert best_thresholds(probabilities, labels, "false_positive_rate", 0.0).item() == pytest.approx(0.6)
    assert best_thresholds(probabilities, labels, "false_positive_rate", 0.5).item() == pytest.approx(0.2)


@pytest.mark.parametrize("metric", ["accuracy", "f1", "mcc", "balanced_accuracy"])
@pytest.mark.parametrize("seed", range(4))
def test_another_prevalence_is_as_if_there_were_more_of_a_class(metric: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    column = torch.from_numpy(np.round(rng.random((19, 1)), 1))
    labels = torch.from_numpy(np.append(rng.integers(0, 2, 17), [0, 1])).to(torch.int8)[:, None]
    positives, negatives = int((labels == 1).sum()), int((labels == 0).sum())
    # Each positive three times.
    share = 3 * positives / (3 * positives + negatives)
    shifted = best_thresholds(column, labels, metric, prevalence=torch.tensor([share], dtype=torch.float64))
    extra = labels[:, 0] == 1
    repeated = best_thresholds(
        torch.cat([column, column[extra], column[extra]]), torch.cat([labels, labels[extra], labels[extra]]), metric
    )
    assert shifted.item() == pytest.approx(repeated.item(), abs=1e-7)
