"""What a network said of a whole split, gathered over ranks: the one source of metrics, weights and thresholds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

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
        measures: further figures by name, float32 (N,) each, NaN where one is not known for a sample.
    """

    logits: Tensor
    labels: Tensor
    index: Tensor
    measures: dict[str, Tensor]

    @property
    def probabilities(self) -> Tensor:
        """float64 (N, A) in [0, 1]."""
        return self.logits.double().sigmoid()

    def of(self, rows: Tensor) -> Predictions:
        """Return some of the samples, by a bool (N,) or int64 (n,)."""
        measures = {name: values[rows] for name, values in self.measures.items()}
        return Predictions(self.logits[rows], self.labels[rows], self.index[rows], measures)

    def scaled(self, temperatures: Tensor) -> Predictions:
        """Return the same with each attribute's logits divided by its temperature, float (A,), positive."""
        return replace(self, logits=self.logits / temperatures.to(self.logits))

    def measure_means(self) -> dict[str, float]:
        """Return each measure's mean over the samples for which it is known, without those known for none."""
        known = {name: values for name, values in self.measures.items() if not values.isnan().all()}
        return {name: float(values.double().nanmean()) for name, values in known.items()}

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
    measures: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        for state in ("logits", "labels", "index", "measures"):
            self.add_state(state, default=[], dist_reduce_fx="cat")
        self._names: list[str] = []

    def update(
        self, logits: Tensor, labels: Tensor, index: Tensor, measures: Mapping[str, Tensor] | None = None
    ) -> None:
        """Add a batch.

        Args:
            logits: float (B, A).
            labels: int8 (B, A).
            index: int64 (B,).
            measures: float (B,) each, by name; the same names in every batch.
        """
        self.logits.append(logits.detach().float())
        self.labels.append(labels)
        self.index.append(index)
        self._names = list(measures or ())
        # Never without a column, which gathering over ranks could not tell from nothing.
        columns = [column.detach().float() for column in (measures or {}).values()]
        self.measures.append(torch.stack([torch.full_like(index, torch.nan, dtype=torch.float32), *columns], dim=1))

    def compute(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return logits, labels, index and measures of all ranks, in the data set's order; see `gather`."""
        index = dim_zero_cat(self.index).cpu()
        order = index.argsort()
        logits, labels, measures = (
            dim_zero_cat(state).cpu()[order] for state in (self.logits, self.labels, self.measures)
        )
        return logits, labels, index[order], measures

    def gather(self) -> Predictions:
        """Return the predictions of all ranks; every rank has to call it."""
        logits, labels, index, measures = self.compute()
        # torchmetrics squeezes tensors of one element: one sample with one attribute.
        count = index.numel()
        columns = measures.reshape(count, -1)[:, 1:].unbind(dim=1)
        return Predictions(
            logits.reshape(count, -1),
            labels.reshape(count, -1),
            index.reshape(-1),
            dict(zip(self._names, columns, strict=True)),
        )
