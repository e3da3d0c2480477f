"""Evaluation of large splits: exact thresholds, all metrics, and the update of a step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn import metrics as sklearn_metrics
from torch import Tensor
from torchmetrics import MetricCollection
from torchmetrics.classification import MultilabelAccuracy, MultilabelF1Score, MultilabelPrecision, MultilabelRecall
from torchmetrics.functional.classification import multilabel_roc

from faceattr_lightning.metrics.attribute_metrics import attribute_metrics
from faceattr_lightning.metrics.predictions import Predictions, PredictionStore
from faceattr_lightning.metrics.thresholds import best_thresholds
from tests.benchmarks.clock import interleave
from tests.benchmarks.rows import Row

GRID = np.linspace(0.01, 0.99, 99)


def metrics(data: Path, scratch: Path) -> list[Row]:
    """Compare CPU seconds of one thread.

    Thresholds: the best balanced accuracy of each attribute, against torchmetrics' exact ``multilabel_roc`` and
    scikit-learn's ``roc_curve``, an attribute after the other, and the best point of their curves. Metrics: all of
    ours, against accuracy, balanced accuracy, F1 and average precision of scikit-learn attribute by attribute. Update:
    a batch of 64 x 40, against a collection of four of torchmetrics.
    """
    torch.set_num_threads(1)
    rows = []
    for count, mark in ((20_000, 1 / 7), (200_000, 1 / 8)):
        split = predictions(count, 40)
        check_against_grid(split)
        ours, other, loop = _alternate(
            lambda split=split: best_thresholds(split.probabilities, split.labels, "balanced_accuracy"),
            lambda split=split: torchmetrics_thresholds(split),
            lambda split=split: scikit_learn_thresholds(split),
        )
        name = f"exact thresholds, {count // 1000}k x 40, against"
        rows.append(_row(f"{name} torchmetrics' exact curve", ours, other, mark))
        rows.append(_row(f"{name} a loop over scikit-learn's curves", ours, loop))
    thresholds, prevalence = torch.full((40,), 0.5), torch.full((40,), 0.3)
    ours, other = _alternate(lambda: attribute_metrics(split, thresholds, prevalence), lambda: scikit_learn(split))
    rows.append(_row("all metrics, 200k x 40, against four of scikit-learn", ours, other))
    wide = predictions(20_000, 400)
    wide_ours, narrow = _alternate(
        lambda: attribute_metrics(wide, torch.full((400,), 0.5), torch.full((400,), 0.3)),
        lambda: attribute_metrics(predictions(20_000, 40), thresholds, prevalence),
    )
    rows.append(_row("all metrics, 20k x 400, against 20k x 40", wide_ours, narrow))
    batch = predictions(64, 40)
    store, collection = PredictionStore(), four_of_torchmetrics()
    ours, other = _alternate(lambda: _update(store, batch), lambda: collection.update(batch.logits, batch.labels))
    rows.append(_row("update of a step of 64 x 40, against a MetricCollection of four", ours, other, 1 / 8))
    return rows


def predictions(count: int, attributes: int) -> Predictions:
    """Return logits that tell something of random labels, a third of them positive."""
    generator = torch.Generator().manual_seed(0)
    labels = (torch.rand(count, attributes, generator=generator) < 0.3).to(torch.int8)
    logits = torch.randn(count, attributes, generator=generator) + 2 * labels - 1
    return Predictions(logits, labels, torch.arange(count), {})


def torchmetrics_thresholds(split: Predictions) -> Tensor:
    """Return the thresholds of the best balanced accuracy on torchmetrics' exact curves."""
    curves = multilabel_roc(split.logits.sigmoid(), split.labels.long(), split.labels.shape[1], thresholds=None)
    return torch.stack([cuts[(tpr - fpr).argmax()] for fpr, tpr, cuts in zip(*curves, strict=True)])


def scikit_learn_thresholds(split: Predictions) -> list[float]:
    """Return the thresholds of the best balanced accuracy on scikit-learn's curves."""
    found = []
    for score, truth in zip(split.probabilities.numpy().T, split.labels.numpy().T, strict=True):
        fpr, tpr, cuts = sklearn_metrics.roc_curve(truth, score)
        found.append(float(cuts[(tpr - fpr).argmax()]))
    return found


def scikit_learn(split: Predictions) -> list[tuple[float, ...]]:
    """Return accuracy, balanced accuracy, F1 and average precision of each attribute."""
    probabilities, labels = split.probabilities.numpy(), split.labels.numpy()
    found = []
    for score, truth in zip(probabilities.T, labels.T, strict=True):
        predicted = score >= 0.5
        by_class = [
            getattr(sklearn_metrics, f"{name}_score")(truth, predicted)
            for name in ("accuracy", "balanced_accuracy", "f1")
        ]
        found.append((*by_class, sklearn_metrics.average_precision_score(truth, score)))
    return found


def four_of_torchmetrics() -> MetricCollection:
    """Return accuracy, precision, recall and F1 of each of forty attributes."""
    kinds = (MultilabelAccuracy, MultilabelPrecision, MultilabelRecall, MultilabelF1Score)
    # Groups would let the four share one state; that is found out with the first update, which is not counted.
    return MetricCollection({kind.__name__: kind(num_labels=40, average=None) for kind in kinds})


def check_against_grid(split: Predictions) -> None:
    """Raise a RuntimeError if a threshold of a grid of 99 has a better balanced accuracy than ours."""
    probabilities, positive = split.probabilities.numpy(), split.labels.numpy() == 1

    def reached(thresholds: Any) -> Any:
        predicted = probabilities >= thresholds
        recall = (predicted & positive).sum(axis=0) / positive.sum(axis=0)
        return (recall + (~predicted & ~positive).sum(axis=0) / (~positive).sum(axis=0)) / 2

    exact = reached(best_thresholds(split.probabilities, split.labels, "balanced_accuracy").double().numpy())
    if (np.max([reached(step) for step in GRID], axis=0) > exact).any():
        raise RuntimeError("A threshold of the grid is better than the exact one.")


def _update(store: PredictionStore, batch: Predictions) -> None:
    if len(store.logits) > 1000:
        store.reset()
    store.update(batch.logits, batch.labels, batch.index)


def _alternate(*calls: Callable[[], object]) -> list[list[float]]:
    def endless(call: Callable[[], object]) -> Iterator[int]:
        while True:
            call()
            yield 1

    return interleave([endless(call) for call in calls])


def _row(name: str, ours: list[float], other: list[float], at_most: float | None = None) -> Row:
    return Row(name, "ms", [1000 * value for value in ours], [1000 * value for value in other], at_most)
