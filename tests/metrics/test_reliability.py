"""Bins of reliability diagrams against scikit-learn and against loops."""

import math

import numpy as np
import pytest
import torch
from sklearn.calibration import calibration_curve
from torch import Tensor

from faceattr_lightning.metrics.reliability import POOLED, reliability_bins, reliability_rows


def random_scores(samples: int = 500, attributes: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    probabilities = torch.randn(samples, attributes, generator=generator).double().sigmoid()
    labels = (torch.rand(samples, attributes, generator=generator) < probabilities).to(torch.int8)
    labels[torch.rand(samples, attributes, generator=generator) < 0.3] = -1
    return probabilities, labels


def test_against_scikit_learn() -> None:
    probabilities, labels = random_scores()
    bins = reliability_bins(probabilities, labels)
    assert bins.count.shape == (5, 15)
    for column in range(5):
        known = labels[:, column] >= 0
        share, mean = calibration_curve(labels[known, column], probabilities[known, column], n_bins=15)
        filled = bins.count[column] > 0
        assert int(bins.count[column].sum()) == int(known.sum())
        np.testing.assert_allclose(bins.positive_share[column][filled], share)
        np.testing.assert_allclose(bins.mean_probability[column][filled], mean)
        assert bins.positive_share[column][~filled].isnan().all()


def test_the_error_is_that_of_loops() -> None:
    probabilities, labels = random_scores()
    pairs = [
        [(float(p), int(y)) for p, y in zip(scores, truth, strict=True) if y >= 0]
        for scores, truth in zip(probabilities.T, labels.T, strict=True)
    ]

    def error(samples: list[tuple[float, int]]) -> float:
        total = 0.0
        for b in range(15):
            inside = [(p, y) for p, y in samples if b / 15 <= p < (b + 1) / 15]
            if inside:
                mean = sum(p for p, _ in inside) / len(inside)
                total += len(inside) / len(samples) * abs(mean - sum(y for _, y in inside) / len(inside))
        return total

    bins = reliability_bins(probabilities, labels)
    assert bins.calibration_error().tolist() == pytest.approx([error(samples) for samples in pairs])
    pooled = bins.pooled()
    assert pooled.count.shape == (1, 15)
    assert pooled.calibration_error().tolist() == pytest.approx(
        [error([pair for samples in pairs for pair in samples])]
    )


def test_the_ends_of_a_bin() -> None:
    # The lower end belongs to the bin, and 1 to the last one.
    probabilities = torch.tensor([[0.0], [0.25], [0.5], [0.75], [1.0]], dtype=torch.float64)
    bins = reliability_bins(probabilities, torch.tensor([[0], [1], [0], [1], [1]], dtype=torch.int8), bins=4)
    assert bins.count.tolist() == [[1, 1, 1, 2]]
    assert bins.positives.tolist() == [[0, 1, 0, 2]]


def test_an_attribute_without_a_label_is_not_defined() -> None:
    bins = reliability_bins(torch.tensor([[0.3, 0.4]]), torch.tensor([[1, -1]], dtype=torch.int8))
    error = bins.calibration_error()
    assert float(error[0]) == pytest.approx(0.7) and error[1].isnan()
    # What is not labelled is nothing in the pool.
    assert float(bins.pooled().calibration_error()) == pytest.approx(0.7)


def test_rows() -> None:
    probabilities = torch.tensor([[0.1, 0.9], [0.2, 0.9]], dtype=torch.float64)
    bins = reliability_bins(probabilities, torch.tensor([[0, 1], [1, -1]], dtype=torch.int8), bins=2)
    rows = reliability_rows(bins, ["Bald", "Young"])
    assert [(row["attribute"], row["bin"], row["count"]) for row in rows] == [
        (POOLED, 0, 2),
        (POOLED, 1, 1),
        ("Bald", 0, 2),
        ("Bald", 1, 0),
        ("Young", 0, 0),
        ("Young", 1, 1),
    ]
    assert (rows[0]["from"], rows[0]["to"]) == (0, 0.5) and rows[2]["positive_share"] == 0.5
    assert rows[2]["mean_probability"] == pytest.approx(0.15) and math.isnan(rows[3]["positive_share"])
