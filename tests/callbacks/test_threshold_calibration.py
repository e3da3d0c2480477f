"""DMM-CNN's thresholds against a computation by hand."""

import logging
import math
from typing import Any

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


def test_temperatures_come_before_thresholds() -> None:
    generator = torch.Generator().manual_seed(2)
    logits = 4 * torch.randn(2000, 2, generator=generator)
    labels = (torch.rand(2000, 2, generator=generator) < (logits / 4).sigmoid()).to(torch.int8)
    labels[:, 1] = 1
    raw = Predictions(logits, labels, torch.arange(2000), {})
    plain, scaled = (OptimalCalibrator(2, metric="f1", temperature=switch) for switch in (False, True))
    for calibrator in (plain, scaled):
        calibrator.calibrate(raw, ["a", "b"])
    assert plain.temperatures.tolist() == [1, 1]
    assert float(scaled.temperatures[0]) == pytest.approx(4, rel=0.15) and float(scaled.temperatures[1]) == 1
    answers = [
        raw.scaled(one.temperatures).probabilities[:, 0] >= one.thresholds[0].double() for one in (plain, scaled)
    ]
    assert torch.equal(*answers) and scaled.thresholds[0] != plain.thresholds[0]


def test_a_target_that_nothing_keeps_leaves_what_is_certain() -> None:
    predictions = predictions_of([[0.2], [0.6], [0.9]], [[1], [1], [0]])
    calibrator = OptimalCalibrator(1, metric="precision", target=0.95)
    calibrator.calibrate(predictions, ["a"])
    assert calibrator.thresholds.tolist() == [1.0]


def test_prevalence_of_training_and_by_name() -> None:
    generator = torch.Generator().manual_seed(3)
    labels = (torch.rand(4000, 2, generator=generator) < 0.5).to(torch.int8)
    logits = torch.randn(4000, 2, generator=generator) + 2 * labels - 1
    predictions = Predictions(logits, labels, torch.arange(4000), {})
    train = OptimalCalibrator(2, metric="accuracy", prevalence="train")
    train.calibrate(predictions, ["a", "b"], torch.tensor([0.1, torch.nan]))
    named = OptimalCalibrator(2, metric="accuracy", prevalence={"a": 0.1})
    named.calibrate(predictions, ["a", "b"])
    assert torch.equal(train.thresholds, named.thresholds)
    # Bayes' rule moves the log-odds of a half by those of the prevalence: the logit is 2 x, the threshold of it log 9.
    assert float(train.thresholds[0].logit()) == pytest.approx(math.log(9) / 2, abs=0.25)
    assert float(train.thresholds[1]) == pytest.approx(0.5, abs=0.07)
    with pytest.raises(ConfigError, match=r"calibration\.prevalence: 'c' is not among"):
        OptimalCalibrator(2, prevalence={"c": 0.1}).check(["a", "b"])


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"metric": "precision"}, "target"),
        ({"metric": "f1", "target": 0.9}, "target"),
        ({"metric": "false_positive_rate", "target": 1.5}, "target"),
        ({"prevalence": {"a": 1.0}}, "prevalence.a"),
    ],
)
def test_optimal_refuses(options: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError, match=f"calibration.{key}"):
        OptimalCalibrator(2, **options)
