"""The one definition of what a network returns."""

from __future__ import annotations

from typing import NotRequired, TypedDict

from torch import Tensor


class Output(TypedDict):
    """What a network says of B faces.

    Keys:
        logits: float (B, A), one per attribute.
        age_group: float (B, G), logits of the age groups; where the data has age groups.
        landmarks: float (B, L, 2), x then y as fractions of the crop; of networks with a landmark head.
        masks: float (B, K, H, W) in [0, 1], where each group of attributes looks; of `MGMTNNetwork`.
        mask_logits: float (B, K, H, W), the same before the sigmoid; where they are predicted.
        embeddings: float (B, A, D), the vector from which each attribute's logit is computed; of `MTLCNNNetwork`.
        age_embedding: float (B, D), the same for the age group.
    """

    logits: Tensor
    age_group: NotRequired[Tensor]
    landmarks: NotRequired[Tensor]
    masks: NotRequired[Tensor]
    mask_logits: NotRequired[Tensor]
    embeddings: NotRequired[Tensor]
    age_embedding: NotRequired[Tensor]
