"""Weight averaging beside the calibrator: the fitted thresholds are saved, not their average over time."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging

from faceattr_lightning.attributes import CELEBA_ATTRIBUTES
from faceattr_lightning.callbacks.task_weighting import TaskWeighting
from faceattr_lightning.callbacks.threshold_calibration import ThresholdCalibrator
from faceattr_lightning.models.baseline import Baseline
from faceattr_lightning.tasks.trainer import order_callbacks
from tests.models.test_dmm_cnn import BACKBONE, PREPROCESSING
from tests.runs import SMALL, rows, run, run_dirs, state


def test_the_models_own_callbacks_come_first() -> None:
    model = Baseline(["a", "b"], backbone=BACKBONE, preprocessing=PREPROCESSING)
    others: list[Callback] = [EMAWeightAveraging(), Callback()]
    ordered = order_callbacks(others, model)
    assert [type(callback) for callback in ordered[:2]] == [TaskWeighting, ThresholdCalibrator]
    assert ordered[:2] == [model.weighting, model.calibrator] and ordered[2:] == others


@pytest.mark.parametrize("every", ["epoch", pytest.param("4", marks=pytest.mark.slow)])
def test_averaged_weights_keep_the_fitted_thresholds(every: str, tiny_data: Path, tmp_path: Path) -> None:
    average = "++callbacks.average={_target_: lightning.pytorch.callbacks.EMAWeightAveraging, decay: 0.9}"
    weighting = ["weighting=dmm", f"weighting.every={every}"]
    run(*SMALL, "model=baseline", *weighting, average, data=tiny_data, output=tmp_path)
    run_dir = run_dirs(tmp_path)[0]
    logged = [row for row in rows(run_dir / "metrics.csv") if row["threshold/Male"]][-1]
    saved = state(run_dir)
    in_training = torch.load(run_dir / "checkpoints/last.ckpt", weights_only=True)["current_model_state"]
    for key, prefix in (("calibrator.thresholds", "threshold"), ("weighting.weights", "weight")):
        fitted = [float(logged[f"{prefix}/{name}"]) for name in CELEBA_ATTRIBUTES]
        assert saved[key].tolist() == pytest.approx(fitted) == in_training[key].tolist()
        assert len(set(fitted)) > 1
    assert not saved["train_prevalence"].isnan().any()
    run("task=test", "ckpt_path=best", data=tiny_data, output=tmp_path)
    tested = run_dirs(tmp_path, "test")[0] / "report" / "attributes.csv"
    assert tested.read_text() == (run_dir / "report" / "attributes.csv").read_text()
    # The averaged weights are what the thresholds were fitted to, and they are not those of the last step.
    assert not torch.equal(saved["network.head.3.weight"], in_training["network.head.3.weight"])
