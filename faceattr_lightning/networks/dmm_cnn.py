"""DMM-CNN: deep multi-task multi-label CNN (Mao, Yan, Xue, Wang, arXiv 2002.03683, IEEE Trans. Affective Computing).

Published: landmarks and attributes are learned jointly from one trunk; attributes are split into objective and
subjective ones with a feature-extraction architecture each, since they differ in learning complexity; a dynamic
weighting scheme gives each attribute its loss weight (`faceattr_lightning.callbacks.task_weighting`) and an adaptive
thresholding strategy counters class imbalance (`faceattr_lightning.callbacks.threshold_calibration`).

The weighting formula is its ancestor's (He et al., ACM MM 2017).

Ours, not the paper's: the threshold rule, the sizes of the branches and their batch normalisation, which of them
carries the pyramid, the landmark head, the smooth L1 and binary cross-entropy losses (the paper used squared errors),
and the membership of the two groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from faceattr_lightning.networks.backbone import Backbone
from faceattr_lightning.networks.heads import InAttributeOrder, LogitLayer, hidden_layer, pooled_head
from faceattr_lightning.networks.output import Output

Pyramid = Literal["objective", "subjective", "both", "none"]


class SpatialPyramidPooling(nn.Module):
    """Max pooling into grids of several sizes (He et al., ECCV 2014), so that coarse and fine location both survive.

    Args:
        levels: bins per side; 1, 2, 4 give 1 + 4 + 16 = 21 bins.
    """

    def __init__(self, levels: Sequence[int] = (1, 2, 4)) -> None:
        super().__init__()
        self.levels = tuple(levels)
        self.bins = sum(level * level for level in self.levels)

    def forward(self, features: Tensor) -> Tensor:
        """Return float (B, C * `bins`) for float (B, C, h, w)."""
        return torch.cat([functional.adaptive_max_pool2d(features, level).flatten(1) for level in self.levels], dim=1)


def pyramid_branch(channels: int, outputs: int, hidden: int, reduced: int, dropout: float) -> nn.Sequential:
    """Return 1x1 convolution, spatial pyramid, one hidden layer, logits: (B, channels, h, w) to (B, outputs). Ours."""
    pyramid = SpatialPyramidPooling()
    return nn.Sequential(
        nn.Conv2d(channels, reduced, kernel_size=1, bias=False),
        nn.BatchNorm2d(reduced),
        nn.ReLU(inplace=True),
        pyramid,
        *hidden_layer(reduced * pyramid.bins, hidden),
        nn.Dropout(dropout),
        LogitLayer(hidden, outputs),
    )


def pooled_branch(channels: int, outputs: int, hidden: int, dropout: float) -> nn.Sequential:
    """Return global pooling, three hidden layers, logits: (B, channels, h, w) to (B, outputs). Ours."""
    layers: list[nn.Module] = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    for width in (channels, hidden, hidden):
        layers += hidden_layer(width, hidden)
    return nn.Sequential(*layers, nn.Dropout(dropout), LogitLayer(hidden, outputs))


class DMMCNNNetwork(nn.Module):
    """One trunk, a branch per attribute group and a landmark head.

    Args:
        backbone: the trunk (the reading of the paper: ResNet-50 through its last stage).
        columns: for each group, such as ``objective`` and ``subjective``, the columns of the logits that it predicts;
            together each column once.
        mean_shape: (L, 2) mean landmark positions as fractions of the crop, from which the landmark head starts; empty
            leaves the head out.
        age_groups: number of age groups G, predicted from the trunk by one linear layer; 0 leaves it out.
        pyramid: which branches pool into a spatial pyramid.
        hidden: width of the fully connected layers.
        pyramid_channels: width of the 1x1 convolution before the pyramid.
        dropout: probability in [0, 1), before the logits.
    """

    def __init__(
        self,
        backbone: Backbone,
        columns: dict[str, list[int]],
        mean_shape: Sequence[Sequence[float]] = (),
        age_groups: int = 0,
        pyramid: Pyramid = "objective",
        hidden: int = 1024,
        pyramid_channels: int = 256,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.branches = nn.ModuleList(
            pyramid_branch(backbone.channels, len(members), hidden, pyramid_channels, dropout)
            if pyramid in (group, "both")
            else pooled_branch(backbone.channels, len(members), hidden, dropout)
            for group, members in columns.items()
        )
        # As the trunk's: DDP wants gradients in the same order in memory as weights.
        self.branches.to(memory_format=torch.channels_last)
        self.order = InAttributeOrder(list(columns.values()))
        self.age_head = pooled_head(backbone.channels, age_groups) if age_groups else None
        self.landmark_head: nn.Sequential | None = None
        if len(mean_shape):
            regression = LogitLayer(backbone.channels, 2 * len(mean_shape))
            nn.init.normal_(regression.weight, std=0.001)
            with torch.no_grad():
                regression.bias.copy_(torch.tensor(mean_shape).flatten())
            self.landmark_head = nn.Sequential(
                nn.AdaptiveAvgPool2d(1), nn.Flatten(), regression, nn.Unflatten(1, (len(mean_shape), 2))
            )

    def forward(self, image: Tensor) -> Output:
        """Return ``logits`` float (B, A), ``landmarks`` float (B, L, 2) and, where there are age groups, theirs for
        images (B, 3, H, W) of 0 to 255.
        """
        features = self.backbone(image)
        output: Output = {"logits": self.order([branch(features) for branch in self.branches])}
        if self.age_head is not None:
            output["age_group"] = self.age_head(features)
        if self.landmark_head is not None:
            output["landmarks"] = self.landmark_head(features)
        return output
