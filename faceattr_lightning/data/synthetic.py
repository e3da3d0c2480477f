"""The embedded data set: drawn faces, so that everything runs without a download."""

from __future__ import annotations

import hashlib
import inspect
import logging
import os
from collections.abc import Sequence
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from faceattr_lightning.attributes import CELEBA_ATTRIBUTES
from faceattr_lightning.data import synthetic_faces
from faceattr_lightning.data.dataset import ArrayStore, ImageStore
from faceattr_lightning.data.module import FaceDataModule
from faceattr_lightning.data.prepared import alone, replacing
from faceattr_lightning.data.table import FaceTable, Split
from faceattr_lightning.errors import ConfigError, DataError
from faceattr_lightning.processes import process_pool

log = logging.getLogger(__name__)

_CHUNK = 100


class Synthetic(FaceDataModule):
    """Faces of `synthetic_faces`, drawn once and kept in a cache.

    No identity stands in two splits.

    Args:
        train_size: number of training images.
        validation_size: number of validation images.
        test_size: number of test images.
        cache_dir: folder of the cache; a subfolder is made per seed, number of faces and version of the drawing code.
        draw_seed: of the faces; another one gives other people.
        image_size: see `FaceDataModule`, like the arguments after it. The drawn faces are one memory-mapped file as
            they are: ``prepared`` would save no more than the resizing.
    """

    name = "synthetic"
    source_size = synthetic_faces.IMAGE_SIZE
    default_crop = (0, 20, 178, 198)

    def __init__(
        self,
        train_size: int = 4000,
        validation_size: int = 800,
        test_size: int = 800,
        cache_dir: str | None = None,
        draw_seed: int = 0,
        image_size: int = 64,
        crop: Sequence[int] | None = None,
        batch_size: int = 64,
        num_workers: int | None = None,
        attributes: Sequence[str] | None = None,
        train_fraction: float = 1.0,
        augmentation: dict[str, float] | None = None,
        seed: int = 0,
        prepared: bool = False,
    ) -> None:
        super().__init__(
            image_size=image_size,
            crop=crop,
            batch_size=batch_size,
            num_workers=num_workers,
            attributes=attributes,
            train_fraction=train_fraction,
            augmentation=augmentation,
            seed=seed,
            prepared=prepared,
            cache_dir=cache_dir,
        )
        self.sizes = (train_size, validation_size, test_size)
        self.draw_seed = draw_seed
        if min(self.sizes) < 1:
            raise ConfigError(
                [f"data.train_size, data.validation_size, data.test_size: each must be at least 1, found {self.sizes}."]
            )

    def data_root(self) -> Path:
        """Return the folder of the cache."""
        return self._cache_folder()

    def find_data(self) -> None:
        """Nothing has to be there: the faces are drawn."""

    def prepare_data(self) -> None:
        """Draw the faces, unless the cache has them. Lightning calls it in one process per machine."""
        self._fill_cache()
        super().prepare_data()

    def _fill_cache(self) -> None:
        folder, count = self._cache_folder(), sum(self.sizes)
        if folder.is_dir():
            return
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with alone(folder.parent):
                # Another process may have drawn them meanwhile.
                if folder.is_dir():
                    return
                log.info("synthetic: drawing %d faces into %s (%.1f MB), once", count, folder, count * 116_412 / 1e6)
                with replacing(folder) as partial:
                    self._draw(partial, count)
        except OSError as error:
            raise DataError(
                f"data.cache_dir: can't write {folder}: {error.strerror}. Free some space or choose another "
                "data.cache_dir."
            ) from error

    def read_table(self) -> FaceTable:
        people = synthetic_faces.sample_people(sum(self.sizes), self.draw_seed)
        self._fill_cache()
        landmarks: NDArray[np.float32] = np.load(self._cache_folder() / "landmarks.npy")
        hidden = ", ".join(synthetic_faces.NOT_DRAWN_ATTRIBUTES)
        return FaceTable(
            name=self.name,
            root=self._cache_folder(),
            files=[f"{row:06d}" for row in range(len(landmarks))],
            attribute_names=CELEBA_ATTRIBUTES,
            attributes=people.attributes,
            split=self._split(people.identity),
            image_size=synthetic_faces.IMAGE_SIZE,
            landmarks=landmarks,
            identity=people.identity,
            notes=[f"labelled but not drawn, so learnable only through their correlations: {hidden}."],
        )

    def open_store(self, table: FaceTable) -> ImageStore:
        return ArrayStore(np.load(table.root / "images.npy", mmap_mode="r"))

    def _split(self, identity: NDArray[np.int64]) -> NDArray[np.int8]:
        train, validation, _ = self.sizes
        split = np.full(len(identity), Split.TEST, dtype=np.int8)
        # Identities are contiguous: each split ends where the identity that crosses its nominal end ends.
        end_of_train = int(np.searchsorted(identity, identity[train - 1], side="right"))
        end_of_validation = int(np.searchsorted(identity, identity[train + validation - 1], side="right"))
        split[:end_of_validation] = Split.VALIDATION
        split[:end_of_train] = Split.TRAIN
        return split

    def _draw(self, folder: Path, count: int) -> None:
        height, width = synthetic_faces.IMAGE_SIZE
        path = folder / "images.npy"
        images: Any = np.lib.format.open_memmap(path, "w+", np.uint8, (count, height, width, 3))
        if hasattr(os, "posix_fallocate"):
            # Or a disk that runs full would end the process while it writes.
            with path.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, images.offset + images.nbytes)
        landmarks = np.empty((count, 5, 2), np.float32)
        people = synthetic_faces.sample_people(count, self.draw_seed)
        chunks = np.array_split(np.arange(count), max(1, count // _CHUNK))
        with process_pool() as pool:
            drawn = pool.map(synthetic_faces.draw_faces, repeat(people), repeat(self.draw_seed), chunks)
            for rows, (pixels, points) in zip(chunks, track(drawn, "Drawing faces", total=len(chunks)), strict=True):
                images[rows], landmarks[rows] = pixels, points
        images.flush()
        np.save(folder / "landmarks.npy", landmarks)

    def _cache_folder(self) -> Path:
        code = hashlib.sha256(inspect.getsource(synthetic_faces).encode()).hexdigest()[:12]
        return self.cache_dir / "synthetic" / f"{sum(self.sizes)}-seed{self.draw_seed}-{code}"
