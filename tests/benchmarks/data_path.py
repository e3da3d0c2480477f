"""Images per core-second of the data path: ours, torchvision's CelebA class, and public repositories' style.

Every side gives the middle 178 x 178 pixels of a 178 x 218 JPEG, resized to the same height and width, mirrored at
random, in batches of 64 in random order, with the labels. Outputs are uint8, or float32 and normalised; that both sides
give the same pixels is checked. CPU time of one process without loader processes: more of them give more wall time,
never fewer core-seconds. All files are in the page cache.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import Tensor, nn
from torch.utils.data import DataLoader

from faceattr_lightning.allocator import keep_freed_memory
from faceattr_lightning.data.celeba import read_celeba
from faceattr_lightning.data.module import FaceDataModule
from faceattr_lightning.data.table import Split
from faceattr_lightning.networks.backbone import Backbone
from tests.benchmarks import public_style, torchvision_style
from tests.benchmarks.clock import ROUNDS, Turn, interleave_processes
from tests.benchmarks.faces import write_photos
from tests.benchmarks.ours import FLIP, celeba
from tests.benchmarks.rows import Row

IMAGES = 2048
"""Half of them are for training: 100 MB at 178 px, more than the processor's cache."""
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Case:
    """One comparison: an output, who is compared, and the marks of prepared data and of JPEGs."""

    size: int
    normalised: bool
    against: str = "torchvision"
    prepared_mark: float | None = None
    jpeg_mark: float | None = None


CASES = (
    Case(112, False),
    Case(112, True),
    Case(128, False, prepared_mark=1 / 40),
    Case(128, True, prepared_mark=1 / 12),
    Case(178, False),
    Case(178, True),
    Case(224, False, prepared_mark=1 / 35),
    Case(224, True, prepared_mark=1 / 6),
    # These repositories have 178 x 218 pixels, which is not square: both sides get the middle of them, not resized.
    Case(178, True, "the public style", prepared_mark=1 / 4.5, jpeg_mark=1 / 2.5),
)


def data_path(data: Path, scratch: Path) -> list[Row]:
    """Compare prepared data and JPEGs with torchvision at four sizes, and with the public style at its own.

    Each side has a process of its own, as our program tells the C library to keep freed memory, and others don't.
    """
    root, cache = scratch / "data" / "celeba", scratch / "cache"
    write_photos(root, IMAGES)
    for case in CASES:
        check_same_pixels(root, cache, case)
    sides = [partial(turns_of_ours, root, cache), partial(turns_of_ours, root, None), partial(turns_of_others, root)]
    measured = interleave_processes(sides, len(CASES) * (1 + ROUNDS))
    rows = []
    for index, case in enumerate(CASES):
        start = index * (1 + ROUNDS)
        prepared, files, theirs = (
            [1e6 * us for us in side.seconds[start + 1 : start + 1 + ROUNDS]] for side in measured
        )
        kind = f"{'normalised float' if case.normalised else 'uint8'}, {case.size} px, against {case.against}, an image"
        rows.append(Row(f"prepared, {kind}", "us", prepared, theirs, case.prepared_mark))
        rows.append(Row(f"JPEG, {kind}", "us", files, theirs, case.jpeg_mark))
    return rows


def turns_of_ours(root: Path, cache: Path | None, turn: Turn) -> None:
    """Take the turns of all cases from prepared data, or without a ``cache`` from JPEGs."""
    keep_freed_memory()
    for case in CASES:
        work = ours(celeba(root, case.size, cache, FLIP), Normalised() if case.normalised else None)
        for _ in range(1 + ROUNDS):
            turn.fill(work)


def turns_of_others(root: Path, turn: Turn) -> None:
    """Take the turns of all cases by whom ours are compared with."""
    for case in CASES:
        work = other(theirs(root, case, training=True))
        for _ in range(1 + ROUNDS):
            turn.fill(work)


def theirs(root: Path, case: Case, training: bool) -> DataLoader[tuple[Tensor, Tensor]]:
    """Return a case's other side."""
    if case.against == "torchvision":
        normalise = (MEAN, STD) if case.normalised else None
        return torchvision_style.loader(root.parent, "train" if training else "valid", case.size, normalise)
    table = read_celeba(root)
    rows = table.rows(Split.TRAIN if training else Split.VALIDATION)
    files = [table.root / table.files[row] for row in rows]
    steps = public_style.transform(MEAN, STD, training, (case.size, case.size))
    faces = public_style.ImageFiles(files, table.attributes[rows], steps)
    return DataLoader(faces, 64, shuffle=training, drop_last=training)


class Normalised(Backbone):
    """What a backbone makes of a batch before its first layer: the images, normalised."""

    def __init__(self) -> None:
        super().__init__("test_resnet", MEAN, STD)
        self.body = Unchanged()


class Unchanged(nn.Module):
    """Stands in for a timm network."""

    def forward_features(self, image: Tensor) -> Tensor:
        return image


def ours(datamodule: FaceDataModule, output: nn.Module | None = None) -> Iterator[int]:
    """Load and augment batches of the training split, hand them to ``output``, and yield how many images each has."""
    loader = datamodule.train_dataloader()
    for epoch in itertools.count():
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        for batch in loader:
            image = datamodule.on_after_batch_transfer(batch, 0)["image"]
            yield len(image if output is None else output(image))


def other(loader: Iterable[tuple[Tensor, Tensor]]) -> Iterator[int]:
    """Load batches of (image, labels), and yield how many images each has."""
    for _ in itertools.count():
        yield from (len(image) for image, _ in loader)


def check_same_pixels(root: Path, cache: Path, case: Case) -> None:
    """Make sure that all sides give the same images, type and normalisation; resizing may round a grey level off."""
    expected, labels = next(iter(theirs(root, case, training=False)))
    scale = 255 * min(STD) if case.normalised else 1
    for folder in (cache, None):
        batch = next(iter(celeba(root, case.size, folder, None).val_dataloader()))
        image = Normalised()(batch["image"]) if case.normalised else batch["image"]
        same = image.dtype == expected.dtype and image.shape == expected.shape
        close = same and (image.float() - expected.float()).abs().max() * scale <= 2
        if not close or (batch["attributes"] != labels).any():
            raise RuntimeError(f"The sides do not give the same images: {case}, {folder}.")
