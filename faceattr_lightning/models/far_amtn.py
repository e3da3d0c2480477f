"""FAR-AMTN in training; for what is published of it see `faceattr_lightning.networks.far_amtn`."""

from __future__ import annotations

import logging
from typing import Any

from faceattr_lightning.models.module import AttributeModule
from faceattr_lightning.networks.far_amtn import Attention, FARAMTNNetwork, Fusion

log = logging.getLogger(__name__)


class FARAMTN(AttributeModule):
    """`FARAMTNNetwork` trained with weighted binary cross-entropies; for the other arguments see `AttributeModule`.

    ``conf/model/far_amtn.yaml`` gives it the paper's dynamic weighting scheme; the default here is none.

    Args:
        groups: ours is MGMTN's eight, ``face_parts``.
        attention: see `FARAMTNNetwork`, like ``fusion``, ``width`` and ``dropout``.
    """

    backbone_needs = "blocks"
    network: FARAMTNNetwork

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
        attention: Attention = "shared",
        fusion: Fusion = "attention",
        width: int = 512,
        dropout: float = 0.2,
    ) -> None:
        super().__init__(
            attribute_names, preprocessing, groups, weighting, calibration, optimizer, schedule, age_groups
        )
        self.save_hyperparameters(logger=False)
        self.network = self.make_network(
            {
                "_target_": "faceattr_lightning.networks.far_amtn.FARAMTNNetwork",
                "backbone": self.backbone_node(backbone),
                "columns": self.columns,
                "age_groups": len(self.age_groups),
                "attention": attention,
                "fusion": fusion,
                "width": width,
                "dropout": dropout,
            }
        )

    def on_fit_start(self) -> None:
        costs, groups = self.network.costs(), len(self.groups)
        total = sum(parameter.numel() for parameter in self.network.parameters())
        if self.trainer.is_global_zero:
            log.info(
                "far_amtn: %.2f M parameters with %d groups; a group costs %.3f M (its gate) and its head, where a "
                "clone of the last stage would cost %.2f M, %.2f M for all groups but the first",
                total / 1e6,
                groups,
                costs["gate"] / 1e6,
                costs["last_stage"] / 1e6,
                (groups - 1) * costs["last_stage"] / 1e6,
            )
