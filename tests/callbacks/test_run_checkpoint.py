"""The best epoch of an interrupted run comes along; evaluating a checkpoint touches no file."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import pytest
import torch
from lightning import LightningModule, Trainer

from faceattr_lightning.callbacks.run_checkpoint import RunCheckpoint


@pytest.fixture
def saved(tmp_path: Path) -> dict[str, object]:
    """The state of a callback whose best checkpoint lies in the folder ``before``."""
    path = tmp_path / "before" / "best.ckpt"
    path.parent.mkdir()
    path.write_bytes(b"the best epoch so far")
    os.utime(path, (1000, 1000))
    score = torch.tensor(0.9)
    return {
        "dirpath": str(path.parent),
        "best_model_path": str(path),
        "best_model_score": score,
        "kth_best_model_path": str(path),
        "kth_value": score,
        "best_k_models": {str(path): score},
        "last_model_path": "",
    }


def restored(saved: dict[str, object], folder: Path, stage: str, resumed: Path | None = None) -> RunCheckpoint:
    callback = RunCheckpoint(dirpath=folder, filename="best", monitor="val/average_precision", mode="max")
    trainer = Trainer(logger=False, accelerator="cpu", enable_progress_bar=False, enable_model_summary=False)
    trainer.ckpt_path = resumed
    callback.setup(trainer, LightningModule(), stage)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        callback.load_state_dict(saved)
    return callback


def assert_carried(callback: RunCheckpoint, here: Path) -> None:
    assert here.read_bytes() == b"the best epoch so far"
    assert callback.best_model_path == str(here) and callback.best_model_score == torch.tensor(0.9)
    assert callback.kth_best_model_path == str(here) and list(callback.best_k_models) == [str(here)]


def test_a_resumed_run_takes_the_best_epoch_into_its_own_folder(saved: dict[str, object], tmp_path: Path) -> None:
    here = tmp_path / "now" / "best.ckpt"
    assert_carried(restored(saved, here.parent, "fit"), here)
    # The newest run's: ckpt_path=best has to find it.
    assert here.stat().st_mtime > 1000
    assert [path.name for path in here.parent.iterdir()] == ["best.ckpt"]


def test_the_best_epoch_of_a_folder_that_was_moved(saved: dict[str, object], tmp_path: Path) -> None:
    (tmp_path / "before").rename(tmp_path / "moved")
    here = tmp_path / "now" / "best.ckpt"
    assert_carried(restored(saved, here.parent, "fit", tmp_path / "moved" / "last.ckpt"), here)


def test_a_lost_best_epoch_is_said(saved: dict[str, object], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "before" / "best.ckpt").unlink()
    callback = restored(saved, tmp_path / "now", "fit", tmp_path / "before" / "last.ckpt")
    assert callback.best_model_path == "" and callback.best_model_score is None
    assert "best epoch so far is neither" in caplog.text


@pytest.mark.parametrize("stage", ["validate", "test"])
def test_evaluation_leaves_the_checkpoint_alone(saved: dict[str, object], tmp_path: Path, stage: str) -> None:
    """Another process may be reading it: the first rank once wrote the file anew while the second read it."""
    here = tmp_path / "now" / "best.ckpt"
    here.parent.mkdir()
    here.write_bytes(b"carried over when training went on")
    restored(saved, here.parent, stage)
    assert here.read_bytes() == b"carried over when training went on"
