"""What a network said of a whole split, gathered over ranks: the one source of metrics, weights and thresholds."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat


@dataclass(frozen=True)
class Predictions:
    """N samples of a split in the data set's order, on the CPU; equal on every rank.

    Attributes:
        logits: float32 (N, A).
        labels: int8 (N, A) in {0, 1, -1 = not labelled}.
        index: int64 (N,), rows of the data set's table, ascending, none twice.
        landmark_error: float32 (N,), in distances between the eyes; NaN where unknown.
    """

    logits: Tensor
    labels: Tensor
    index: Tensor
    landmark_error: Tensor

    @property
    def probabilities(self) -> Tensor:
        """float64 (N, A) in [0, 1]."""
        return self.logits.double().sigmoid()

    def attribute_losses(self) -> Tensor:
        """Return each attribute's mean binary cross-entropy over its labelled samples, float64 (A,), NaN without
        one.
        """
        labelled = self.labels >= 0
        losses = functional.binary_cross_entropy_with_logits(
            self.logits.double(), self.labels.clamp(min=0).double(), reduction="none"
        )
        return (losses * labelled).sum(dim=0) / labelled.sum(dim=0)


class PredictionStore(Metric):
    """Collects predictions step by step; `gather` gives those of every rank.

    A torchmetrics metric only for its exact gathering of ranks with different numbers of samples: nothing is counted
    twice, nothing left out, and the result does not depend on the number of ranks.
    """

    full_state_update = False

    logits: list[Tensor]
    labels: list[Tensor]
    index: list[Tensor]
    landmark_error: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        for state in ("logits", "labels", "index", "landmark_error"):
            self.add_state(state, default=[], dist_reduce_fx="cat")

    def update(self, logits: Tensor, labels: Tensor, index: Tensor, landmark_error: Tensor | None = None) -> None:
        """Add a batch.

        Args:
            logits: float (B, A).
            labels: int8 (B, A).
            index: int64 (B,).
            landmark_error: float (B,), or ``None`` where the network predicts no landmarks.
        """
        self.logits.append(logits.detach().float())
        self.labels.append(labels)
        self.index.append(index)
        if landmark_error is None:
            landmark_error = torch.full_like(index, torch.nan, dtype=torch.float32)
        self.landmark_error.append(landmark_error.detach().float())

    def compute(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return logits, labels, index and landmark error of all ranks, in the data set's order; see `gather`."""
        index = dim_zero_cat(self.index).cpu()
        order = index.argsort()
        logits, labels, error = (
            dim_zero_cat(state).cpu()[order] for state in (self.logits, self.labels, self.landmark_error)
        )
        return logits, labels, index[order], error

    def gather(self) -> Predictions:
        """Return the predictions of all ranks; every rank has to call it."""
        logits, labels, index, error = self.compute()
        # torchmetrics squeezes tensors of one element: one sample with one attribute.
        count = index.numel()
        return Predictions(logits.reshape(count, -1), labels.reshape(count, -1), index.reshape(-1), error.reshape(-1))
