"""Weights from the trend of the training losses: dynamic weight average, and FAR-AMTN's scheme."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Unpack

import torch
from lightning import Trainer
from torch import Tensor

from faceattr_lightning.callbacks.stage import fitting
from faceattr_lightning.callbacks.task_weighting.base import DynamicWeighting, TrainingLosses, UnitOptions

if TYPE_CHECKING:
    from faceattr_lightning.models.module import AttributeModule


class DWAWeighting(DynamicWeighting):
    """Dynamic weight average (Liu, Johns, Davison, CVPR 2019, eq. 7).

    With L_k(t) the mean training loss of task k in epoch t, K tasks and a temperature T::

        r_k = L_k(t-1) / L_k(t-2),   w_k = K exp(r_k / T) / sum_i exp(r_i / T)

    What falls slowly weighs more, whatever its scale. Weights are 1 in the first two epochs. Only training losses
    enter, so that validation stays clean. Where validation is run more or less often than once an epoch, its intervals
    take the place of epochs (ours, like smoothing, floor and ceiling).

    Args:
        attributes: see `TaskWeighting`, like ``group_of`` and ``tasks``.
        group_of: see there.
        tasks: see there.
        temperature: T, positive; the larger, the nearer the weights. The paper has 2.
        smoothing: share of the old weight that is kept at each change, in [0, 1).
        options: see `UnitOptions`.

    Raises:
        ConfigError: a value out of its range.
    """

    before: Tensor
    """float64 (U,), the losses of the window before the last, NaN where not known."""

    def __init__(
        self,
        attributes: int,
        group_of: Sequence[int] = (),
        tasks: Sequence[str] = (),
        temperature: float = 2.0,
        smoothing: float = 0.0,
        **options: Unpack[UnitOptions],
    ) -> None:
        problems = []
        if temperature <= 0:
            problems.append(f"weighting.temperature: expected a positive number, found {temperature}.")
        super().__init__(attributes, group_of, tasks, smoothing, problems, **options)
        self.temperature = temperature
        self.register_buffer("before", torch.full((len(self.units),), torch.nan, dtype=torch.float64))
        self.losses = TrainingLosses(attributes + len(self.tasks))

    def rule(self, before: Tensor, current: Tensor) -> Tensor:
        """Return the weights, float (K,), of two windows' losses, float (K,) each, all known and positive."""
        return len(current) * (current / before / self.temperature).softmax(dim=0)

    def on_train_batch_end(  # type: ignore[override]
        self, trainer: Trainer, pl_module: AttributeModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.losses.add(outputs, trainer)
        self.remember()

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: AttributeModule) -> None:  # type: ignore[override]
        if not fitting(trainer):
            return
        # The sums of training, where weight averaging has put an average in their place.
        self.keep()
        self.update(self.losses.end())
        self.remember()

    def update(self, losses: Tensor) -> None:
        """End a window.

        Args:
            losses: float (A + T,), the window's mean training loss of each attribute and task, equal on every rank;
                NaN for one without a label. A unit of which no loss is known, or one of 0, keeps weight 1.
        """
        losses = losses.to(self.before)
        count = len(self.weights)
        current = self.units.losses(losses[:count], losses[count:])
        known = (self.before > 0) & (current > 0)
        if known.any():
            weights = torch.ones_like(current)
            ruled = self.rule(self.before[known], current[known])
            sizes = self.units.sizes[known]
            weights[known] = ruled * (sizes.sum() / (sizes * ruled).sum())
            self.change(weights)
        self.before.copy_(torch.where(current.isnan(), self.before, current))


class DWSWeighting(DWAWeighting):
    """FAR-AMTN's dynamic weighting scheme: groups are weighed so that they converge together.

    That it counters different speeds and loss scales is published. The formula is ours, the one of `DWAWeighting` over
    the loss of the last epoch::

        r_g = L_g(t-1) / L_g(t-2),   w_g = K softmax(r / T)_g / L_g(t-1),   w <- w / mean(w)

    A group whose loss falls slowly (r near 1 or above) weighs more, one whose loss is large less.
    """

    def rule(self, before: Tensor, current: Tensor) -> Tensor:
        return super().rule(before, current) / current
