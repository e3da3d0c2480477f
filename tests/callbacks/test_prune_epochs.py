"""What a trial reports of each epoch, with a curve that is given; the study is read by Optuna's own API."""

from __future__ import annotations

from pathlib import Path

import optuna
import pytest
import torch
from lightning import LightningModule, Trainer
from torch.utils.data import DataLoader

from faceattr_lightning.callbacks.prune import Prune
from faceattr_lightning.errors import ConfigError
from faceattr_lightning.search import PRUNED

METRIC = "val/average_precision"


class Curve(LightningModule):
    """Logs a value for each epoch."""

    def __init__(self, values: list[float]) -> None:
        super().__init__()
        self.values = values
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        return self.layer(batch).sum()

    def validation_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        self.log(METRIC, self.values[self.current_epoch])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.fixture
def url(tmp_path: Path) -> str:
    """A study with one complete trial, at 0.5 in each of four epochs, and a second one that runs."""
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    study = optuna.create_study(study_name="study", storage=storage, direction="maximize")
    first = study.ask()
    for epoch in range(4):
        first.report(0.5, epoch)
    study.tell(first, 0.5)
    study.ask()
    return storage


def train(url: str, values: list[float], folder: Path, warmup_epochs: int = 1, metric: str = METRIC) -> Trainer:
    callback = Prune(url, "study", metric, "median", startup_trials=1, warmup_epochs=warmup_epochs)
    trainer = Trainer(
        default_root_dir=folder / "1",
        max_epochs=4,
        callbacks=[callback],
        logger=False,
        accelerator="cpu",
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=1,
    )
    data = DataLoader(torch.ones(2, 1))
    trainer.fit(Curve(values), data, data)
    return trainer


def trial(url: str) -> optuna.trial.FrozenTrial:
    return optuna.load_study(study_name="study", storage=url).trials[1]


def test_after_the_last_epoch_there_is_nothing_to_prune(url: str, tmp_path: Path) -> None:
    train(url, [0.1, 0.1, 0.1, 0.1], tmp_path, warmup_epochs=3)
    assert len(trial(url).intermediate_values) == 4 and PRUNED not in trial(url).user_attrs


def test_an_epoch_that_is_repeated_keeps_its_value(url: str, tmp_path: Path) -> None:
    train(url, [0.9, 0.9, 0.9, 0.9], tmp_path)
    train(url, [0.8, 0.8, 0.8, 0.8], tmp_path)
    assert list(trial(url).intermediate_values.values()) == pytest.approx([0.9] * 4)


def test_a_metric_that_nothing_logs(url: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"nothing logs val/precision. Known: {METRIC}"):
        train(url, [0.1] * 4, tmp_path, metric="val/precision")
