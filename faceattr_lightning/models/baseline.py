"""The baseline: a backbone and one linear layer. What every claim is compared with."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from faceattr_lightning.models.backbone import Backbone
from faceattr_lightning.models.module import AttributeModule
from faceattr_lightning.models.output import Output


class BaselineNetwork(nn.Module):
    """Backbone, global average pooling, dropout, one linear layer.

    Args:
        backbone: any.
        attributes: number of attributes A.
        dropout: probability in [0, 1).
    """

    def __init__(self, backbone: Backbone, attributes: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout), nn.Linear(backbone.channels, attributes)
        )

    def forward(self, image: Tensor) -> Output:
        """Return ``logits`` float (B, A) for images (B, 3, H, W) in the range 0 to 255."""
        return {"logits": self.head(self.backbone(image))}


class Baseline(AttributeModule):
    """`BaselineNetwork` trained with binary cross-entropy; for the other arguments see `AttributeModule`.

    Args:
        dropout: before the linear layer.
    """

    def __init__(
        self,
        attribute_names: list[str],
        backbone: dict[str, Any],
        preprocessing: dict[str, Any],
        groups: str | dict[str, list[str]] | None = None,
        weighting: dict[str, Any] | None = None,
        calibration: dict[str, Any] | None = None,
        optimizer: dict[str, Any] | None = None,
        schedule: dict[str, Any] | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(attribute_names, preprocessing, groups, weighting, calibration, optimizer, schedule)
        self.save_hyperparameters(logger=False)
        self.network = BaselineNetwork(self.make_backbone(backbone), len(attribute_names), dropout)
