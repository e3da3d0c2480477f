"""Resident memory over epochs, and against the number of images. Linux only: it is read from /proc."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
from lightning import Callback, LightningModule, Trainer
from numpy.typing import NDArray

from faceattr_lightning.data.dataset import ImageStore
from faceattr_lightning.data.module import FaceDataModule
from faceattr_lightning.data.table import FaceTable, Split
from faceattr_lightning.processes import quote
from tests.benchmarks.clock import in_child, memory_of_process
from tests.benchmarks.ours import prepared_in
from tests.benchmarks.rows import Row
from tests.runs import SMALL, SMALL_DMM, run

EPOCHS = 20
# A leak is one per step or per epoch; neither needs long epochs.
SHORT_EPOCHS = ["++trainer.limit_train_batches=8", "++trainer.limit_val_batches=8", "++trainer.limit_test_batches=8"]


def memory(data: Path, scratch: Path) -> list[Row]:
    """Compare the last epoch with the second, and many images with few."""
    return [*_over_epochs(data, scratch), *_against_images(scratch)]


def _over_epochs(data: Path, scratch: Path) -> list[Row]:
    """Compare the last epoch with the second: caches and the optimiser's state are made in the first.

    Resident memory jumps up and down by a per cent with what the allocator keeps or gives back, for which the mark
    leaves room. A leak is a trend: the growth is the median slope over all pairs of epochs (Theil, Sen), which jumps
    do not bend.
    """
    file = scratch / "resident.json"
    recorder = f"++callbacks.memory={{_target_: tests.benchmarks.memory.RecordMemory, file: {quote(str(file))}}}"
    overrides = [*SMALL, *SMALL_DMM, f"trainer.max_epochs={EPOCHS}", *SHORT_EPOCHS, recorder, *prepared_in(scratch)]
    run(*overrides, data=data.parent, output=scratch, OMP_NUM_THREADS="1")
    resident = json.loads(file.read_text())
    pairs = itertools.combinations(enumerate(resident[1:]), 2)
    growth = [(later - earlier) / (end - start) for (start, earlier), (end, later) in pairs]
    return [
        Row(f"resident memory, epoch {EPOCHS} against 2", "MB", resident[-1:], resident[1:2], at_most=1.05),
        Row("its growth an epoch", "MB", growth),
    ]


def _against_images(scratch: Path) -> list[Row]:
    """Read an epoch of 1k, 10k and 100k images from prepared data, each in a process of its own.

    Counted is what belongs to the process alone (``RssAnon``): the pages of the mapped file are the page cache's.
    """
    held = {}
    for count in (1_000, 10_000, 100_000):
        folder = scratch / str(count)
        # Not in the process that is looked at.
        in_child(prepare_blank_faces, folder, count)
        held[count] = in_child(resident_over_an_epoch, folder, count)
    return [
        Row(f"memory of a process that reads {count:,} images, against 1,000", "MB", [held[count]], [held[1_000]], 1.05)
        for count in (10_000, 100_000)
    ]


def prepare_blank_faces(folder: Path, count: int) -> None:
    """Pack `BlankFaces`."""
    BlankFaces(folder, count).prepare_data()


def resident_over_an_epoch(folder: Path, count: int) -> float:
    """Return the most megabytes that this process alone has while it reads `BlankFaces` once."""
    faces = BlankFaces(folder, count)
    faces.setup()
    return max(memory_of_process("RssAnon") for _ in faces.train_dataloader())


class BlankFaces(FaceDataModule):
    """Any number of small black images, prepared in no time; the rest is as of CelebA.

    Args:
        folder: for what is prepared.
        count: of the training images.
        attributes: of each, at random.
    """

    name, source_size, default_crop = "blank", (32, 32), (0, 0, 32, 32)

    def __init__(self, folder: Path, count: int, attributes: int = 40) -> None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        super().__init__(root=str(folder), image_size=32, num_workers=0, cache_dir=str(folder))
        self._count, self._names = count, tuple(f"Attribute_{number}" for number in range(attributes))

    def read_table(self) -> FaceTable:
        rng = np.random.default_rng(0)
        total = self._count + 2
        split = np.zeros(total, dtype=np.int8)
        split[-2:] = Split.VALIDATION, Split.TEST
        return FaceTable(
            name=self.name,
            root=self.data_root(),
            files=[f"{number:06d}.jpg" for number in range(total)],
            attribute_names=self._names,
            attributes=rng.integers(0, 2, (total, len(self._names)), dtype=np.int8),
            split=split,
            image_size=self.source_size,
            landmarks=np.zeros((total, 5, 2), dtype=np.float32),
            identity=np.arange(total),
        )

    def open_store(self, table: FaceTable) -> ImageStore:
        return BlankStore()


class BlankStore:
    """Black images of 32 x 32 pixels."""

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        return np.zeros((len(rows), 32, 32, 3), dtype=np.uint8)


class RecordMemory(Callback):
    """Writes the resident megabytes after each epoch, validation and report included, into a JSON file.

    Args:
        file: to write.
    """

    def __init__(self, file: str) -> None:
        self._file = Path(file)
        self._resident: list[float] = []

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._resident.append(memory_of_process("VmRSS"))
        self._file.write_text(json.dumps(self._resident))
