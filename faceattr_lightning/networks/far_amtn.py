"""FAR-AMTN: attention multi-task network (Gao, Wang, Liu, Zhao, arXiv 2601.01537, CVIU 104426).

Published: on ResNet-50, conv1 to conv4 are shared. WSGSA, weight-shared group-specific attention, stands in for the
last bottleneck of conv5: from ``Z = GAP(X)`` each attribute group g has its own squeeze-and-excite gate
``Psi_g = sigmoid(FC2_g(relu(FC1_g(Z))))``, C to C/16 to C; one convolution f is shared by all groups, and
``X'_g = f(X) * Psi_g``. One fully connected head per group. CGFF fuses features across groups. DWS weighs groups so
that tasks converge together (`faceattr_lightning.callbacks.task_weighting.DWSWeighting`). The claim: better accuracy
with far fewer parameters than cloning the high-level modules for each group.

Ours, not the paper's: f is the whole last block, with its weights; layers that a backbone has behind its last stage
(EfficientNet's last 1x1 convolution) are shared; ``h_g = GAP(X'_g)`` is projected to 512 by one projection for all
groups; what CGFF computes, and its alternatives; the groups and their membership; the head of age groups.
"""

from __future__ import annotations

import copy
from typing import Literal

import torch
from torch import Tensor, nn

from faceattr_lightning.networks.backbone import Backbone, LastBlock
from faceattr_lightning.networks.heads import GroupHeads, LogitLayer
from faceattr_lightning.networks.output import Output

Attention = Literal["shared", "separate", "none"]
Fusion = Literal["attention", "gated_mean", "concatenation", "none"]

REDUCTION = 16
"""C / C' of the gates' bottleneck. Published."""


