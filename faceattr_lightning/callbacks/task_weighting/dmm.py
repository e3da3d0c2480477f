"""Weights from the trend of the validation losses: DMM-CNN's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from lightning import Trainer
from torch import Tensor

from faceattr_lightning.callbacks.stage import fitting
from faceattr_lightning.callbacks.task_weighting.base import DynamicWeighting

if TYPE_CHECKING:
    from faceattr_lightning.models.module import AttributeModule


class DMMWeighting(DynamicWeighting):
    """DMM-CNN's dynamic weighting, in the form of its ancestor (He et al., ACM MM 2017).

    From the validation losses of two consecutive windows::

        trend_j = |cur_j - prev_j| / (cur_j + eps)
        w_j     = normalise(normalise(trend_j) * normalise(cur_j)),   normalise(x) = x / mean(x)

    The weight is high where the validation loss is large and still moving; it is 1 until two windows have passed. It
    consumes the validation set, and ``|.|`` treats better and worse alike. Smoothing and clipping are ours.

    Args:
        attributes: see `TaskWeighting`, like ``group_of`` and ``tasks``.
        group_of: see there.
        tasks: not used: validation has no losses but the attributes'.
        every: ``epoch``, each window being one validation run; or a number of training steps k, of which each also
            forwards one validation batch (the ancestor used 100 to 200).
        smoothing: share of the old weight that is kept at each change, in [0, 1); 0 is the ancestor's rule.
        over: see `UnitOptions`, like ``floor`` and ``ceiling``.
        floor: least weight before the last normalisation; the ancestor's rule (0) lets a weight reach 0.
        ceiling: greatest weight before the last normalisation.
        eps: keeps the trend finite where the loss is 0.

    Raises:
        ConfigError: a value out of its range.
    """

    previous: Tensor
    """float64 (U,), NaN where not known."""
    loss_sum: Tensor
    loss_count: Tensor
    steps: Tensor

    def __init__(
        self,
        attributes: int,
        group_of: Sequence[int] = (),
        tasks: Sequence[str] = (),
        every: Literal["epoch"] | int = "epoch",
        smoothing: float = 0.0,
        over: Literal["attribute", "group"] = "attribute",
        floor: float = 0.0,
        ceiling: float = float("inf"),
        eps: float = 1e-8,
    ) -> None:
        problems = []
        if isinstance(every, int) and every < 1:
            problems.append(f"weighting.every: expected epoch or a positive number of steps, found {every}.")
        if eps <= 0:
            problems.append(f"weighting.eps: expected a positive number, found {eps}.")
        super().__init__(attributes, group_of, (), smoothing, problems, over=over, floor=floor, ceiling=ceiling)
        self.every, self.eps = every, eps
        self.register_buffer("previous", torch.full((len(self.units),), torch.nan, dtype=torch.float64))
        self.register_buffer("loss_sum", torch.zeros(attributes, dtype=torch.float64))
        self.register_buffer("loss_count", torch.zeros(attributes, dtype=torch.float64))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self._step = 0

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: AttributeModule) -> None:  # type: ignore[override]
        if not fitting(trainer):
            return
        if self.every == "epoch":
            self.update(pl_module.predictions.gather().attribute_losses())
            self.remember()
        else:
            # Into the averaged model, if there is one: these are of the step that training has reached.
            self.keep()

    def on_train_start(self, trainer: Trainer, pl_module: AttributeModule) -> None:  # type: ignore[override]
        # Beside the buffer, which a GPU would have to be asked for at each step.
        self._step = int(self.steps)

    def on_train_batch_end(  # type: ignore[override]
        self, trainer: Trainer, pl_module: AttributeModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.every == "epoch":
            return
        losses, counts = pl_module.validation_losses(self._step)
        # Summed over ranks at each step: DDP broadcasts rank 0's buffers, so that a rank's own sums would be lost.
        self.loss_sum += losses
        self.loss_count += counts
        self.steps += 1
        self._step += 1
        if self._step % self.every == 0:
            self.update(self.loss_sum / self.loss_count)
            self.loss_sum.zero_()
            self.loss_count.zero_()
        self.remember()

    def update(self, current: Tensor) -> None:
        """End a window.

        Args:
            current: float (A,), the window's mean validation loss per attribute, equal on every rank; NaN for an
                attribute without a label in it. A unit of which no loss is known keeps its previous one and gets weight
                1, before smoothing and clipping.
        """
        losses = self.units.losses(current.to(self.previous), current.new_empty(0))
        weights = dmm_weights(self.previous, losses, self.eps)
        if weights is not None:
            self.change(weights)
        self.previous.copy_(torch.where(losses.isnan(), self.previous, losses))


def dmm_weights(previous: Tensor, current: Tensor, eps: float = 1e-8) -> Tensor | None:
    """Return the weights of `DMMWeighting` after the windows ``previous`` and ``current``.

    Args:
        previous: float (A,), mean validation losses, NaN where not known.
        current: float (A,), of the window after.
        eps: see `DMMWeighting`.

    Returns:
        float (A,) of mean 1, exactly 1 where a loss is not known; ``None`` where no attribute has two windows, or where
        no loss has moved.
    """
    known = ~(previous.isnan() | current.isnan())
    if not known.any():
        return None
    now = current[known]
    trend = (now - previous[known]).abs() / (now + eps)
    if trend.sum() == 0 or now.sum() == 0:
        return None
    product = _normalise(trend) * _normalise(now)
    if product.sum() == 0:
        return None
    weights = torch.ones_like(current)
    weights[known] = _normalise(product)
    return weights


def _normalise(values: Tensor) -> Tensor:
    return values / values.mean()
