"""Being asked to end: by SIGTERM, or by the signal with which SLURM announces the end of a job's time."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
from collections.abc import Callable
from contextlib import suppress

import torch
from lightning import Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException

from faceattr_lightning.processes import started_by_srun

log = logging.getLogger(__name__)

_NO, _END, _REQUEUE = range(3)


class Preemption:
    """Takes note of the signals, and makes all ranks agree on them.

    Lightning's own handlers save, or make ranks wait for each other, wherever in a step the signal meets each of them.
    """

    def __init__(self) -> None:
        self._asked = _NO

    def listen(self, trainer: Trainer) -> None:
        """Take note of SIGTERM from now on, and of the signal after which SLURM is to start the job once more."""
        self._asked = _NO
        _handle(signal.SIGTERM, lambda: self._note(_END))
        if started_by_srun():
            # What `sbatch --signal=SIGUSR1@90` sends, as Lightning's users know it.
            _handle(signal.SIGUSR1, lambda: self._note(_REQUEUE))

    def end_at_once(self) -> None:
        """Let SIGTERM raise a SIGTERMException from now on: there is nothing to save."""
        _handle(signal.SIGTERM, _raise)

    def agreed(self, trainer: Trainer) -> bool:
        """Return whether any rank was asked to end; each of them has to call it."""
        if trainer.world_size > 1:
            asked = torch.zeros(trainer.world_size, device=trainer.strategy.root_device)
            asked[trainer.global_rank] = self._asked
            total = trainer.strategy.reduce(asked, reduce_op="sum")
            assert isinstance(total, torch.Tensor)
            self._asked = int(total.max())
        return self._asked != _NO

    def end(self, trainer: Trainer) -> None:
        """End the run whose checkpoint is written; SLURM is told to start it once more if that was asked for.

        Raises:
            SIGTERMException: always.
        """
        if self._asked == _REQUEUE and trainer.is_global_zero:
            array = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
            job = "_".join(map(str, array)) if all(array) else os.environ["SLURM_JOB_ID"]
            command = ["scontrol", "requeue", job]
            try:
                subprocess.run(command, check=True)
            except (OSError, subprocess.CalledProcessError) as error:
                log.warning("SLURM did not take the job back (%s: %s).", " ".join(command), error)
        raise SIGTERMException

    def _note(self, asked: int) -> None:
        self._asked = max(self._asked, asked)


def _raise() -> None:
    raise SIGTERMException


def _handle(signum: int, handler: Callable[[], None]) -> None:
    # Only the main thread may choose.
    with suppress(ValueError):
        signal.signal(signum, lambda *_: handler())
