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

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from lightning import Callback
from torch import Tensor, nn
from torch.nn import functional

from faceattr_lightning.callbacks.mask_pretraining import MaskPretraining
from faceattr_lightning.data.batch import Batch
from faceattr_lightning.errors import ConfigError, did_you_mean
from faceattr_lightning.models.backbone import Backbone
from faceattr_lightning.models.face_masks import PARTS, TEMPLATE_LANDMARKS, draw_masks, random_masks
from faceattr_lightning.models.heads import GroupHeads, LogitLayer
from faceattr_lightning.models.mask_network import MaskNetwork, mask_iou, mask_loss
from faceattr_lightning.models.module import CHECKPOINT_KEY, AttributeModule
from faceattr_lightning.models.output import Output

log = logging.getLogger(__name__)

Masks = Literal["learned", "template", "random", "none"]
Fusion = Literal["both", "group", "global"]

PARTS_OF_GROUP: dict[str, tuple[str, ...]] = {
    **{part: (part,) for part in PARTS},
    "around_head": ("hair", "ear", "lower_face"),
    "facial_hair": ("lower_face",),
    "fat": ("cheeks", "lower_face"),
    "upper": ("hair", "eyes"),
    "middle": ("nose", "cheeks", "ear"),
    "lower": ("mouth", "lower_face"),
}
"""The parts that the mask of a group of a named grouping unites; of any other group it is the whole object. Ours, but
for the eight."""


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


def parts_of_groups(groups: Sequence[str], parts: Mapping[str, Sequence[str]] | None = None) -> list[tuple[str, ...]]:
    """Return the parts that each group's mask unites.

    Args:
        groups: K names.
        parts: by group, for groups that `PARTS_OF_GROUP` does not know or that are to have others.

    Raises:
        ConfigError: ``parts`` names a group or a part that there is not.
    """
    given = parts or {}
    problems = [
        f"model.parts: there is no group '{group}'.{did_you_mean(group, groups)}"
        for group in given.keys() - set(groups)
    ]
    for group, members in given.items():
        problems += [
            f"model.parts.{group}: there is no part '{part}'.{did_you_mean(part, PARTS)} Known: {', '.join(PARTS)}."
            for part in members
            if part not in PARTS
        ]
        if not members:
            problems.append(f"model.parts.{group}: the list is empty; known: {', '.join(PARTS)}.")
    if problems:
        raise ConfigError(sorted(problems))
    return [tuple(given.get(group) or PARTS_OF_GROUP.get(group) or ("object",)) for group in groups]


