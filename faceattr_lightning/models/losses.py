"""Losses, and measures of the same targets, that leave out what is not labelled."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def summed_over_ranks(values: Tensor) -> Tensor:
    """Return the sum of a tensor over the ranks of the job; every rank has to call it."""
    if torch.distributed.is_initialized():
        values = values.clone()
        torch.distributed.all_reduce(values)
    return values


def labelled_count(labelled: Tensor) -> Tensor:
    """Return how many samples of a step carry each label, per rank on average.

    A rank's sum of losses over this count, averaged over ranks as DDP does, is the mean over the step's labelled
    samples, however they are spread over the ranks. Every rank has to call it.

    Args:
        labelled: bool (B, ...), this rank's.

    Returns:
        float (...), 1 where no rank has a label.
    """
    ranks = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    count = summed_over_ranks(labelled.sum(dim=0).float()) / ranks
    return torch.where(count > 0, count, 1.0)


def attribute_bce(logits: Tensor, labels: Tensor, count: Tensor | None = None) -> Tensor:
    """Return each attribute's binary cross-entropy, averaged over the samples that carry its label.

    Args:
        logits: float (B, A).
        labels: (B, A) in [0, 1], or -1, which is left out.
        count: float (A,), what the sum is divided by, as of `labelled_count`; ``None`` takes this batch's own.

    Returns:
        float (A,), in nats; 0 for an attribute without a label, which then has no gradient either.
    """
    labelled = labels >= 0
    losses = functional.binary_cross_entropy_with_logits(logits, labels.clamp(min=0).to(logits.dtype), reduction="none")
    return (losses * labelled).sum(dim=0) / (labelled.sum(dim=0).clamp(min=1) if count is None else count)


def age_group_loss(logits: Tensor, age_group: Tensor) -> Tensor:
    """Return the cross-entropy over the age groups, averaged over the step's samples that carry one.

    Args:
        logits: float (B, G).
        age_group: int64 (B,), -1 where not labelled.

    Returns:
        float scalar, in nats; 0 without a label. Of a rank as `labelled_count` has it.
    """
    total = functional.cross_entropy(logits, age_group, ignore_index=-1, reduction="sum")
    return total / labelled_count(age_group >= 0)


def landmark_smooth_l1(predicted: Tensor, target: Tensor, valid: Tensor, beta: float) -> Tensor:
    """Return the smooth L1 distance over the coordinates of the valid landmarks.

    Args:
        predicted: float (B, L, 2), fractions of the crop.
        target: float (B, L, 2).
        valid: bool (B, L).
        beta: error, as a fraction of the crop, at which the loss turns from quadratic to linear.

    Returns:
        float scalar, of a rank as `labelled_count` has it; 0 if no landmark is valid.
    """
    losses = functional.smooth_l1_loss(predicted, target.to(predicted.dtype), beta=beta, reduction="none").sum(dim=-1)
    return (losses * valid).sum() / (2 * labelled_count(valid.flatten()))


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


def mask_loss(logits: Tensor, masks: Tensor, valid: Tensor) -> Tensor:
    """Return binary cross-entropy plus Dice loss, each averaged over the groups and the valid samples. Ours.

    The Dice loss of a mask is 1 - (2 sum(p m) + 1) / (sum(p) + sum(m) + 1) over its pixels; the ones keep an empty mask
    from dividing by 0.

    Args:
        logits: float (B, K, h, w).
        masks: (B, K, h, w), 0 or 1.
        valid: bool (B,), whether a sample's masks are known.

    Returns:
        float scalar, of a rank as `labelled_count` has it, so every rank has to call it; 0 without a valid sample.
    """
    logits = logits.float()
    target = masks.to(logits.dtype)
    cross_entropy = functional.binary_cross_entropy_with_logits(logits, target, reduction="none").mean(dim=(1, 2, 3))
    probability = logits.sigmoid()
    overlap, total = (probability * target).sum(dim=(2, 3)), (probability + target).sum(dim=(2, 3))
    dice = (1 - (2 * overlap + 1) / (total + 1)).mean(dim=1)
    return ((cross_entropy + dice) * valid).sum() / labelled_count(valid)


def mask_iou(predicted: Tensor, masks: Tensor, valid: Tensor) -> Tensor:
    """Return intersection over union of each mask.

    Args:
        predicted: bool (B, K, h, w).
        masks: bool (B, K, h, w).
        valid: bool (B,), whether a sample's masks are known.

    Returns:
        float (B, K), in [0, 1]; NaN for a sample that is not valid and where both masks are empty.
    """
    intersection, union = (predicted & masks).sum(dim=(2, 3)), (predicted | masks).sum(dim=(2, 3))
    return torch.where(valid[:, None] & (union > 0), intersection / union, torch.nan)
