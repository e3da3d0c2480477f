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
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from faceattr_lightning.data.batch import Batch
from faceattr_lightning.errors import ConfigError
from faceattr_lightning.models.backbone import Backbone
from faceattr_lightning.models.losses import landmark_smooth_l1
from faceattr_lightning.models.module import AttributeModule
from faceattr_lightning.models.output import Output

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


def hidden_layer(inputs: int, outputs: int) -> list[nn.Module]:
    """Return a fully connected layer, normalised over the batch, without which the trunk behind three of them learns
    late: its gradient shrinks at each. Ours.
    """
    return [nn.Linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs), nn.ReLU(inplace=True)]


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
        nn.Linear(hidden, outputs),
    )


def pooled_branch(channels: int, outputs: int, hidden: int, dropout: float) -> nn.Sequential:
    """Return global pooling, three hidden layers, logits: (B, channels, h, w) to (B, outputs). Ours."""
    layers: list[nn.Module] = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    for width in (channels, hidden, hidden):
        layers += hidden_layer(width, hidden)
    return nn.Sequential(*layers, nn.Dropout(dropout), nn.Linear(hidden, outputs))


class DMMCNNNetwork(nn.Module):
    """One trunk, a branch per attribute group and a landmark head.

    Args:
        backbone: the trunk (the reading of the paper: ResNet-50 through its last stage).
        columns: for the groups ``objective`` and ``subjective``, the columns of the logits that it predicts; together
            each column once.
        mean_shape: (L, 2) mean landmark positions as fractions of the crop, from which the landmark head starts; empty
            leaves the head out.
        pyramid: which branches pool into a spatial pyramid.
        hidden: width of the fully connected layers.
        pyramid_channels: width of the 1x1 convolution before the pyramid.
        dropout: probability in [0, 1), before the logits.
    """

    position: Tensor

    def __init__(
        self,
        backbone: Backbone,
        columns: dict[str, list[int]],
        mean_shape: Sequence[Sequence[float]] = (),
        pyramid: Pyramid = "objective",
        hidden: int = 1024,
        pyramid_channels: int = 256,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.branches = nn.ModuleDict()
        for group, members in columns.items():
            if pyramid in (group, "both"):
                self.branches[group] = pyramid_branch(
                    backbone.channels, len(members), hidden, pyramid_channels, dropout
                )
            else:
                self.branches[group] = pooled_branch(backbone.channels, len(members), hidden, dropout)
        # As the trunk's: DDP wants gradients in the same order in memory as weights.
        self.branches.to(memory_format=torch.channels_last)
        order = torch.tensor([column for members in columns.values() for column in members])
        # The branches' outputs stand group after group; this brings them back to the attributes' order.
        self.register_buffer("position", order.argsort(), persistent=False)
        self.landmark_head: nn.Sequential | None = None
        if len(mean_shape):
            regression = nn.Linear(backbone.channels, 2 * len(mean_shape))
            nn.init.normal_(regression.weight, std=0.001)
            with torch.no_grad():
                regression.bias.copy_(torch.tensor(mean_shape).flatten())
            self.landmark_head = nn.Sequential(
                nn.AdaptiveAvgPool2d(1), nn.Flatten(), regression, nn.Unflatten(1, (len(mean_shape), 2))
            )

    def forward(self, image: Tensor) -> Output:
        """Return ``logits`` float (B, A) and ``landmarks`` float (B, L, 2) for images (B, 3, H, W) of 0 to 255."""
        features = self.backbone(image)
        logits = torch.cat([branch(features) for branch in self.branches.values()], dim=1)[:, self.position]
        output: Output = {"logits": logits}
        if self.landmark_head is not None:
            output["landmarks"] = self.landmark_head(features)
        return output


class DMMCNN(AttributeModule):
    """`DMMCNNNetwork` trained with sum_j w_j BCE_j + w_landmark * landmark loss.

    For the arguments that are not named here see `AttributeModule`. ``conf/model/dmm_cnn.yaml`` gives it DMM-CNN's
    weighting and calibration; the defaults here are none.

    Args:
        groups: must be the two groups ``objective`` and ``subjective`` (one alone is allowed).
        landmarks: number of landmarks L that the data has; 0 for none.
        landmark_weight: w_landmark. Ours.
        landmark_beta: where the smooth L1 loss turns linear, as a fraction of the crop. Ours.
        pyramid: see `DMMCNNNetwork`, like ``hidden``, ``pyramid_channels`` and ``dropout``.

    Raises:
        ConfigError: a group of another name.
    """

    def __init__(
        self,
        attribute_names: list[str],
        backbone: dict[str, Any],
        preprocessing: dict[str, Any],
        groups: str | dict[str, list[str]] | None = "objective_subjective",
        weighting: dict[str, Any] | None = None,
        calibration: dict[str, Any] | None = None,
        optimizer: dict[str, Any] | None = None,
        schedule: dict[str, Any] | None = None,
        landmarks: int = 5,
        landmark_weight: float = 100.0,
        landmark_beta: float = 0.05,
        pyramid: Pyramid = "objective",
        hidden: int = 1024,
        pyramid_channels: int = 256,
        dropout: float = 0.2,
    ) -> None:
        super().__init__(attribute_names, preprocessing, groups, weighting, calibration, optimizer, schedule)
        self.save_hyperparameters(logger=False)
        unknown = sorted(set(self.groups) - {"objective", "subjective"})
        if unknown:
            raise ConfigError(
                [f"model.groups: dmm_cnn has the groups objective and subjective, not '{name}'." for name in unknown]
            )
        self.landmark_weight, self.landmark_beta = landmark_weight, landmark_beta
        columns = {group: [attribute_names.index(name) for name in members] for group, members in self.groups.items()}
        # Without a template (no image has landmarks) the centre of the crop is the best guess.
        mean_shape = self.preprocessing.template or ((0.5, 0.5),) * landmarks
        self.network = DMMCNNNetwork(
            self.make_backbone(backbone),
            columns,
            mean_shape if landmarks else (),
            pyramid,
            hidden,
            pyramid_channels,
            dropout,
        )

    def extra_losses(self, output: Output, batch: Batch) -> dict[str, Tensor]:
        if "landmarks" not in output:
            return {}
        distance = landmark_smooth_l1(
            output["landmarks"], batch["landmarks"], batch["landmarks_valid"], self.landmark_beta
        )
        return {"landmarks": self.landmark_weight * distance}