class MGMTN(AttributeModule):
    """`MGMTNNetwork` trained with binary cross-entropies; for the other arguments see `AttributeModule`.

    Its mask network is trained first, by `MaskPretraining`, and frozen; or with the rest (``joint``); or taken from a
    checkpoint. Data without landmarks has nothing to learn masks from: then ``learned`` gives way to ``template``, with
    a warning.

    Args:
        groups: the paper's eight, ``face_parts``; any other grouping works (see `PARTS_OF_GROUP`).
        landmarks: number of landmarks L that the data has; 0 for none.
        parts: group to the parts that its mask unites, for groups of one's own.
        masks: ``learned`` (published); and the controls ``template``, the masks of the mean face, ``random`` ones of
            equal area, and ``none``. Template and random masks are the same for every image.
        joint: train the mask network with the rest, instead of before and frozen.
        mask_epochs: of training the mask network before.
        mask_lr: its peak learning rate then.
        mask_width: channels of its first level.
        mask_weight: of the mask loss in joint training.
        mask_checkpoint: a checkpoint of this model for the same groups, whose mask network is taken as it is.
        fusion: see `MGMTNNetwork`, like ``width`` and ``dropout``.

    Raises:
        ConfigError: unknown parts, a number of landmarks from which masks can't be drawn, or numbers out of range.
    """

    backbone_needs = "scales"
    network: MGMTNNetwork

    def __init__(
        self,
        attribute_names: list[str],
        backbone: dict[str, Any],
        preprocessing: dict[str, Any],
        groups: str | dict[str, list[str]] | None = "face_parts",
        weighting: dict[str, Any] | None = None,
        calibration: dict[str, Any] | None = None,
        optimizer: dict[str, Any] | None = None,
        schedule: dict[str, Any] | None = None,
        age_groups: list[str] | None = None,
        landmarks: int = 5,
        parts: dict[str, list[str]] | None = None,
        masks: Masks = "learned",
        joint: bool = False,
        mask_epochs: int = 3,
        mask_lr: float = 1e-2,
        mask_width: int = 16,
        mask_weight: float = 10.0,
        mask_checkpoint: str | None = None,
        fusion: Fusion = "both",
        width: int = 512,
        dropout: float = 0.2,
    ) -> None:
        tasks = ("masks",) if joint and masks == "learned" else ()
        super().__init__(
            attribute_names, preprocessing, groups, weighting, calibration, optimizer, schedule, age_groups, tasks
        )
        self.save_hyperparameters(logger=False)
        self.parts = parts_of_groups(list(self.groups), parts)
        if mask_checkpoint is not None and masks != "learned":
            raise ConfigError([f"model.mask_checkpoint: masks that are '{masks}' take none; leave it out."])
        if joint and masks == "learned" and not landmarks:
            raise ConfigError(["model.joint: the data has no landmarks to learn masks from; see task=annotate."])
        self.learns_masks = masks == "learned" and (landmarks > 0 or mask_checkpoint is not None)
        if masks == "learned" and not self.learns_masks:
            log.warning(
                "mgmtn: the data has no landmarks to draw masks from, so that every image gets those of the mean face. "
                "task=annotate finds landmarks; then set data.landmark_file."
            )
        self.joint, self.mask_weight, self.mask_checkpoint = joint, mask_weight, mask_checkpoint
        self.pretraining = MaskPretraining(mask_epochs, mask_lr)
        source: MaskNetwork | Tensor | None = None
        if self.learns_masks:
            source = MaskNetwork(len(self.groups), self._mean_masks(), mask_width).requires_grad_(joint)
        elif masks != "none":
            source = self._mean_masks()
            source = random_masks(source, seed=0) if masks == "random" else source
        self.network = MGMTNNetwork(
            self.make_backbone(backbone), self.columns, source, len(self.age_groups), fusion, width, dropout
        )

    @property
    def own_callbacks(self) -> list[Callback]:
        """Also trains the mask network, unless it is there or is trained with the rest."""
        trains = self.learns_masks and not self.joint and self.mask_checkpoint is None
        return [*super().own_callbacks, *([self.pretraining] if trains else [])]

    def load_pretrained(self, pretrained: bool | str) -> None:
        super().load_pretrained(pretrained)
        if self.mask_checkpoint is not None and self.network.mask_network is not None:
            state, network = read_mask_network(self.mask_checkpoint, self.parts), self.network.mask_network
            assert network.prior is not None
            # Of images of another size, perhaps.
            state["prior"] = functional.interpolate(state["prior"], network.prior.shape[-2:], mode="bilinear")
            try:
                network.load_state_dict(state)
            except RuntimeError as error:
                problem = f"model.mask_checkpoint: {self.mask_checkpoint} has another model.mask_width; set it so."
                raise ConfigError([problem]) from error

    def with_annotations(self, mask_logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Return predicted and drawn masks at one size, half of the image's as in the network's first level.

        Args:
            mask_logits: float (B, K, H, W).
            batch: with landmarks.

        Returns:
            logits float (B, K, h, w), masks bool (B, K, h, w), and bool (B,), whether all landmarks of a face are
            known; the masks of another face are meaningless.
        """
        size = self.preprocessing.image_size // 2
        masks = draw_masks(batch["landmarks"].float(), self.parts, size)
        return functional.adaptive_avg_pool2d(mask_logits, size), masks, batch["landmarks_valid"].all(dim=1)

    def extra_losses(self, output: Output, batch: Batch) -> dict[str, Tensor]:
        if not (self.joint and "mask_logits" in output):
            return {}
        return {"masks": self.mask_weight * mask_loss(*self.with_annotations(output["mask_logits"], batch))}

    def measures(self, output: Output, batch: Batch) -> dict[str, Tensor]:
        """Also, for learned masks, ``mask_iou_<group>``: intersection over union with the annotation, ``mask_iou``,
        their mean, and ``mask_iou_of_mean_face``, that mean for the masks of the mean face as a constant answer.
        """
        found = super().measures(output, batch)
        if "mask_logits" in output and batch["landmarks"].shape[1]:
            logits, masks, valid = self.with_annotations(output["mask_logits"], batch)
            iou = mask_iou(logits > 0, masks, valid)
            found["mask_iou"] = iou.nanmean(dim=1)
            network = self.network.mask_network
            assert network is not None and network.prior is not None
            mean_face = functional.adaptive_avg_pool2d(network.prior, masks.shape[-1]) > 0
            found["mask_iou_of_mean_face"] = mask_iou(mean_face.expand_as(masks), masks, valid).nanmean(dim=1)
            found |= {f"mask_iou_{group}": column for group, column in zip(self.groups, iou.unbind(dim=1), strict=True)}
        return found

    def _mean_masks(self) -> Tensor:
        """Return the masks of the mean face, float (K, S, S)."""
        mean_face = torch.tensor(self.preprocessing.template or TEMPLATE_LANDMARKS)
        return draw_masks(mean_face[None], self.parts, self.preprocessing.image_size)[0].float()


def read_mask_network(path: str, parts: Sequence[tuple[str, ...]]) -> dict[str, Tensor]:
    """Return the state of the mask network in an `MGMTN` checkpoint.

    Args:
        path: of the checkpoint.
        parts: what the masks have to show.

    Raises:
        ConfigError: the file is no checkpoint of an MGMTN with learned masks, or its masks are those of other groups.
    """
    from faceattr_lightning.tasks.checkpoint import read_checkpoint

    checkpoint = read_checkpoint(Path(path).expanduser(), "model.mask_checkpoint")
    prefix = "network.mask_network."
    state = {
        name.removeprefix(prefix): tensor
        for name, tensor in checkpoint["state_dict"].items()
        if name.startswith(prefix)
    }
    if not state:
        raise ConfigError([f"model.mask_checkpoint: {path} holds no mask network; take one of model=mgmtn."])
    groups = checkpoint[CHECKPOINT_KEY]["groups"]
    predicted = parts_of_groups(list(groups), checkpoint["hyper_parameters"]["parts"])
    if predicted != list(parts):
        there, here = ("; ".join("+".join(mask) for mask in masks) for masks in (predicted, parts))
        raise ConfigError(
            [
                f"model.mask_checkpoint: {path} predicts masks for other groups ({there}) than this model has "
                f"({here}). Take a checkpoint of the same model.groups and model.parts, or leave it out."
            ]
        )
    return state
