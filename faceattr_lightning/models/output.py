"""The one definition of what a network returns."""

from __future__ import annotations

from typing import NotRequired, TypedDict

from torch import Tensor


class Output(TypedDict):
    """What a network says of B faces.

    Keys:
        logits: float (B, A), one per attribute.
        landmarks: float (B, L, 2), x then y as fractions of the crop; of networks with a landmark head.
    """

    logits: Tensor
    landmarks: NotRequired[Tensor]
