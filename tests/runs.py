"""Running the real program on tiny data, and reading what it leaves behind."""

from __future__ import annotations

import csv
import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from lightning import Callback, LightningModule, Trainer
from omegaconf import OmegaConf, open_dict
from torch import Tensor

from faceattr_lightning.processes import quote
from faceattr_lightning.tasks.job import run_job

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


def run_here(*overrides: str, data: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run one job into ``run_dir`` in this process, which spares the start of the program."""
    monkeypatch.setenv("FACEATTR_DATA", str(data))
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        given = [*overrides, f"paths.output_dir={quote(str(run_dir.parent))}"]
        cfg = compose("config", given, return_hydra_config=True)
    with open_dict(cfg):
        cfg.hydra.runtime.output_dir = str(run_dir)
    HydraConfig.instance().set_config(cfg)
    job = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
    job.paths.run_dir = str(run_dir)
    levels = {name: logging.getLogger(name).level for name in ("lightning.pytorch", "lightning.fabric")}
    try:
        run_job(job)
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        HydraConfig.instance().cfg = None


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


MEASURED = dict.fromkeys(
    ("images_per_second", "peak_memory_mb", "training_seconds", "training_cpu_seconds"),
    0,
)
"""Of a summary, what differs between two runs that did the same."""


class StopAfter(Callback):
    """Ends training after an epoch, as a lost machine would: the schedule still counts on all of them."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.should_stop = trainer.current_epoch >= self.epoch


class Kill(Callback):
    """Kills the process as SIGKILL from outside would, at a moment that is named.

    Args:
        at: a hook of a callback; or ``before <file>`` or ``after <file>``, when a file takes its place.
        count: at the how manieth time.
        sent: the signal.
    """

    def __init__(self, at: str, count: int = 1, sent: int = signal.SIGKILL) -> None:
        self.at, self.left, self.sent = at, count, sent
        when, _, name = at.partition(" ")
        if name:
            replace = os.replace

            def replaced(source: Any, target: Any, **options: Any) -> None:
                chosen = Path(target).name == name
                if chosen and when == "before":
                    self._strike()
                replace(source, target, **options)
                if chosen and when == "after":
                    self._strike()

            os.replace = replaced
        else:
            setattr(self, at, lambda *_: self._strike())

    def _strike(self) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), self.sent)
