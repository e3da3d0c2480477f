"""Weights that rare attributes have from the start."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from lightning import Trainer

from faceattr_lightning.callbacks.task_weighting.base import DynamicWeighting

if TYPE_CHECKING:
    from faceattr_lightning.models.module import AttributeModule


class InversePrevalenceWeighting(DynamicWeighting):
    """``w_j = (1 / p_j)^power`` over the share p_j of positives among the training labels, scaled to mean 1; static.

    The usual heuristic against imbalance, here between attributes, not between the classes of one. An attribute without
    a positive, or without a label, in training has the mean of the others.

    Args:
        attributes: see `TaskWeighting`, like ``group_of`` and ``tasks``.
        group_of: not used.
        tasks: not used.
        power: of at least 0; 1/2 is the gentler usual choice.
        floor: least weight, before the last scaling.
        ceiling: greatest weight, before the last scaling.

    Raises:
        ConfigError: a value out of its range.
    """

    def __init__(
        self,
        attributes: int,
        group_of: Sequence[int] = (),
        tasks: Sequence[str] = (),
        power: float = 1.0,
        floor: float = 0.0,
        ceiling: float = float("inf"),
    ) -> None:
        problems = [f"weighting.power: expected a number of at least 0, found {power}."] if power < 0 else []
        super().__init__(attributes, group_of, tasks, problems=problems, floor=floor, ceiling=ceiling)
        self.power = power

    def on_fit_start(self, trainer: Trainer, pl_module: AttributeModule) -> None:  # type: ignore[override]
        prevalence = pl_module.train_prevalence.double()
        known = prevalence > 0
        if known.any():
            inverse = prevalence[known] ** -self.power
            weights = torch.ones_like(prevalence)
            weights[known] = inverse / inverse.mean()
            self.change(weights)
            self.remember()
