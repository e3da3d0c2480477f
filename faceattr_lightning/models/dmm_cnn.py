"""DMM-CNN in training; for what is published of it see `faceattr_lightning.networks.dmm_cnn`."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from faceattr_lightning.data.batch import Batch
from faceattr_lightning.models.losses import landmark_smooth_l1
from faceattr_lightning.models.module import AttributeModule
from faceattr_lightning.networks.dmm_cnn import DMMCNNNetwork, Pyramid
from faceattr_lightning.networks.output import Output


class DMMCNN(AttributeModule):
    """`DMMCNNNetwork` trained with sum_j w_j BCE_j + w_landmark * landmark loss.

    For the arguments that are not named here see `AttributeModule`. ``conf/model/dmm_cnn.yaml`` gives it DMM-CNN's
    weighting and calibration; the defaults here are none.

    Args:
        groups: ``objective`` and ``subjective`` in the paper; a group of another name gets a branch like the subjective
            one's, unless ``pyramid`` says both.
        landmarks: number of landmarks L that the data has; 0 for none.
        landmark_weight: w_landmark. Ours.
        landmark_beta: where the smooth L1 loss turns linear, as a fraction of the crop. Ours.
        pyramid: see `DMMCNNNetwork`, like ``hidden``, ``pyramid_channels`` and ``dropout``.
    """

    network: DMMCNNNetwork

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
        age_groups: list[str] | None = None,
        landmarks: int = 5,
        landmark_weight: float = 100.0,
        landmark_beta: float = 0.05,
        pyramid: Pyramid = "objective",
        hidden: int = 1024,
        pyramid_channels: int = 256,
        dropout: float = 0.2,
    ) -> None:
        tasks = ("landmarks",) if landmarks else ()
        super().__init__(
            attribute_names, preprocessing, groups, weighting, calibration, optimizer, schedule, age_groups, tasks
        )
        self.save_hyperparameters(logger=False)
        self.landmark_weight, self.landmark_beta = landmark_weight, landmark_beta
        mean_shape = self.preprocessing.template or ((0.5, 0.5),) * landmarks
        self.network = self.make_network(
            {
                "_target_": "faceattr_lightning.networks.dmm_cnn.DMMCNNNetwork",
                "backbone": self.backbone_node(backbone),
                "columns": self.columns,
                "mean_shape": mean_shape if landmarks else (),
                "age_groups": len(self.age_groups),
                "pyramid": pyramid,
                "hidden": hidden,
                "pyramid_channels": pyramid_channels,
                "dropout": dropout,
            }
        )

    def extra_losses(self, output: Output, batch: Batch) -> dict[str, Tensor]:
        if "landmarks" not in output:
            return {}
        distance = landmark_smooth_l1(
            output["landmarks"], batch["landmarks"], batch["landmarks_valid"], self.landmark_beta
        )
        return {"landmarks": self.landmark_weight * distance}
