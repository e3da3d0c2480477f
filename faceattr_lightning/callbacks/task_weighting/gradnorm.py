"""Weights from the norms of the losses' gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Unpack

import torch
from lightning import Trainer
from torch import Tensor, nn

from faceattr_lightning.callbacks.task_weighting.base import DynamicWeighting, TrainingLosses, UnitOptions
from faceattr_lightning.errors import ConfigError

if TYPE_CHECKING:
    from faceattr_lightning.models.module import AttributeModule


class GradNormWeighting(DynamicWeighting):
    """GradNorm's balance (Chen et al., ICML 2018), found at once instead of step by step.

    With g_i the norm of the gradient of the *unweighted* loss L_i by the last weight W that all losses share, and
    L_i(0) the loss at the beginning, the paper lets ``G_i = w_i g_i`` move towards ``mean(G) r_i^alpha`` (eq. 1, 2)::

        r_i = (L_i(t) / L_i(0)) / mean_k (L_k(t) / L_k(0))

    by a gradient step on w after each training step. Ours, to keep the cost down: only every ``every`` steps g is
    measured, and w goes a share ``1 - smoothing`` of the way to where that descent ends, ``w_i ~ r_i^alpha / g_i``;
    L(t) is the mean since the last time, L(0) that of the first ``every`` steps.

    Args:
        attributes: see `TaskWeighting`, like ``group_of`` and ``tasks``.
        group_of: see there.
        tasks: see there.
        alpha: how strongly what has learned less is pulled, of at least 0; the paper has 0.12 and 1.5.
        every: training steps between two measurements, of at least 1.
        smoothing: share of the old weight that is kept at each change, in [0, 1).
        options: see `UnitOptions`.

    Raises:
        ConfigError: a value out of its range; at the beginning of training, no weight of the backbone is trained.
    """

    first: Tensor
    """float64 (U,), L(0), NaN before it is known."""
    steps: Tensor

    def __init__(
        self,
        attributes: int,
        group_of: Sequence[int] = (),
        tasks: Sequence[str] = (),
        alpha: float = 1.5,
        every: int = 20,
        smoothing: float = 0.5,
        **options: Unpack[UnitOptions],
    ) -> None:
        problems = [f"weighting.alpha: expected a number of at least 0, found {alpha}."] if alpha < 0 else []
        problems += [f"weighting.every: expected at least 1, found {every}."] if every < 1 else []
        super().__init__(attributes, group_of, tasks, smoothing, problems, **options)
        self.alpha, self.every = alpha, every
        self.register_buffer("first", torch.full((len(self.units),), torch.nan, dtype=torch.float64))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.losses = TrainingLosses(attributes + len(self.tasks))
        self._step = 0
        self._graph: Tensor | None = None
        self._norms = torch.zeros(len(self.units))

    def on_fit_start(self, trainer: Trainer, pl_module: AttributeModule) -> None:  # type: ignore[override]
        if not any(map(_is_weight, pl_module.network.backbone.parameters())):  # type: ignore[union-attr]
            raise ConfigError(
                [
                    "weighting: GradNorm compares gradients in the backbone, of which backbone.freeze leaves nothing "
                    "to train; freeze less, or take another weighting."
                ]
            )
        # A compiled network would free what the several backward passes share.
        torch._functorch.config.donated_buffer = False

    def on_train_start(self, trainer: Trainer, pl_module: AttributeModule) -> None:  # type: ignore[override]
        # Beside the buffer, which a GPU would have to be asked for at each step.
        self._step = int(self.steps)

    def weigh(self, attribute_losses: Tensor, terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if (self._step + 1) % self.every == 0 and attribute_losses.requires_grad:
            absent = attribute_losses.new_full((), torch.nan)
            task_losses = [terms.get(name, absent) for name in self.tasks]
            self._graph = self.units.losses(attribute_losses, torch.stack([absent, *task_losses])[1:])
        return super().weigh(attribute_losses, terms)

    def on_before_backward(self, trainer: Trainer, pl_module: AttributeModule, loss: Tensor) -> None:  # type: ignore[override]
        if self._graph is None:
            return
        losses, self._graph = self._graph, None
        backbone: Any = pl_module.network.backbone
        # Of the mean over ranks: the mean of the ranks' norms would be greater, the fewer images a rank has.
        self._norms = gradient_norms(
            losses, backbone, lambda gradient: trainer.strategy.reduce(gradient, reduce_op="mean")
        )

    def on_train_batch_end(  # type: ignore[override]
        self, trainer: Trainer, pl_module: AttributeModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.losses.add(outputs, trainer)
        self.steps += 1
        self._step += 1
        if self._step % self.every == 0:
            self.update(self.losses.end(), self._norms)
        self.remember()

    def update(self, losses: Tensor, norms: Tensor) -> None:
        """End a window.

        Args:
            losses: float (A + T,), the window's mean training loss of each attribute and task, NaN without a label.
            norms: float (U,), those of the gradients; 0 for one without a gradient, which keeps weight 1.
        """
        losses = losses.to(self.first)
        count = len(self.weights)
        current = self.units.losses(losses[:count], losses[count:])
        self.first.copy_(torch.where(self.first.isnan(), current, self.first))
        norms = norms.to(self.first)
        known = (self.first > 0) & (current > 0) & (norms > 0)
        if known.any():
            weights = torch.ones_like(current)
            weights[known] = gradnorm_weights(self.first[known], current[known], norms[known], self.alpha)
            self.change(weights)


def gradnorm_weights(first: Tensor, current: Tensor, norms: Tensor, alpha: float) -> Tensor:
    """Return the weights at which `GradNormWeighting`'s descent ends, float (K,) of mean 1.

    Args:
        first: float (K,), L(0), positive.
        current: float (K,), L(t), positive.
        norms: float (K,), of the unweighted losses' gradients, positive.
        alpha: see `GradNormWeighting`.
    """
    ratio = current / first
    weights = (ratio / ratio.mean()) ** alpha / norms
    return weights / weights.mean()


def gradient_norms(losses: Tensor, backbone: nn.Module, gather: Callable[[Tensor], Any]) -> Tensor:
    """Return the norm of each loss's gradient by the backbone's last weight that any loss depends on, float (U,).

    Args:
        losses: float (U,) with their graph, which is kept; NaN where there is none, which has norm 0.
        backbone: the part of the network that the losses share.
        gather: from this rank's gradient to that of the whole step.
    """
    known = [index for index, loss in enumerate(losses.detach().isnan().tolist()) if not loss]
    norms = torch.zeros_like(losses.detach())
    for weight in filter(_is_weight, reversed(list(backbone.parameters()))):
        total = losses[known].sum()
        if torch.autograd.grad(total, weight, retain_graph=True, allow_unused=True)[0] is None:
            continue
        for index in known:
            (gradient,) = torch.autograd.grad(losses[index], weight, retain_graph=True, allow_unused=True)
            if gradient is not None:
                norms[index] = gather(gradient).norm()
        break
    return norms


def _is_weight(parameter: nn.Parameter) -> bool:
    return parameter.requires_grad and parameter.ndim > 1
