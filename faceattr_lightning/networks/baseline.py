"""The baseline: a backbone and one linear layer. What every claim is compared with."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from faceattr_lightning.networks.backbone import Backbone
from faceattr_lightning.networks.heads import pooled_head
from faceattr_lightning.networks.output import Output


class BaselineNetwork(nn.Module):
    """Backbone, global average pooling, dropout, one linear layer; another one for age groups.

    Args:
        backbone: any.
        attributes: number of attributes A.
        age_groups: number of age groups G; 0 leaves their head out.
        dropout: probability in [0, 1).
        mirror: in eval mode, average the logits of each image and of its mirror image, for twice the time.
    """

    def __init__(
        self, backbone: Backbone, attributes: int, age_groups: int = 0, dropout: float = 0.0, mirror: bool = False
    ) -> None:
        super().__init__()
        self.mirror = mirror
        self.backbone = backbone
        self.head = pooled_head(backbone.channels, attributes, dropout)
        self.age_head = pooled_head(backbone.channels, age_groups, dropout) if age_groups else None

    def forward(self, image: Tensor) -> Output:
        """Return ``logits`` float (B, A) for images (B, 3, H, W) in the range 0 to 255; see `Output`."""
        if not self.mirror or self.training:
            return self.one_side(image)
        # As one batch: the int8 file of two passes holds every filter twice.
        output = self.one_side(torch.cat([image, image.flip(-1)]))
        output["logits"] = _mean_of_both(output["logits"])
        if "age_group" in output:
            output["age_group"] = _mean_of_both(output["age_group"])
        return output

    def one_side(self, image: Tensor) -> Output:
        """Return what `forward` does, of the images as they are."""
        features = self.backbone(image)
        output: Output = {"logits": self.head(features)}
        if self.age_head is not None:
            output["age_group"] = self.age_head(features)
        return output


def _mean_of_both(logits: Tensor) -> Tensor:
    return logits.reshape(2, -1, logits.shape[1]).mean(0)
