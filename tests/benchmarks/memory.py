"""Resident memory after each epoch of a whole run. Linux only: it is read from /proc."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path

from lightning import Callback, LightningModule, Trainer

from faceattr_lightning.strategy import quote
from tests.benchmarks.rows import Row
from tests.runs import SMALL, SMALL_DMM, run

EPOCHS = 16
# A leak is one per step or per epoch; neither needs long epochs.
SHORT_EPOCHS = ["++trainer.limit_train_batches=8", "++trainer.limit_val_batches=8", "++trainer.limit_test_batches=8"]


def memory(data: Path, scratch: Path) -> list[Row]:
    """Compare the last epoch with the second: caches and the optimiser's state are made in the first.

    Resident memory jumps up and down by a per cent with what the allocator keeps or gives back, for which the mark
    leaves room. A leak is a trend: the growth is the median slope over all pairs of epochs (Theil, Sen), which jumps
    do not bend.
    """
    file = scratch / "resident.json"
    recorder = f"++callbacks.memory={{_target_: tests.benchmarks.memory.RecordMemory, file: {quote(str(file))}}}"
    overrides = [*SMALL, *SMALL_DMM, f"trainer.max_epochs={EPOCHS}", *SHORT_EPOCHS, recorder]
    run(*overrides, data=data.parent, output=scratch, OMP_NUM_THREADS="1")
    resident = json.loads(file.read_text())
    pairs = itertools.combinations(enumerate(resident[1:]), 2)
    growth = [(later - earlier) / (end - start) for (start, earlier), (end, later) in pairs]
    return [
        Row(f"resident memory, epoch {EPOCHS} against 2", "MB", resident[-1:], resident[1:2], at_most=1.02),
        Row("its growth an epoch", "MB", growth),
    ]


class RecordMemory(Callback):
    """Writes the resident megabytes after each epoch, validation and report included, into a JSON file.

    Args:
        file: to write.
    """

    def __init__(self, file: str) -> None:
        self._file = Path(file)
        self._resident: list[float] = []

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        self._resident.append(pages * os.sysconf("SC_PAGE_SIZE") / 1e6)
        self._file.write_text(json.dumps(self._resident))
