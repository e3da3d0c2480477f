"""The baseline in training; see `faceattr_lightning.networks.baseline`."""

from __future__ import annotations

from typing import Any

from faceattr_lightning.models.module import AttributeModule
from faceattr_lightning.networks.baseline import BaselineNetwork


class Baseline(AttributeModule):
    """`BaselineNetwork` trained with binary cross-entropy; for the other arguments see `AttributeModule`.

    Args:
        dropout: before the linear layer.
        mirror: see `BaselineNetwork`; a validation, a test and the exported network do it too.
    """

    network: BaselineNetwork

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
        age_groups: list[str] | None = None,
        dropout: float = 0.0,
        mirror: bool = False,
    ) -> None:
        super().__init__(
            attribute_names, preprocessing, groups, weighting, calibration, optimizer, schedule, age_groups
        )
        self.save_hyperparameters(logger=False)
        self.network = self.make_network(
            {
                "_target_": "faceattr_lightning.networks.baseline.BaselineNetwork",
                "backbone": self.backbone_node(backbone),
                "attributes": len(attribute_names),
                "age_groups": len(self.age_groups),
                "dropout": dropout,
                "mirror": mirror,
            }
        )
