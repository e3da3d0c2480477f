"""A split as a data set that is indexed by the batch."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from faceattr_lightning.data.augment import RANDOM_NUMBERS
from faceattr_lightning.data.batch import Batch
from faceattr_lightning.data.images import read_image
from faceattr_lightning.data.order import BatchRequest, sample_uniforms
from faceattr_lightning.data.preprocessing import Preprocessing
from faceattr_lightning.data.table import FaceTable


class ImageStore(Protocol):
    """Where the pixels come from."""

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return the source images of the table's ``rows``, uint8 (B, height, width, 3), RGB."""


class FileStore:
    """Decodes the image files of a table, each time they are asked for."""

    def __init__(self, table: FaceTable) -> None:
        self._table = table

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        table = self._table
        return np.stack([read_image(table.root / table.files[row], table.image_size) for row in rows])


class ArrayStore:
    """Serves images from one array, as a rule a memory-mapped file that every process shares.

    Args:
        images: uint8 (N, height, width, 3), RGB, in the table's order.
    """

    def __init__(self, images: NDArray[np.uint8]) -> None:
        self._images = images

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        return np.ascontiguousarray(self._images[rows])


class FaceDataset(Dataset[Batch]):
    """One split; ``dataset[BatchRequest]`` is a batch.

    Args:
        table: every row of the data set.
        rows: int64 (n,), the table's rows that belong to the split.
        store: of the table's images.
        preprocessing: crop and size.
        seed: of the augmentation's random numbers; ``None`` for splits that are not augmented.
    """

    def __init__(
        self,
        table: FaceTable,
        rows: NDArray[np.int64],
        store: ImageStore,
        preprocessing: Preprocessing,
        seed: int | None = None,
    ) -> None:
        self.rows = rows
        self._table, self._store, self._preprocessing, self._seed = table, store, preprocessing, seed

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, request: BatchRequest) -> Batch:
        rows = self.rows[request.rows]
        landmarks, valid = self._preprocessing.landmarks(self._table.landmarks[rows])
        batch: Batch = {
            "image": self._preprocessing.images(self._store.read(rows)),
            "attributes": torch.from_numpy(self._table.attributes[rows]),
            "landmarks": landmarks,
            "landmarks_valid": valid,
            "identity": torch.from_numpy(self._table.identity[rows]),
            "index": torch.from_numpy(rows),
        }
        if self._seed is not None:
            randoms = sample_uniforms(self._seed, request.epoch, request.positions, RANDOM_NUMBERS)
            batch["augmentation"] = torch.from_numpy(randoms)
        return batch