class GroupGate(nn.Module):
    """A group's squeeze-and-excite gate: ``sigmoid(FC2(relu(FC1(Z))))``. Published.

    Args:
        channels: of the block's input, from which Z is pooled.
        outputs: of the block's output, which is gated.
    """

    def __init__(self, channels: int, outputs: int) -> None:
        super().__init__()
        squeezed = max(1, channels // REDUCTION)
        self.squeeze, self.excite = nn.Linear(channels, squeezed), nn.Linear(squeezed, outputs)

    def forward(self, pooled: Tensor) -> Tensor:
        """Return float (B, outputs) in (0, 1) for float (B, channels)."""
        return torch.sigmoid(self.excite(torch.relu(self.squeeze(pooled))))


class WSGSA(LastBlock):
    """Weight-shared group-specific attention, in the place of a backbone's last block.

    It holds K feature maps: many small groups on large images take memory accordingly.

    Args:
        block: f.
        channels: of its input.
        outputs: of its output.
        groups: number of groups K.
        attention: ``shared`` one f for all groups (published); ``separate`` a copy of f per group, as in networks that
            clone; ``none`` no gates, so that every group has the same features.
    """

    def __init__(self, block: nn.Module, channels: int, outputs: int, groups: int, attention: Attention) -> None:
        copies = groups - 1 if attention == "separate" else 0
        super().__init__([block, *(copy.deepcopy(block) for _ in range(copies))])
        gates = 0 if attention == "none" else groups
        self.gates = nn.ModuleList(GroupGate(channels, outputs) for _ in range(gates))

    def forward(self, features: Tensor) -> Tensor:
        """Return ``X'_g`` of every group, one group's batch behind the other's: (B, C, h, w) to (K * B, C', h, w);
        without gates (B, C', h, w).
        """
        outputs: list[Tensor] = [block(features) for block in self.blocks]
        if not len(self.gates):
            return outputs[0]
        pooled = features.mean(dim=(2, 3))
        outputs = outputs * (len(self.gates) // len(outputs))
        gated = [output * gate(pooled)[:, :, None, None] for gate, output in zip(self.gates, outputs, strict=True)]
        return torch.cat(gated)


class CrossGroupFusion(nn.Module):
    """CGFF: fuses the features of the groups. Published is that; each ``kind`` is our reading.

    Args:
        groups: number of groups K.
        width: D, of a group's vector.
        kind: ``attention`` one multi-head attention layer over the K vectors; ``gated_mean`` the mean of the other
            groups, times a gate; ``concatenation`` a linear layer over all K vectors; each is added to the group's own
            vector, which is then normalised. ``none`` leaves the vectors as they are.
    """

    def __init__(self, groups: int, width: int, kind: Fusion) -> None:
        super().__init__()
        self.kind = kind
        self.layer: nn.Module = nn.Identity()
        if kind == "attention":
            self.layer = nn.MultiheadAttention(width, num_heads=8 if width % 8 == 0 else 1, batch_first=True)
        elif kind == "gated_mean":
            self.layer = nn.Linear(2 * width, width)
        elif kind == "concatenation":
            self.layer = nn.Linear(groups * width, width)
        self.norm = nn.Identity() if kind == "none" else nn.LayerNorm(width)

    def forward(self, groups: Tensor) -> Tensor:
        """Return float (B, K, D) for float (B, K, D)."""
        if self.kind == "none":
            return groups
        if self.kind == "attention":
            fused = self.layer(groups, groups, groups, need_weights=False)[0]
        elif self.kind == "gated_mean":
            others = (groups.sum(dim=1, keepdim=True) - groups) / max(1, groups.shape[1] - 1)
            fused = torch.sigmoid(self.layer(torch.cat([groups, others], dim=2))) * others
        else:
            fused = self.layer(groups.flatten(1))[:, None]
        normalised: Tensor = self.norm(groups + fused)
        return normalised


class FARAMTNNetwork(nn.Module):
    """Shared stages, WSGSA, CGFF and a head per group.

    With the defaults, one more group costs a `GroupGate` and a head, nothing else.

    Args:
        backbone: any with stages of blocks (the paper's: ResNet-50); its last block is replaced.
        columns: for each group the columns of the logits that it predicts; together each column once.
        age_groups: number of age groups G, predicted from the mean of the group vectors; 0 leaves them out.
        attention: see `WSGSA`.
        fusion: see `CrossGroupFusion`.
        width: D, of a group's vector.
        dropout: probability in [0, 1), before the heads.
    """

    def __init__(
        self,
        backbone: Backbone,
        columns: dict[str, list[int]],
        age_groups: int = 0,
        attention: Attention = "shared",
        fusion: Fusion = "attention",
        width: int = 512,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        groups = len(columns)
        backbone.replace_last_block(lambda block, inputs, outputs: WSGSA(block, inputs, outputs, groups, attention))
        self.backbone, self.groups = backbone, groups
        self.projection = nn.Linear(backbone.channels, width)
        self.fusion = CrossGroupFusion(groups, width, fusion)
        self.heads = GroupHeads(list(columns.values()), width, dropout)
        self.age_head = LogitLayer(width, age_groups) if age_groups else None

    def forward(self, image: Tensor) -> Output:
        """Return ``logits`` float (B, A) for images (B, 3, H, W) in the range 0 to 255; see `Output`."""
        pooled = self.backbone(image).mean(dim=(2, 3))
        # The groups' batches stand one behind the other, or there is one that all of them share.
        per_group = pooled.unflatten(0, (-1, len(image))).transpose(0, 1).expand(-1, self.groups, -1)
        fused = self.fusion(self.projection(per_group))
        output: Output = {"logits": self.heads(fused)}
        if self.age_head is not None:
            output["age_group"] = self.age_head(fused.mean(dim=1))
        return output

    def costs(self) -> dict[str, int]:
        """Return numbers of parameters: ``gate`` of one group's gate, ``last_stage`` what cloning it would cost."""
        gates = [module for module in self.backbone.modules() if isinstance(module, GroupGate)]
        gate = sum(parameter.numel() for parameter in gates[0].parameters()) if gates else 0
        return {"gate": gate, "last_stage": self.backbone.last_stage_parameters()}
