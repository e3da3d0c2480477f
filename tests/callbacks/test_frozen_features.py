"""Features of a frozen backbone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from faceattr_lightning.networks.backbone import Backbone
from tests.runs import SMALL, SMALL_DMM, assert_same_state, run, run_dirs, state, summary

PROBE = [*SMALL, "backbone.freeze=all", "data.augmentation=null", "trainer.precision=32-true", "data.batch_size=12"]


@pytest.mark.parametrize("model", [["model=baseline"], SMALL_DMM], ids=["baseline", "dmm_cnn"])
@pytest.mark.slow
def test_features_instead_of_images_change_nothing(model: list[str], tiny_data: Path, tmp_path: Path) -> None:
    for name, switch in (("with", []), ("without", ["callbacks.features=null"])):
        finished = run(*PROBE, *model, *switch, data=tiny_data, output=tmp_path / name)
        assert ("features of each image are computed once" in finished.stdout + finished.stderr) == (not switch)
    first, second = (run_dirs(tmp_path / name)[0] for name in ("with", "without"))
    assert_same_state(state(first), state(second))
    assert summary(first)["average_precision"] == summary(second)["average_precision"]


@pytest.mark.slow
@pytest.mark.parametrize("switch", ["data.augmentation={flip: 0.5}", "model.mirror=true"])
def test_images_that_change_are_computed_each_time(switch: str, tiny_data: Path, tmp_path: Path) -> None:
    finished = run(*PROBE, "model=baseline", switch, data=tiny_data, output=tmp_path)
    assert "computed once" not in finished.stdout + finished.stderr


def test_a_backbone_takes_its_own_features() -> None:
    backbone = Backbone("test_resnet", (0.5,) * 3, (0.5,) * 3)
    features = torch.randn(2, backbone.channels, 2, 2)
    assert backbone(features) is features
