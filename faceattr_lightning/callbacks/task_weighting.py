"""Dynamic task weighting: a loss weight per attribute that changes while the model trains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from lightning import Trainer
from torch import Tensor

from faceattr_lightning.callbacks.fitted import FittedState
from faceattr_lightning.callbacks.stage import fitting
from faceattr_lightning.errors import ConfigError

if TYPE_CHECKING:
    from faceattr_lightning.models.module import AttributeModule


class TaskWeighting(FittedState):
    """Uniform weights, and the base of every strategy: a module whose buffers travel in the checkpoint, and a callback.

    A strategy overrides the hook at which it changes `weights`; the training loss reads them. Statistics must be equal
    on every rank before they enter a weight.

    Args:
        attributes: number of attributes A.
        group_of: (A,) index of each attribute's group, for strategies that weigh groups; empty for one group of all.
    """

    weights: Tensor
    """float32 (A,), mean 1."""

    def __init__(self, attributes: int, group_of: Sequence[int] = ()) -> None:
        super().__init__()
        self.group_of = list(group_of) or [0] * attributes
        self.register_buffer("weights", torch.ones(attributes))


class DMMWeighting(TaskWeighting):
    """DMM-CNN's dynamic weighting, in the form of its ancestor (He et al., ACM MM 2017).

    From the validation losses of two consecutive windows::

        trend_j = |cur_j - prev_j| / (cur_j + eps)
        w_j     = normalise(normalise(trend_j) * normalise(cur_j)),   normalise(x) = x / mean(x)

    The weight is high where the validation loss is large and still moving; it is 1 until two windows have passed. It
    consumes the validation set, and ``|.|`` treats better and worse alike. Smoothing and clipping are ours.

    Args:
        attributes: see `TaskWeighting`, like ``group_of``.
        group_of: not used.
        every: ``epoch``, each window being one validation run; or a number of training steps k, of which each also
            forwards one validation batch (the ancestor used 100 to 200).
        smoothing: share of the old weight that is kept at each change, in [0, 1); 0 is the ancestor's rule.
        floor: least weight before the last normalisation; the ancestor's rule (0) lets a weight reach 0.
        ceiling: greatest weight before the last normalisation.
        eps: keeps the trend finite where the loss is 0.

    Raises:
        ConfigError: a value out of its range.
    """

    previous: Tensor
    loss_sum: Tensor
    loss_count: Tensor
    steps: Tensor

    def __init__(
        self,
        attributes: int,
        group_of: Sequence[int] = (),
        every: Literal["epoch"] | int = "epoch",
        smoothing: float = 0.0,
        floor: float = 0.0,
        ceiling: float = float("inf"),
        eps: float = 1e-8,
    ) -> None:
        super().__init__(attributes, group_of)
        problems = []
        if isinstance(every, int) and every < 1:
            problems.append(f"weighting.every: expected epoch or a positive number of steps, found {every}.")
        if not 0 <= smoothing < 1:
            problems.append(f"weighting.smoothing: expected a share in [0, 1), found {smoothing}.")
        if not 0 <= floor <= 1 <= ceiling:
            problems.append(
                f"weighting.floor, weighting.ceiling: expected 0 <= floor <= 1 <= ceiling, found {floor}, {ceiling}."
            )
        if eps <= 0:
            problems.append(f"weighting.eps: expected a positive number, found {eps}.")
        if problems:
            raise ConfigError(problems)
        self.every, self.smoothing, self.floor, self.ceiling, self.eps = every, smoothing, floor, ceiling, eps
        self.register_buffer("previous", torch.full((attributes,), torch.nan, dtype=torch.float64))
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
                attribute without a label in it, which keeps its previous loss and
                gets weight 1, before smoothing and clipping.
        """
        current = current.to(self.previous)
        weights = dmm_weights(self.previous, current, self.eps)
        if weights is not None:
            weights = _normalise(weights.clamp(self.floor, self.ceiling))
            mixed = self.smoothing * self.weights.double() + (1 - self.smoothing) * weights
            self.weights.copy_(_normalise(mixed))
        self.previous.copy_(torch.where(current.isnan(), self.previous, current))


