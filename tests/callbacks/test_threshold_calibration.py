"""DMM-CNN's thresholds against a computation by hand."""

import logging

import pytest
import torch

from faceattr_lightning.callbacks.threshold_calibration import DMMCalibrator, OptimalCalibrator, ThresholdCalibrator
from faceattr_lightning.errors import ConfigError
from faceattr_lightning.metrics.predictions import Predictions


def predictions_of(probabilities: list[list[float]], labels: list[list[int]]) -> Predictions:
    logits = torch.logit(torch.tensor(probabilities, dtype=torch.float64)).float()
    return Predictions(
        logits, torch.tensor(labels, dtype=torch.int8), torch.arange(len(labels)), torch.zeros(len(labels))
    )


def test_one_step_by_hand_without_the_unlabelled() -> None:
    predictions = predictions_of(
        [[0.6, 0.2], [0.7, 0.3], [0.1, 0.4], [0.8, 0.9], [0.9, 0.1]],
        [[0, 1], [0, 1], [0, 0], [1, 0], [-1, -1]],
    )
    calibrator = DMMCalibrator(2, gamma=0.2)
    calibrator.calibrate(predictions, ["a", "b"])
    # a: two false positives of four; b: one false positive and two false negatives of four.
    assert calibrator.thresholds.tolist() == pytest.approx([0.5 + 0.2 * 2 / 4, 0.5 - 0.2 * 1 / 4])


def test_the_fixed_point_makes_positive_rates_equal() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = (torch.rand(4000, 3, generator=generator) < torch.tensor([0.1, 0.3, 0.8])).to(torch.int8)
    logits = torch.randn(4000, 3, generator=generator) + 1.5 * labels - 1
    predictions = Predictions(logits, labels, torch.arange(4000), torch.zeros(4000))
    calibrator = DMMCalibrator(3, gamma=0.2, iterations=500)
    calibrator.calibrate(predictions, ["a", "b", "c"])
    predicted = (predictions.probabilities >= calibrator.thresholds.double()).double().mean(dim=0)
    torch.testing.assert_close(predicted, labels.double().mean(dim=0), atol=2e-3, rtol=0)


def test_iterations_are_repeated_steps() -> None:
    predictions = predictions_of([[0.603], [0.557], [0.523], [0.9], [0.3]], [[0], [0], [1], [1], [0]])
    thrice, once = DMMCalibrator(1, gamma=0.05, iterations=3), DMMCalibrator(1, gamma=0.05)
    thrice.calibrate(predictions, ["a"])
    for _ in range(3):
        once.calibrate(predictions, ["a"])
    torch.testing.assert_close(thrice.thresholds, once.thresholds)


def test_thresholds_stay_between_bounds() -> None:
    predictions = predictions_of([[0.995, 0.001], [0.994, 0.002]] * 50 + [[0.999, 0.0005]], [[0, 1]] * 100 + [[1, 0]])
    calibrator = DMMCalibrator(2, gamma=1.0, iterations=10)
    calibrator.calibrate(predictions, ["a", "b"])
    assert calibrator.thresholds.tolist() == pytest.approx([0.99, 0.01])


def test_one_class_keeps_half_and_is_named(caplog: pytest.LogCaptureFixture) -> None:
    predictions = predictions_of([[0.6, 0.6, 0.6], [0.7, 0.7, 0.7]], [[0, 1, -1], [0, 0, -1]])
    calibrator = DMMCalibrator(3, gamma=0.1)
    with caplog.at_level(logging.WARNING):
        calibrator.calibrate(predictions, ["Bald", "Smiling", "Male"])
        calibrator.calibrate(predictions, ["Bald", "Smiling", "Male"])
    assert calibrator.thresholds[[0, 2]].tolist() == [0.5, 0.5] and calibrator.thresholds[1] > 0.5
    assert [record.getMessage() for record in caplog.records] == [
        "Thresholds stay at 0.5 for attributes with one class in validation: Bald, Male"
    ]


def test_fixed_stays_at_half() -> None:
    calibrator = ThresholdCalibrator(1)
    calibrator.calibrate(predictions_of([[0.9], [0.8]], [[0], [1]]), ["a"])
    assert calibrator.thresholds.tolist() == [0.5]


def test_bad_settings() -> None:
    with pytest.raises(ConfigError, match=r"calibration\.gamma[^$]*calibration\.iterations"):
        DMMCalibrator(1, gamma=-1, iterations=0)


def test_optimal_thresholds_and_how_far_few_positives_move_them() -> None:
    predictions = predictions_of([[0.1, 0.7], [0.2, 0.8], [0.3, 0.9], [0.4, 0.95]], [[0, 0], [1, 0], [1, 0], [1, 0]])
    calibrator = OptimalCalibrator(2, metric="accuracy")
    calibrator.calibrate(predictions, ["a", "b"])
    # b has one class, and keeps 0.5.
    assert calibrator.thresholds.tolist() == pytest.approx([0.15, 0.5])
    calibrator = OptimalCalibrator(2, metric="accuracy", shrink=3)
    calibrator.calibrate(predictions, ["a", "b"])
    assert calibrator.thresholds.tolist() == pytest.approx([0.5 + 3 / 6 * (0.15 - 0.5), 0.5])
    with pytest.raises(ConfigError) as caught:
        OptimalCalibrator(2, metric="recall", shrink=-1)  # type: ignore[arg-type]
    assert len(caught.value.problems) == 2
