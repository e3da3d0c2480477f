"""Losses that leave out what is not labelled."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def attribute_bce(logits: Tensor, labels: Tensor) -> Tensor:
    """Return each attribute's binary cross-entropy, averaged over the samples that carry its label.

    The batch is one rank's: DDP then averages ranks, which weigh alike however many labels of theirs are missing.

    Args:
        logits: float (B, A).
        labels: (B, A) in {0, 1, -1}; -1 is left out.

    Returns:
        float (A,), in nats; 0 for an attribute without a label, which then has no gradient either.
    """
    labelled = labels >= 0
    losses = functional.binary_cross_entropy_with_logits(logits, labels.clamp(min=0).to(logits.dtype), reduction="none")
    return (losses * labelled).sum(dim=0) / labelled.sum(dim=0).clamp(min=1)


def landmark_smooth_l1(predicted: Tensor, target: Tensor, valid: Tensor, beta: float) -> Tensor:
    """Return the smooth L1 distance over the coordinates of the valid landmarks.

    Args:
        predicted: float (B, L, 2), fractions of the crop.
        target: float (B, L, 2).
        valid: bool (B, L).
        beta: error, as a fraction of the crop, at which the loss turns from quadratic to linear.

    Returns:
        float scalar; 0 if no landmark is valid.
    """
    losses = functional.smooth_l1_loss(predicted, target.to(predicted.dtype), beta=beta, reduction="none").sum(dim=-1)
    return (losses * valid).sum() / (2 * valid.sum().clamp(min=1))


def landmark_error(predicted: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Return each sample's normalised mean landmark error.

    Args:
        predicted: float (B, L, 2), fractions of the crop; landmarks 0 and 1 are the eyes.
        target: float (B, L, 2).
        valid: bool (B, L).

    Returns:
        float (B,): mean distance over the sample's landmarks, in units of the distance between the eyes; NaN for a
        sample that lacks one of them.
    """
    between_eyes = (target[:, 0] - target[:, 1]).norm(dim=-1)
    error = (predicted - target).norm(dim=-1).mean(dim=-1) / between_eyes.clamp(min=1e-6)
    return torch.where(valid.all(dim=-1) & (between_eyes > 0), error, torch.nan)
