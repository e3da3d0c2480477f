"""How cost grows with attributes, images and processes: figures to look at, without marks."""

from __future__ import annotations

import json
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

from faceattr_lightning.processes import quote
from tests.benchmarks.clock import ROUNDS, interleave, interleave_processes
from tests.benchmarks.data_path import ours
from tests.benchmarks.epoch import turns_of_ours
from tests.benchmarks.memory import BlankFaces
from tests.benchmarks.ours import prepared_in
from tests.benchmarks.rows import Row
from tests.benchmarks.step import TINY, train_config
from tests.runs import SMALL, run


def scaling(data: Path, scratch: Path) -> list[Row]:
    """Compare CPU time: ten times the attributes, a hundred times the images, two processes for one."""
    torch.set_num_threads(1)
    return [_attributes(data, scratch), _images(scratch), _ranks(data, scratch)]


def _attributes(data: Path, scratch: Path) -> Row:
    """Steps of our Trainer, of which 16 are an epoch that only trains."""
    configs = []
    for count in (400, 40):
        config = train_config(data, scratch / f"{count}", *TINY)
        faces = {"folder": str(scratch / f"faces{count}"), "count": 1024, "attributes": count}
        config["data"] = {"_target_": "tests.benchmarks.memory.BlankFaces", **faces}
        config["model"]["groups"] = None
        configs.append(config)
    many, few = interleave_processes([partial(turns_of_ours, config) for config in configs])
    milliseconds = ([1000 * value / 16 for value in side.seconds[1:]] for side in (many, few))
    return Row("step of test_resnet, 32 px, batch 64, 400 attributes against 40", "ms", *milliseconds)


def _images(scratch: Path) -> Row:
    """The data path over images in a mapped file whose pages are in memory."""
    sides = []
    for count in (100_000, 1_000):
        faces = BlankFaces(scratch / f"images{count}", count)
        faces.setup()
        faces.source().images(faces.train_rows())
        sides.append(ours(faces))
    many, few = interleave(sides)
    name = "data path, 32 px, 100,000 images against 1,000, an image"
    return Row(name, "us", [1e6 * value for value in many], [1e6 * value for value in few])


def _ranks(data: Path, scratch: Path) -> Row:
    """Whole runs, one after the other; the CPU time of all processes over the images that they trained on."""
    spent = {}
    for ranks in (1, 2):
        folder = scratch / f"ranks{ranks}"
        folder.mkdir()
        recorder = f"++callbacks.time={{_target_: tests.benchmarks.scaling.RecordTime, folder: {quote(str(folder))}}}"
        overrides = [*SMALL, "model=baseline", f"trainer.devices={ranks}", f"trainer.max_epochs={1 + ROUNDS}", recorder]
        overrides += prepared_in(scratch)
        run(*overrides, data=data.parent, output=folder, OMP_NUM_THREADS="1")
        of_ranks = [json.loads(file.read_text())[1:] for file in folder.glob("rank*.json")]
        spent[ranks] = [1000 * sum(values) for values in zip(*of_ranks, strict=True)]
    name = "training with test_resnet, 64 px, batch 8 a rank, 2 ranks against 1, an image"
    return Row(name, "ms", spent[2], spent[1])


class RecordTime(Callback):
    """Writes this rank's CPU seconds of each training epoch, over the images of all ranks, into a JSON file.

    Args:
        folder: for ``rank<number>.json``.
    """

    def __init__(self, folder: str) -> None:
        self._folder, self._seconds, self._started = Path(folder), list[float](), 0.0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._started, self._images = time.process_time(), 0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._images += len(batch["image"]) * trainer.world_size

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._seconds.append((time.process_time() - self._started) / self._images)
        (self._folder / f"rank{trainer.global_rank}.json").write_text(json.dumps(self._seconds))
