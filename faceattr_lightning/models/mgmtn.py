"""MGMTN in training; for what is published of it see `faceattr_lightning.networks.mgmtn`."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning import Callback
from torch import Tensor
from torch.nn import functional

from faceattr_lightning.callbacks.mask_pretraining import MaskPretraining
from faceattr_lightning.checkpoint import CHECKPOINT_KEY, read_checkpoint
from faceattr_lightning.data.batch import Batch
from faceattr_lightning.errors import ConfigError, did_you_mean
from faceattr_lightning.models.losses import mask_iou, mask_loss
from faceattr_lightning.models.module import AttributeModule
from faceattr_lightning.networks.face_masks import PARTS, TEMPLATE_LANDMARKS, draw_masks
from faceattr_lightning.networks.mgmtn import Fusion, Masks, MGMTNNetwork
from faceattr_lightning.networks.output import Output

log = logging.getLogger(__name__)

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
        self.network = self.make_network(
            {
                "_target_": "faceattr_lightning.networks.mgmtn.MGMTNNetwork",
                "masks": {
                    "_target_": "faceattr_lightning.networks.mgmtn.make_masks",
                    "kind": "template" if masks == "learned" and not self.learns_masks else masks,
                    "parts": self.parts,
                    "mean_face": self.preprocessing.template or TEMPLATE_LANDMARKS,
                    "size": self.preprocessing.image_size,
                    "width": mask_width,
                },
                "backbone": self.backbone_node(backbone),
                "columns": self.columns,
                "age_groups": len(self.age_groups),
                "fusion": fusion,
                "width": width,
                "dropout": dropout,
            }
        )
        if self.network.mask_network is not None:
            self.network.mask_network.requires_grad_(joint)

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


def read_mask_network(path: str, parts: Sequence[tuple[str, ...]]) -> dict[str, Tensor]:
    """Return the state of the mask network in an `MGMTN` checkpoint.

    Args:
        path: of the checkpoint.
        parts: what the masks have to show.

    Raises:
        ConfigError: the file is no checkpoint of an MGMTN with learned masks, or its masks are those of other groups.
    """
    checkpoint = read_checkpoint(Path(path).expanduser(), "model.mask_checkpoint", folder=False)
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
