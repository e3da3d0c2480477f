"""The checkpoint that a run goes on from, and the one before."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from faceattr_lightning.callbacks.preemption import Preemption
from faceattr_lightning.callbacks.stage import fitting
from faceattr_lightning.errors import ConfigError
from faceattr_lightning.files import whole_file


class LastCheckpoint(Checkpoint):
    """Keeps ``last.ckpt``, from which a run goes on exactly where it was, and ``previous.ckpt``, the one before it.

    It is written at the end of each epoch, after validation, and every so many optimiser steps, if that is asked for;
    and once more when a scheduler asks the run to end, before it takes the machine away (`Preemption`): the step is
    ended, or the validation if it has begun, the checkpoint written, the run ended, on all ranks if any of them is
    asked. Never where going on would not be exact: inside a window of accumulated gradients, or between an epoch's last
    step and the end of its validation.

    Args:
        dirpath: folder of the files.
        every_n_steps: optimiser steps between two of them inside an epoch, of at least 1; ``None`` for none.

    Raises:
        ConfigError: ``every_n_steps`` is less than 1.
    """

    def __init__(self, dirpath: str, every_n_steps: int | None = None) -> None:
        if every_n_steps is not None and every_n_steps < 1:
            raise ConfigError([f"callbacks.last.every_n_steps: expected at least 1, or null, found {every_n_steps}."])
        self.path = Path(dirpath) / "last.ckpt"
        self.previous = Path(dirpath) / "previous.ckpt"
        self.every_n_steps = every_n_steps
        self._preemption = Preemption()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._preemption.listen(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not fitting(trainer):
            self._preemption.end_at_once()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._preemption.end_at_once()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches or trainer.is_last_batch:
            return
        due = self.every_n_steps is not None and trainer.global_step % self.every_n_steps == 0
        ending = self._preemption.agreed(trainer)
        if due or ending:
            self._save(trainer)
        if ending:
            self._preemption.end(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._save(trainer)
        if self._preemption.agreed(trainer):
            self._preemption.end(trainer)

    def _save(self, trainer: Trainer) -> None:
        if trainer.is_global_zero and self.path.exists():
            keep_previous(self.path, self.previous)
        trainer.save_checkpoint(self.path)


def keep_previous(path: Path, previous: Path) -> None:
    """Give a file that is about to be replaced a second name; at no moment is either name without a whole file."""
    with whole_file(previous) as link:
        try:
            os.link(path, link)
        except OSError:  # a file system without links
            shutil.copyfile(path, link)
