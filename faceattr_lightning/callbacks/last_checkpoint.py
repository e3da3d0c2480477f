"""The checkpoint that a run goes on from, and the one before."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException

from faceattr_lightning.callbacks.stage import fitting
from faceattr_lightning.errors import ConfigError


class LastCheckpoint(Checkpoint):
    """Keeps ``last.ckpt``, from which a run goes on exactly where it was, and ``previous.ckpt``, the one before it.

    It is written at the end of each epoch, after validation, and every so many optimiser steps, if that is asked for;
    and once more when SIGTERM asks the run to end, as a scheduler does before it takes the machine away: the step is
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
        self._asked_to_end = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # In place of Lightning's, which makes ranks wait for each other wherever the signal meets each of them.
        _on_sigterm(lambda *_: setattr(self, "_asked_to_end", True))

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not fitting(trainer):
            _on_sigterm(_end)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        _on_sigterm(_end)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches or trainer.is_last_batch:
            return
        due = self.every_n_steps is not None and trainer.global_step % self.every_n_steps == 0
        ending = self._all_end(trainer)
        if due or ending:
            self._save(trainer)
        if ending:
            raise SIGTERMException

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._save(trainer)
        if self._all_end(trainer):
            raise SIGTERMException

    def _all_end(self, trainer: Trainer) -> bool:
        """Return whether any rank was asked to end."""
        if trainer.world_size == 1:
            return self._asked_to_end
        asked = torch.tensor(float(self._asked_to_end), device=trainer.strategy.root_device)
        return bool(trainer.strategy.reduce(asked, reduce_op="sum"))

    def _save(self, trainer: Trainer) -> None:
        if trainer.is_global_zero and self.path.exists():
            keep_previous(self.path, self.previous)
        trainer.save_checkpoint(self.path)


def _end(*_: object) -> None:
    raise SIGTERMException


def _on_sigterm(handler: Callable[..., object]) -> None:
    # Only the main thread may choose.
    with suppress(ValueError):
        signal.signal(signal.SIGTERM, handler)


def keep_previous(path: Path, previous: Path) -> None:
    """Give a file that is about to be replaced a second name; at no moment is either name without a whole file."""
    link = previous.with_name(f".{previous.name}.{os.getpid()}.partial")
    with suppress(FileNotFoundError):
        link.unlink()
    try:
        os.link(path, link)
    except OSError:  # a file system without links
        shutil.copyfile(path, link)
    os.replace(link, previous)
