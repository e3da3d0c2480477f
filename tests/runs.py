"""Running the real program on tiny data, and reading what it leaves behind."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from faceattr_lightning.strategy import quote

ROOT = Path(__file__).parents[1]

SMALL = [
    "data=celeba",
    "data.image_size=64",
    "data.batch_size=8",
    "backbone.name=test_resnet",
    "trainer.max_epochs=2",
    "callbacks.report.grid=2",
]
"""Overrides of a run of seconds: a network of 0.4 M parameters on the tiny CelebA."""
SMALL_DMM = ["model=dmm_cnn", "model.hidden=16", "model.pyramid_channels=8"]


def run(
    *overrides: str, data: Path, output: Path, check: bool = True, timeout: float | None = 400, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run ``python run.py`` with overrides; ``data`` is the folder that holds ``celeba``."""
    command = [sys.executable, "run.py", *overrides, f"paths.output_dir={quote(str(output))}"]
    variables = {**os.environ, "FACEATTR_DATA": str(data), "COLUMNS": "200", **environment}
    finished = subprocess.run(
        command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=timeout, check=False
    )
    if check:
        assert finished.returncode == 0, finished.stdout[-3000:] + finished.stderr[-5000:]
    return finished


def run_dirs(output: Path, task: str = "train") -> list[Path]:
    """Return the folders of the runs of a task, oldest first."""
    return sorted((output / task).glob("*"))


def summary(run_dir: Path, split: str = "test") -> dict[str, Any]:
    """Return a split's summary."""
    name = "summary.json" if split == "test" else f"summary_{split}.json"
    loaded: dict[str, Any] = json.loads((run_dir / "report" / name).read_text())
    return loaded


def rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def state(run_dir: Path, name: str = "last") -> dict[str, Tensor]:
    """Return the model's state in a run's checkpoint."""
    loaded: dict[str, Tensor] = torch.load(run_dir / "checkpoints" / f"{name}.ckpt", weights_only=True)["state_dict"]
    return loaded


def assert_same_state(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    """Compare bit for bit; NaN equals NaN."""
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        torch.testing.assert_close(
            tensor, second[name], rtol=0, atol=0, equal_nan=True, msg=lambda text, name=name: f"{name}: {text}"
        )


class StopAfter(Callback):
    """Ends training after an epoch, as a lost machine would: the schedule still counts on all of them."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.should_stop = trainer.current_epoch >= self.epoch
