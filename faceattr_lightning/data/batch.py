"""The one definition of what a batch holds."""

from __future__ import annotations

from typing import NotRequired, TypedDict

from torch import Tensor


class Batch(TypedDict):
    """A batch of B faces with A attributes and L landmarks.

    Keys:
        image: (B, 3, H, W), uint8 or float32, both in the range 0 to 255; the network normalises. Of a frozen backbone
            perhaps its features instead, float32 (B, C, h, w); see `FrozenFeatures`.
        attributes: int8 (B, A): 1 present, 0 absent, -1 not labelled. Of mixed training images float32, see `augment`.
        landmarks: float32 (B, L, 2), x then y as fractions of the crop; meaningless where not valid.
        landmarks_valid: bool (B, L).
        identity: int64 (B,), -1 where unknown.
        index: int64 (B,), the row in the data set's table.
        age_group: int64 (B,), an index into the table's ``age_groups``, -1 where not labelled.
        database: int64 (B,), which of the fused data sets the sample is from; 0 where there is one.
        augmentation: float32 (B, K) in [0, 1): one random number per sample and parameter, drawn from (seed, epoch,
            position). Only in training batches, and only until `augment` has used it up.
    """

    image: Tensor
    attributes: Tensor
    landmarks: Tensor
    landmarks_valid: Tensor
    identity: Tensor
    index: Tensor
    age_group: Tensor
    database: Tensor
    augmentation: NotRequired[Tensor]
