"""MGMTN: mask-guided multi-task network (Gao, Wang, Zhao, Xie, Liu, Zhao, arXiv 2601.01408, Int. J. Mach. Learn. Cyb.).

Published: AML, adaptive mask learning: a keypoint model's 98 points yield mask annotations, a fully convolutional
network (a U-Net) with one head per group learns to predict binary masks of the input's size, and at inference no
annotation is needed. Eight groups: mouth, ear, lower face, cheeks, nose, eyes, hair, object. The backbone is
ResNeSt-50; at its last three scales the mask is resized to the feature map and multiplied in, ``G_i^j = resize(P_j) *
F_i``. G2FF, group-global feature fusion, combines each group's features with the global ones before its attributes are
classified.

Ours, not the paper's: masked *average* pooling, ``sum(G) / sum(P)``, since plain pooling would shrink small parts;
``g_j = FC_j(concat over scales)`` and ``global = FC(GAP(F_5))`` of 512, fused by ``z_j = a g_j + (1 - a) global`` with
``a = sigmoid(W [g_j; global])``; masks of soft edges, a sigmoid's, instead of binary ones; that the U-Net starts from
the mean face; the mask loss; that the U-Net is trained first and frozen; masks from 68 or five
points; the membership of the groups, the parts of other groupings' groups, and the head of age groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from faceattr_lightning.networks.backbone import Backbone
from faceattr_lightning.networks.face_masks import draw_masks, random_masks
from faceattr_lightning.networks.heads import GroupHeads, LogitLayer
from faceattr_lightning.networks.mask_network import MaskNetwork
from faceattr_lightning.networks.output import Output

Masks = Literal["learned", "template", "random", "none"]
Fusion = Literal["both", "group", "global"]


class MGMTNNetwork(nn.Module):
    """Backbone, masks, masked pooling at three scales, G2FF, a head per group.

    Args:
        backbone: any with feature maps at three scales (the paper's: ResNeSt-50).
        columns: for each of K groups the columns of the logits that it predicts; together each column once.
        masks: a `MaskNetwork` of K groups, constant masks float (K, S, S) in [0, 1], or ``None`` for none, where every
            group pools over the whole map.
        age_groups: number of age groups G, predicted from the global vector; 0 leaves them out.
        fusion: what a group's attributes are classified from: its own features, the global ones or both.
        width: D, of a group's vector.
        dropout: probability in [0, 1), before the heads.
    """

    constant_masks: Tensor | None

    def __init__(
        self,
        backbone: Backbone,
        columns: dict[str, list[int]],
        masks: MaskNetwork | Tensor | None,
        age_groups: int = 0,
        fusion: Fusion = "both",
        width: int = 512,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        channels, groups = backbone.scale_channels(), len(columns)
        self.backbone, self.groups = backbone, groups
        self.mask_network = masks if isinstance(masks, MaskNetwork) else None
        self.register_buffer("constant_masks", masks if isinstance(masks, Tensor) else None)
        self.group_layers = nn.ModuleList()
        if fusion != "global":
            self.group_layers.extend(nn.Linear(sum(channels), width) for _ in range(groups))
        self.global_layer = nn.Linear(channels[-1], width) if fusion != "group" or age_groups else None
        self.gate = nn.Linear(2 * width, width) if fusion == "both" else None
        self.fusion = fusion
        self.heads = GroupHeads(list(columns.values()), width, dropout)
        self.age_head = LogitLayer(width, age_groups) if age_groups else None

    def forward(self, image: Tensor) -> Output:
        """Return ``logits``, ``masks`` and, if they are learned, ``mask_logits`` for images (B, 3, H, W) of 0 to 255;
        see `Output`.
        """
        scales = self.backbone.scales(image)
        output: Output = {"logits": image.new_empty(0)}
        if self.mask_network is not None:
            output["mask_logits"] = self.mask_network(image)
            output["masks"] = output["mask_logits"].sigmoid()
        elif self.constant_masks is not None:
            output["masks"] = self.constant_masks.expand(len(image), -1, -1, -1)
        whole = None if self.global_layer is None else self.global_layer(scales[-1].mean(dim=(2, 3)))
        output["logits"] = self.heads(self._fused(scales, output.get("masks"), whole))
        if self.age_head is not None:
            output["age_group"] = self.age_head(whole)
        return output

    def _fused(self, scales: Sequence[Tensor], masks: Tensor | None, whole: Tensor | None) -> Tensor:
        """G2FF: return the groups' vectors, float (B, K, D)."""
        if self.fusion == "global":
            assert whole is not None
            return whole[:, None].expand(-1, self.groups, -1)
        pooled = torch.cat([masked_average(features, masks, self.groups) for features in scales], dim=2)
        groups = torch.stack([layer(pooled[:, group]) for group, layer in enumerate(self.group_layers)], dim=1)
        if self.gate is None or whole is None:
            return groups
        shared = whole[:, None].expand_as(groups)
        share = torch.sigmoid(self.gate(torch.cat([groups, shared], dim=2)))
        return share * groups + (1 - share) * shared


def masked_average(features: Tensor, masks: Tensor | None, groups: int) -> Tensor:
    """Return each group's average of a feature map over its mask, ``sum(P * F) / sum(P)``.

    Args:
        features: float (B, C, h, w).
        masks: float (B, K, H, W) in [0, 1], averaged down to the map; ``None`` averages over the whole map.
        groups: K.

    Returns:
        float (B, K, C); 0 where a mask is empty.
    """
    if masks is None:
        return features.mean(dim=(2, 3))[:, None].expand(-1, groups, -1)
    resized = functional.adaptive_avg_pool2d(masks, (features.shape[2], features.shape[3])).to(features.dtype)
    return torch.einsum("bchw,bkhw->bkc", features, resized) / resized.sum(dim=(2, 3)).clamp(min=1e-6)[:, :, None]


def make_masks(
    kind: Masks, parts: Sequence[Sequence[str]], mean_face: Sequence[Sequence[float]], size: int, width: int = 16
) -> MaskNetwork | Tensor | None:
    """Return what an `MGMTNNetwork` takes its masks from.

    Args:
        kind: ``learned`` a `MaskNetwork` that starts from the masks of the mean face; ``template`` those masks;
            ``random`` ones of equal area; ``none``.
        parts: for each of K groups the parts that its mask unites; see `draw_masks`.
        mean_face: (L, 2) landmarks, fractions of the crop.
        size: height and width in pixels, S, of constant masks and of those to start from.
        width: of the `MaskNetwork`.

    Returns:
        constant masks are float (K, S, S) in {0, 1}.
    """
    if kind == "none":
        return None
    masks = draw_masks(torch.tensor(mean_face)[None], parts, size)[0].float()
    if kind == "learned":
        return MaskNetwork(len(parts), masks, width)
    return random_masks(masks, seed=0) if kind == "random" else masks
