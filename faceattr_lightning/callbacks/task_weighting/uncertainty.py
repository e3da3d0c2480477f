"""Weights that are learned with the network."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Unpack

import torch
from lightning import Trainer
from torch import Tensor, nn

from faceattr_lightning.callbacks.task_weighting.base import TaskWeighting, UnitOptions, Units

if TYPE_CHECKING:
    from faceattr_lightning.models.module import AttributeModule


class UncertaintyWeighting(TaskWeighting):
    """Homoscedastic uncertainty (Kendall, Gal, Cipolla, CVPR 2018), for classification.

    A log-variance s_j = log sigma_j^2 is learned for each loss beside the network (eq. 10 and the text after it)::

        L = sum_j exp(-s_j) L_j + s_j / 2

    For a loss that stays as it is the best s_j gives ``w_j = exp(-s_j) = 1 / (2 L_j)``: what is easy weighs more. The
    weights are not of mean 1. A learning rate of their own is ours: at the network's, some hundred steps of Adam move a
    weight by some per cent.

    Args:
        attributes: see `TaskWeighting`, like ``group_of`` and ``tasks``.
        group_of: see there.
        tasks: see there.
        lr: peak learning rate of the log-variances, positive; they have no weight decay.
        options: see `UnitOptions`; floor and ceiling bound the weight as it is.

    Raises:
        ConfigError: a value out of its range.
    """

    log_variance: nn.Parameter
    """float32 (U,)."""

    def __init__(
        self,
        attributes: int,
        group_of: Sequence[int] = (),
        tasks: Sequence[str] = (),
        lr: float = 0.01,
        **options: Unpack[UnitOptions],
    ) -> None:
        super().__init__(attributes, group_of, tasks)
        problems = [f"weighting.lr: expected a positive number, found {lr}."] if lr <= 0 else []
        self.units = Units(attributes, self.group_of, self.tasks, problems=problems, **options)
        self.lr = lr
        self.log_variance = nn.Parameter(torch.zeros(len(self.units)))

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"params": [self.log_variance], "lr": self.lr, "weight_decay": 0.0}]

    def current(self) -> tuple[Tensor, Tensor]:
        low, high = (math.log(bound) if bound > 0 else -math.inf for bound in (self.units.floor, self.units.ceiling))
        return self.units.split((-self.log_variance).clamp(low, high).exp())

    def weigh(self, attribute_losses: Tensor, terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
        of_attributes, of_tasks = self.current()
        present = [of_tasks[place] for place, name in enumerate(self.tasks) if name in terms]
        # s_j = -log w_j
        log_variances = -torch.cat([of_attributes, *(weight.reshape(1) for weight in present)]).log()
        return {**super().weigh(attribute_losses, terms), "uncertainty": log_variances.sum() / 2}

    def on_train_batch_end(  # type: ignore[override]
        self, trainer: Trainer, pl_module: AttributeModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        with torch.no_grad():
            of_attributes, of_tasks = self.current()
            self.weights.copy_(of_attributes)
            self.task_weights.copy_(of_tasks)
