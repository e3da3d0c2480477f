"""Callbacks that make a run fail in a way that is named."""

from __future__ import annotations

import copy
import multiprocessing
import os
import signal
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor


class Poison(Callback):
    """Makes one training batch, or the gradients that follow from it, not finite.

    Args:
        epoch: of the batches; ``None`` for each.
        batches: its numbers in the epoch.
        what: ``image``: NaN; ``gradient``: an infinity in the last parameter's.
        rank: of the one process that meets it; ``None`` for all.
        first_step: of the optimiser, before which nothing happens.
    """

    def __init__(
        self,
        epoch: int | None,
        batches: list[int],
        what: str = "image",
        rank: int | None = None,
        first_step: int = 0,
    ) -> None:
        self.epoch, self.batches, self.what, self.rank, self.first_step = epoch, batches, what, rank, first_step
        self._now = False

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        mine = self.rank in (None, trainer.global_rank) and self.epoch in (None, trainer.current_epoch)
        self._now = mine and batch_idx in self.batches and trainer.global_step >= self.first_step
        if self._now and self.what == "image":
            batch["image"] = torch.full_like(batch["image"].float(), torch.nan)

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._now and self.what == "gradient":
            *_, last = (one for one in pl_module.parameters() if one.grad is not None)
            assert last.grad is not None
            last.grad.view(-1)[0] = torch.inf


class LeaveOut(Callback):
    """Puts all state back to what it was before some batches, whatever happened meanwhile.

    Args:
        epoch: of the batches.
        first: number of the first batch.
        last: number of the last one.
    """

    def __init__(self, epoch: int, first: int, last: int) -> None:
        self.epoch, self.first, self.last = epoch, first, last
        self._kept: Any = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if (trainer.current_epoch, batch_idx) == (self.epoch, self.first):
            self._kept = copy.deepcopy((pl_module.state_dict(), trainer.optimizers[0].state_dict()))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (trainer.current_epoch, batch_idx) == (self.epoch, self.last):
            schedule = copy.deepcopy([group["lr"] for group in trainer.optimizers[0].param_groups])
            pl_module.load_state_dict(self._kept[0])
            weighting: Any = pl_module.weighting
            weighting.remember()
            weighting.on_train_start(trainer, pl_module)
            trainer.optimizers[0].load_state_dict(self._kept[1])
            for group, rate in zip(trainer.optimizers[0].param_groups, schedule, strict=True):
                group["lr"] = rate


class Remember(Callback):
    """Keeps the weights before each step, and those with which an exception was met."""

    before: dict[str, Tensor]
    after: dict[str, Tensor]

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        Remember.before = {name: one.detach().clone() for name, one in pl_module.named_parameters()}

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        Remember.after = {name: one.detach().clone() for name, one in pl_module.named_parameters()}


class KillProcess(Callback):
    """Kills a process of the run, as the system does when memory is short.

    Args:
        which: ``loader``, one that loads data; or ``rank``, the last of a job's.
        epoch: in which that is done, at the start of its third batch.
    """

    def __init__(self, which: str, epoch: int) -> None:
        self.which, self.epoch = which, epoch

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if (trainer.current_epoch, batch_idx) != (self.epoch, 2):
            return
        if self.which == "loader":
            worker = multiprocessing.active_children()[0]
            assert worker.pid is not None
            os.kill(worker.pid, signal.SIGKILL)
        elif trainer.global_rank == trainer.world_size - 1:
            os.kill(os.getpid(), signal.SIGKILL)
