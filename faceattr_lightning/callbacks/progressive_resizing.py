"""Training on small images first."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from lightning import Callback, LightningModule, Trainer

from faceattr_lightning.errors import ConfigError

if TYPE_CHECKING:
    from faceattr_lightning.data.module import FaceDataModule

_LEAST = 32


class ProgressiveResizing(Callback):
    """Trains the first epochs on smaller images, each epoch on larger ones, the last on those of ``data.image_size``.

    The idea is fast.ai's (DAWNBench, 2018); the rule is ours: the size rises in a straight line from ``start`` of the
    image's size in the first epoch to all of it after ``until`` of the epochs, in steps of ``multiple`` pixels. What is
    evaluated always has its full size. The size follows from the epoch alone, so that a resumed run goes on exactly.

    Args:
        start: share of the image's size, in (0, 1].
        until: share of the epochs, in [0, 1].
        multiple: in pixels, at least 1; most networks halve the image five times.

    Raises:
        ConfigError: a value out of its range.
    """

    def __init__(self, start: float = 0.5, until: float = 0.75, multiple: int = 16) -> None:
        problems = []
        if not 0 < start <= 1:
            problems.append(f"start: expected a share in (0, 1], found {start}.")
        if not 0 <= until <= 1:
            problems.append(f"until: expected a share in [0, 1], found {until}.")
        if multiple < 1:
            problems.append(f"multiple: expected at least 1, found {multiple}.")
        if problems:
            raise ConfigError([f"callbacks.progressive.{problem}" for problem in problems])
        self.start, self.until, self.multiple = start, until, multiple

    def size(self, epoch: int, epochs: int, full: int) -> int:
        """Return the height and width in pixels of an epoch's training images.

        Args:
            epoch: from 0.
            epochs: of the whole training.
            full: height and width in pixels of the images as they are.
        """
        # The last epoch is of the full size, also where `until` is 1.
        rise = min(self.until * epochs, epochs - 1)
        progress = 1.0 if rise <= 0 else min(1.0, epoch / rise)
        wanted = full * (self.start + (1 - self.start) * progress)
        return min(full, max(_LEAST, self.multiple * math.ceil(wanted / self.multiple - 1e-9)))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # A run that goes on inside an epoch begins without `on_train_epoch_start`.
        self.on_train_epoch_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        datamodule: FaceDataModule = trainer.datamodule  # type: ignore[attr-defined]
        datamodule.train_size = self.size(trainer.current_epoch, self._epochs(trainer), datamodule.image_size)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.datamodule.train_size = None  # type: ignore[attr-defined]

    @staticmethod
    def _epochs(trainer: Trainer) -> int:
        ends = []
        if trainer.max_epochs is not None and trainer.max_epochs != -1:
            ends.append(trainer.max_epochs)
        if trainer.max_steps != -1:
            steps = max(1, math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches))
            ends.append(math.ceil(trainer.max_steps / steps))
        return min(ends)
