"""Per-attribute decision thresholds, fitted on the validation split, kept with the weights."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Literal

import torch
from lightning import Trainer
from torch import Tensor

from faceattr_lightning.callbacks.fitted import FittedState
from faceattr_lightning.callbacks.stage import fitting
from faceattr_lightning.errors import ConfigError
from faceattr_lightning.metrics.predictions import Predictions
from faceattr_lightning.metrics.thresholds import OBJECTIVES, best_thresholds

if TYPE_CHECKING:
    from faceattr_lightning.models.module import AttributeModule

log = logging.getLogger(__name__)


class ThresholdCalibrator(FittedState):
    """Fixed thresholds of 0.5, and the base of every calibrator: a module (thresholds travel with the weights) and a
    callback.

    A calibrator overrides `fit`. It is called after each validation epoch of a training run, never in test. An
    attribute with fewer than two classes among its validation labels keeps its threshold and is named in a warning.

    Args:
        attributes: number of attributes A.
    """

    thresholds: Tensor
    """float32 (A,) in [0, 1]; a probability at or above it counts as present."""

    def __init__(self, attributes: int) -> None:
        super().__init__()
        self.register_buffer("thresholds", torch.full((attributes,), 0.5))
        self._warned = False

    def fit(self, predictions: Predictions) -> Tensor:
        """Return new thresholds, float (A,), for a validation split's predictions."""
        return self.thresholds

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: AttributeModule) -> None:  # type: ignore[override]
        if fitting(trainer):
            self.calibrate(pl_module.predictions.gather(), pl_module.attribute_names)
            self.remember()

    def calibrate(self, predictions: Predictions, attribute_names: list[str]) -> None:
        """Fit the thresholds of the attributes that have both classes; warn once of the others.

        Args:
            predictions: of the validation split, equal on every rank.
            attribute_names: A names.
        """
        fitted = self.fit(predictions).to(self.thresholds)
        one_class = single_class(predictions)
        self.thresholds.copy_(torch.where(one_class.to(self.thresholds.device), self.thresholds, fitted))
        if one_class.any() and not self._warned and type(self) is not ThresholdCalibrator:
            self._warned = True
            named = ", ".join(name for name, single in zip(attribute_names, one_class, strict=True) if single)
            log.warning("Thresholds stay at 0.5 for attributes with one class in validation: %s", named)


def single_class(predictions: Predictions) -> Tensor:
    """Return for which attributes the labels hold fewer than two classes, bool (A,)."""
    labels = predictions.labels
    return ~((labels == 1).any(dim=0) & (labels == 0).any(dim=0))


class DMMCalibrator(ThresholdCalibrator):
    """DMM-CNN's adaptive thresholds: they start at 0.5 and move after each validation epoch.

    ``tau_j <- clip(tau_j + gamma (FP_j - FN_j) / N_j, 0.01, 0.99)``, where N_j counts the labelled samples. Its fixed
    point makes the predicted and the actual positive rate equal. That thresholding is adaptive is the paper's; this
    rule is our reading of it. Equal rates are not the most right answers: balanced accuracy and F1 gain from it where
    positives are rare, accuracy often loses, on validation too; and where validation and test prevalence differ, a
    threshold tuned on validation need not help.

    Args:
        attributes: number of attributes A.
        gamma: step size, positive.
        iterations: how often the rule is applied per validation epoch, to the same predictions; more than one brings
            short runs nearer to the fixed point. Ours.

    Raises:
        ConfigError: a value out of its range.
    """

    def __init__(self, attributes: int, gamma: float = 1.0, iterations: int = 1) -> None:
        super().__init__(attributes)
        problems = [f"calibration.gamma: expected a positive number, found {gamma}."] if gamma <= 0 else []
        problems += [f"calibration.iterations: expected at least 1, found {iterations}."] if iterations < 1 else []
        if problems:
            raise ConfigError(problems)
        self.gamma, self.iterations = gamma, iterations

    def fit(self, predictions: Predictions) -> Tensor:
        labelled, positive = predictions.labels >= 0, predictions.labels == 1
        # FP - FN is the number of predicted less that of actual positives: sorted, each iteration is a search.
        ascending = predictions.probabilities.masked_fill(~labelled, -1).sort(dim=0).values.T.contiguous()
        thresholds = self.thresholds.double().cpu()
        for _ in range(self.iterations):
            predicted = len(labelled) - torch.searchsorted(ascending, thresholds[:, None])[:, 0]
            step = self.gamma * (predicted - positive.sum(dim=0)) / labelled.sum(dim=0).clamp(min=1)
            thresholds = (thresholds + step).clamp(0.01, 0.99)
        return thresholds


class OptimalCalibrator(ThresholdCalibrator):
    """The thresholds that are best on the validation split, exact over all of them; see `best_thresholds`.

    Best on validation is not best on test: a threshold of few positives follows their noise, and where the two splits
    differ in prevalence, as CelebA's do, the best accuracy lies elsewhere. So few positives only move it in part, ours:
    with n positives it is ``0.5 + n / (n + shrink) (best - 0.5)``.

    Args:
        attributes: number of attributes A.
        metric: what is to be greatest, one of accuracy, balanced_accuracy, f1, mcc, youden.
        shrink: number of positives, of at least 0, with which a threshold goes half of the way; 0 for all of it.

    Raises:
        ConfigError: a value out of its range.
    """

    def __init__(
        self,
        attributes: int,
        metric: Literal["accuracy", "balanced_accuracy", "f1", "mcc", "youden"] = "balanced_accuracy",
        shrink: float = 0.0,
    ) -> None:
        super().__init__(attributes)
        problems = []
        if metric not in OBJECTIVES:
            problems.append(f"calibration.metric: expected one of {', '.join(OBJECTIVES)}, found {metric!r}.")
        if shrink < 0:
            problems.append(f"calibration.shrink: expected a number of at least 0, found {shrink}.")
        if problems:
            raise ConfigError(problems)
        self.metric, self.shrink = metric, shrink

    def fit(self, predictions: Predictions) -> Tensor:
        best = best_thresholds(predictions.probabilities, predictions.labels, self.metric)
        if not self.shrink:
            return best
        positives = (predictions.labels == 1).sum(dim=0)
        return 0.5 + positives / (positives + self.shrink) * (best - 0.5)
