"""Every file of ``experiments/`` takes a few steps at its full size, on tiny data in the official formats."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from faceattr_lightning.data.lfwa import read_lfwa
from tests.data.writers import LANDMARK_COLUMNS, write_adience, write_lfwa, write_text_table
from tests.runs import ROOT, run_here, summary

EXPERIMENTS = sorted(path.stem for path in (ROOT / "experiments").glob("*.yaml"))
STEPS = [
    "data.batch_size=4",
    "trainer.max_epochs=1",
    "++trainer.limit_train_batches=2",
    "++trainer.limit_val_batches=2",
    "++trainer.limit_test_batches=2",
    "callbacks.report.grid=0",
    "callbacks.progress=null",
]


@pytest.mark.slow
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_a_few_steps_at_full_size(
    experiment: str, fused_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = [f"experiment={experiment}", *STEPS]
    if not experiment.startswith("cpu"):
        # timm's hub, where they begin, is no part of a test.
        given += ["backbone.pretrained=false"]
    if "mgmtn" in experiment:
        given += ["model.mask_epochs=1"]
    if experiment.endswith("mgmtn_lfwa"):
        table = read_lfwa(fused_data / "lfwa")
        points = np.random.default_rng(0).integers(80, 170, (len(table.files), 10))
        write_text_table(tmp_path / "landmarks.txt", table.files, points, LANDMARK_COLUMNS)
        given += [f"data.landmark_file={tmp_path}/landmarks.txt"]
    if experiment == "baseline_synthetic":
        given += ["data.train_size=80", "data.validation_size=50", "data.test_size=50"]
    if experiment == "mtl_cnn_74":
        write_adience(tmp_path / "adience")
        write_lfwa(tmp_path / "lfwa", people=24, attributes=73)
        given += [f"data.members.{name}.root={tmp_path}/{name}" for name in ("adience", "lfwa")]
    run_here(*given, data=fused_data, run_dir=tmp_path / "run", monkeypatch=monkeypatch)
    found = summary(tmp_path / "run")
    assert 0 <= found["accuracy_at_half"] <= 1
    if (ROOT / "experiments" / f"cpu_{experiment}.yaml").is_file():
        assert (found["backbone"], found["image_size"]) in (("resnet50", 224), ("resnest50d", 227))