class DWSWeighting(TaskWeighting):
    """FAR-AMTN's dynamic weighting scheme: groups are weighed so that they converge together.

    That it counters different speeds and loss scales is published. The formula is ours; it takes *training* losses
    alone, so that validation stays clean. With L_g(t) the mean training loss of group g in epoch t and K groups::

        r_g = L_g(t-1) / L_g(t-2),   w_g = K softmax(r / T)_g / L_g(t-1),   w <- w / mean(w)

    A group whose loss falls slowly (r near 1 or above) weighs more, one whose loss is large less. Weights are 1 in the
    first two epochs. Where validation is run more or less often than once an epoch, its intervals take the place of
    epochs.

    Args:
        attributes: see `TaskWeighting`, like ``group_of``.
        group_of: the groups; every attribute takes its group's weight.
        temperature: T, positive; the larger, the nearer the weights.
        smoothing: share of the old weight that is kept at each change, in [0, 1).

    Raises:
        ConfigError: a value out of its range.
    """

    before: Tensor
    """float64 (K,), L_g of the window before the last, NaN where not known."""
    loss_sum: Tensor
    loss_count: Tensor

    def __init__(
        self, attributes: int, group_of: Sequence[int] = (), temperature: float = 2.0, smoothing: float = 0.0
    ) -> None:
        super().__init__(attributes, group_of)
        problems = []
        if temperature <= 0:
            problems.append(f"weighting.temperature: expected a positive number, found {temperature}.")
        if not 0 <= smoothing < 1:
            problems.append(f"weighting.smoothing: expected a share in [0, 1), found {smoothing}.")
        if problems:
            raise ConfigError(problems)
        self.temperature, self.smoothing = temperature, smoothing
        self.register_buffer("before", torch.full((max(self.group_of) + 1,), torch.nan, dtype=torch.float64))
        self.register_buffer("loss_sum", torch.zeros(attributes, dtype=torch.float64))
        self.register_buffer("loss_count", torch.zeros(attributes, dtype=torch.float64))
        # This rank's since the last end of an epoch. No buffer: DDP would replace it by the first rank's.
        self._own = torch.zeros(2, attributes, dtype=torch.float64)

    def on_train_batch_end(  # type: ignore[override]
        self, trainer: Trainer, pl_module: AttributeModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = torch.stack([outputs["loss_sums"].double(), outputs["label_counts"].double()])
        self._own = self._own.to(step.device) + step

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: AttributeModule) -> None:  # type: ignore[override]
        if not fitting(trainer):
            return
        self._collect(trainer)
        self.update(self.loss_sum / self.loss_count)
        self.loss_sum.zero_()
        self.loss_count.zero_()
        self.remember()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: AttributeModule) -> None:  # type: ignore[override]
        # Into the checkpoint, where validation is not run every epoch.
        self._collect(trainer)

    def _collect(self, trainer: Trainer) -> None:
        total = trainer.strategy.reduce(self._own.to(self.loss_sum.device), reduce_op="sum")
        assert isinstance(total, Tensor)
        self.loss_sum += total[0]
        self.loss_count += total[1]
        self._own.zero_()

    def update(self, losses: Tensor) -> None:
        """End a window.

        Args:
            losses: float (A,), the window's mean training loss per attribute, equal on every rank; NaN for one
                without a label, which counts neither in its group's loss nor in its weight.
        """
        losses = losses.to(self.before)
        group_of = torch.tensor(self.group_of, device=losses.device)
        current = torch.stack([losses[group_of == group].nanmean() for group in range(len(self.before))])
        weights = dws_weights(self.before, current, self.temperature)
        if weights is not None:
            mixed = self.smoothing * self.weights.double() + (1 - self.smoothing) * _normalise(weights[group_of])
            self.weights.copy_(_normalise(mixed))
        self.before.copy_(torch.where(current.isnan(), self.before, current))


def dws_weights(before: Tensor, current: Tensor, temperature: float) -> Tensor | None:
    """Return the weights of `DWSWeighting` after two windows with the group losses ``before`` and ``current``.

    Args:
        before: float (K,), NaN where not known.
        current: float (K,), of the window after.
        temperature: T.

    Returns:
        float (K,) of mean 1, exactly 1 where a loss is not known or 0; ``None`` where no group has two windows.
    """
    known = (before > 0) & (current > 0)
    if not known.any():
        return None
    weights = torch.ones_like(current)
    share = (current[known] / before[known] / temperature).softmax(dim=0)
    weights[known] = _normalise(known.sum() * share / current[known])
    return weights


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
