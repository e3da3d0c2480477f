"""Per-attribute decision thresholds, fitted on the validation split, kept with the weights."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Literal

import torch
from lightning import Trainer
from torch import Tensor

from faceattr_lightning.callbacks.fitted import FittedState
from faceattr_lightning.callbacks.stage import fitting
from faceattr_lightning.errors import ConfigError, did_you_mean
from faceattr_lightning.metrics.predictions import Predictions
from faceattr_lightning.metrics.temperature import fit_temperatures
from faceattr_lightning.metrics.thresholds import OBJECTIVES, TARGETS, best_thresholds

if TYPE_CHECKING:
    from faceattr_lightning.models.module import AttributeModule

log = logging.getLogger(__name__)


class ThresholdCalibrator(FittedState):
    """Fixed thresholds of 0.5, and the base of every calibrator: a module (thresholds travel with the weights) and a
    callback.

    A calibrator overrides `fit`. It is called after each validation epoch of a training run, and of a validation alone
    only where `refits` is set; never in test. An
    attribute with fewer than two classes among its validation labels keeps its threshold and its temperature, and is
    named in a warning.

    Args:
        attributes: number of attributes A.
        temperature: whether probabilities are scaled first, by a temperature per attribute; see `fit_temperatures`. It
            moves no answer at 0.5, but what a probability means; thresholds are of the scaled ones.
    """

    thresholds: Tensor
    """float32 (A,) in [0, 1]; a probability at or above it counts as present."""
    temperatures: Tensor
    """float32 (A,), positive; the probability is ``sigmoid(logit / temperature)``."""

    def __init__(self, attributes: int, temperature: bool = False) -> None:
        super().__init__()
        self.register_buffer("thresholds", torch.full((attributes,), 0.5))
        self.register_buffer("temperatures", torch.ones(attributes))
        self.temperature = temperature
        self.refits = False
        self._warned = False

    def check(self, attribute_names: list[str]) -> None:
        """Raise a ConfigError if the configuration names an attribute that is not one of these."""

    def fit(self, predictions: Predictions, attribute_names: list[str], train_prevalence: Tensor) -> Tensor:
        """Return new thresholds, float (A,), for a validation split's predictions; see `calibrate`."""
        return self.thresholds

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: AttributeModule) -> None:  # type: ignore[override]
        if fitting(trainer) or self.refits:
            predictions = pl_module.predictions.gather()
            self.calibrate(predictions, pl_module.attribute_names, pl_module.train_prevalence)
            self.remember()

    def calibrate(
        self, predictions: Predictions, attribute_names: list[str], train_prevalence: Tensor | None = None
    ) -> None:
        """Fit temperatures and thresholds of the attributes that have both classes; warn once of the others.

        Args:
            predictions: of the validation split, not scaled, equal on every rank.
            attribute_names: A names.
            train_prevalence: float (A,), share of positives in the training split, NaN where not known.
        """
        if train_prevalence is None:
            train_prevalence = torch.full((len(attribute_names),), torch.nan)
        one_class = single_class(predictions).to(self.thresholds.device)
        if self.temperature:
            found = fit_temperatures(predictions.logits, predictions.labels).to(self.temperatures)
            self.temperatures.copy_(torch.where(one_class, self.temperatures, found))
        scaled = predictions.scaled(self.temperatures)
        fitted = self.fit(scaled, attribute_names, train_prevalence.cpu()).to(self.thresholds)
        self.thresholds.copy_(torch.where(one_class, self.thresholds, fitted))
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
        temperature: see `ThresholdCalibrator`.

    Raises:
        ConfigError: a value out of its range.
    """

    def __init__(self, attributes: int, gamma: float = 1.0, iterations: int = 1, temperature: bool = False) -> None:
        super().__init__(attributes, temperature)
        problems = [f"calibration.gamma: expected a positive number, found {gamma}."] if gamma <= 0 else []
        problems += [f"calibration.iterations: expected at least 1, found {iterations}."] if iterations < 1 else []
        if problems:
            raise ConfigError(problems)
        self.gamma, self.iterations = gamma, iterations

    def fit(self, predictions: Predictions, attribute_names: list[str], train_prevalence: Tensor) -> Tensor:
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
        metric: what is to be greatest, one of accuracy, balanced_accuracy, f1, mcc, youden; or, with a target,
            precision or false_positive_rate: the highest recall that keeps it. Where no threshold does, it is 1:
            present only what is certain.
        target: least precision, or greatest false positive rate, in [0, 1].
        shrink: number of positives, of at least 0, with which a threshold goes half of the way; 0 for all of it.
        prevalence: the share of positives for which the thresholds are to be best: ``validation``, that of the labels;
            ``train``, that of the training split, which counts more labels; or a share in (0, 1) for each of some
            attributes, that of the validation labels for the others.
        temperature: see `ThresholdCalibrator`.

    Raises:
        ConfigError: a value out of its range.
    """

    def __init__(
        self,
        attributes: int,
        metric: Literal[
            "accuracy", "balanced_accuracy", "f1", "mcc", "youden", "precision", "false_positive_rate"
        ] = "balanced_accuracy",
        target: float | None = None,
        shrink: float = 0.0,
        prevalence: Literal["validation", "train"] | dict[str, float] = "validation",
        temperature: bool = False,
    ) -> None:
        super().__init__(attributes, temperature)
        problems = []
        if metric not in OBJECTIVES and metric not in TARGETS:
            known = ", ".join([*OBJECTIVES, *TARGETS])
            problems.append(f"calibration.metric: expected one of {known}, found {metric!r}.")
        elif metric in TARGETS and (target is None or not 0 <= target <= 1):
            bound = "the least precision" if metric == "precision" else "the greatest false positive rate"
            problems.append(f"calibration.target: {metric} needs {bound}, in [0, 1], found {target}.")
        elif metric in OBJECTIVES and target is not None:
            problems.append(
                f"calibration.target: {metric} is made as great as it can be and takes none, found {target}; set "
                "calibration.metric=precision or false_positive_rate."
            )
        if shrink < 0:
            problems.append(f"calibration.shrink: expected a number of at least 0, found {shrink}.")
        shares = prevalence if isinstance(prevalence, dict) else {}
        problems += [
            f"calibration.prevalence.{name}: expected a share in (0, 1), found {share}."
            for name, share in shares.items()
            if not 0 < share < 1
        ]
        if problems:
            raise ConfigError(problems)
        self.metric, self.target, self.shrink, self.prevalence = metric, target, shrink, prevalence

    def check(self, attribute_names: list[str]) -> None:
        problems = [
            f"calibration.prevalence: '{name}' is not among the model's attributes."
            f"{did_you_mean(name, attribute_names)}"
            for name in (self.prevalence if isinstance(self.prevalence, dict) else ())
            if name not in attribute_names
        ]
        if problems:
            raise ConfigError(problems)

    def fit(self, predictions: Predictions, attribute_names: list[str], train_prevalence: Tensor) -> Tensor:
        prevalence = torch.full((len(attribute_names),), torch.nan)
        if isinstance(self.prevalence, dict):
            for name, share in self.prevalence.items():
                prevalence[attribute_names.index(name)] = share
        elif self.prevalence == "train":
            # With one class in training, there is nothing to shift to.
            prevalence = torch.where((train_prevalence > 0) & (train_prevalence < 1), train_prevalence, torch.nan)
        best = best_thresholds(predictions.probabilities, predictions.labels, self.metric, self.target, prevalence)
        if self.target is not None:
            best = best.nan_to_num(1.0)
        if not self.shrink:
            return best
        positives = (predictions.labels == 1).sum(dim=0)
        return 0.5 + positives / (positives + self.shrink) * (best - 0.5)
