"""Temperature scaling, one temperature an attribute."""

from __future__ import annotations

import torch
from torch import Tensor

LEAST, GREATEST = 0.05, 20.0
"""Bounds of a temperature: where a split is separated without an error, the best one would be 0."""
_STEPS = 50


def fit_temperatures(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the temperatures T_j at which ``sigmoid(z / T_j)`` is the most likely to give the labels, float64 (A,).

    Guo et al., ICML 2017, for each attribute by itself. The mean binary cross-entropy is convex in a = 1 / T, and its
    derivative, ``mean((sigmoid(a z) - y) z)``, is brought to 0 by Newton's method, each step at most doubling or
    halving a.

    Args:
        logits: float (N, A).
        labels: int8 (N, A) in {0, 1, -1}; -1 is left out.

    Returns:
        within `LEAST` and `GREATEST`; 1 for an attribute with fewer than two classes, or whose logits are all 0.
    """
    labelled = labels >= 0
    # A logit of 0 pulls at no temperature.
    scores = logits.double().cpu() * labelled
    positive = (labels == 1).double()
    inverse = torch.ones(scores.shape[1], dtype=torch.float64)
    for _ in range(_STEPS):
        probabilities = (inverse * scores).sigmoid()
        slope = ((probabilities - positive) * scores).sum(dim=0)
        bend = (probabilities * (1 - probabilities) * scores.square()).sum(dim=0)
        step = torch.where(bend > 0, slope / bend, torch.where(slope == 0, 0.0, slope.sign() * torch.inf))
        moved = (inverse - step).clamp(inverse / 2, inverse * 2).clamp(1 / GREATEST, 1 / LEAST)
        done = torch.allclose(moved, inverse, rtol=1e-9, atol=0)
        inverse = moved
        if done:
            break
    both = (positive.sum(dim=0) > 0) & (((1 - positive) * labelled).sum(dim=0) > 0)
    return torch.where(both & (scores != 0).any(dim=0), 1 / inverse, 1.0)
