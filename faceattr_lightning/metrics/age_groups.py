"""The definitions of the metrics of age groups."""

from __future__ import annotations

import torch
from torch import Tensor


def age_group_measures(logits: Tensor, age_group: Tensor, train_shares: Tensor) -> dict[str, Tensor]:
    """Return whether each sample's age group is right, 1 or 0.

    Args:
        logits: float (B, G), age groups from the youngest to the oldest.
        age_group: int64 (B,), -1 where not labelled.
        train_shares: float (G,), share of each age group in the training split, which decides the constant answer.

    Returns:
        float (B,) each, NaN where not labelled: ``age_accuracy`` exact; ``age_one_off_accuracy`` exact or the next
        group, as Adience's authors count (Eidinger et al., TIFS 2014); ``age_majority_accuracy`` of the training
        split's most frequent group as a constant answer.
    """
    distance = (logits.argmax(dim=1) - age_group).abs()
    constant = train_shares.nan_to_num().argmax()
    right = {
        "age_accuracy": distance == 0,
        "age_one_off_accuracy": distance <= 1,
        "age_majority_accuracy": age_group == constant,
    }
    return {name: torch.where(age_group >= 0, value.float(), torch.nan) for name, value in right.items()}
