"""The best epoch of an interrupted run comes along; evaluating a checkpoint touches no file."""

from __future__ import annotations

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


def restored(saved: dict[str, object], folder: Path, stage: str) -> RunCheckpoint:
    callback = RunCheckpoint(dirpath=folder, filename="best", monitor="val/average_precision", mode="max")
    trainer = Trainer(logger=False, accelerator="cpu", enable_progress_bar=False, enable_model_summary=False)
    callback.setup(trainer, LightningModule(), stage)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        callback.load_state_dict(saved)
    return callback


def test_a_resumed_run_takes_the_best_epoch_into_its_own_folder(saved: dict[str, object], tmp_path: Path) -> None:
    callback = restored(saved, tmp_path / "now", "fit")
    here = tmp_path / "now" / "best.ckpt"
    assert here.read_bytes() == b"the best epoch so far"
    assert callback.best_model_path == str(here) and callback.best_model_score == torch.tensor(0.9)
    assert callback.kth_best_model_path == str(here) and list(callback.best_k_models) == [str(here)]


@pytest.mark.parametrize("stage", ["validate", "test"])
def test_evaluation_leaves_the_checkpoint_alone(saved: dict[str, object], tmp_path: Path, stage: str) -> None:
    """Another process may be reading it: the first rank once wrote the file anew while the second read it."""
    here = tmp_path / "now" / "best.ckpt"
    here.parent.mkdir()
    here.write_bytes(b"carried over when training went on")
    restored(saved, here.parent, stage)
    assert here.read_bytes() == b"carried over when training went on"
