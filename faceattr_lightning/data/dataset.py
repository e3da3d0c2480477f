"""A split as a data set that is indexed by the batch."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray
from torch import Tensor
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
        images = np.empty((len(rows), *table.image_size, 3), dtype=np.uint8)
        for image, row in zip(images, rows, strict=True):
            path = table.root / table.files[row]
            if not _decode_jpeg(path, image):
                image[:] = read_image(path, table.image_size)
        return images


def _decode_jpeg(path: Path, image: NDArray[np.uint8]) -> bool:
    """Decode a JPEG of the right size into uint8 (H, W, 3), in less than PIL's time and to the same pixels.

    Returns:
        whether that was possible; PIL reads what is of another kind, or says what is wrong with it.
    """
    try:
        content = path.read_bytes()
        height, width, colours, _ = simplejpeg.decode_jpeg_header(content)
        if (height, width, 3) != image.shape or colours not in ("YCbCr", "Gray"):
            return False
        simplejpeg.decode_jpeg(content, buffer=image)
    except (OSError, ValueError):
        return False
    return True


class ArrayStore:
    """Serves images from one array, as a rule a memory-mapped file that every process shares.

    Args:
        images: uint8 (N, height, width, 3), RGB, in the table's order.
    """

    def __init__(self, images: NDArray[np.uint8]) -> None:
        self._images = images

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        return np.ascontiguousarray(self._images[rows])


class FaceSource(Protocol):
    """What a row of the table looks like to a network, before augmentation."""

    def images(self, rows: NDArray[np.int64]) -> Tensor:
        """Return uint8 (B, 3, S, S) for the table's ``rows``."""

    def landmarks(self, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Return float32 (B, L, 2) as fractions of the crop, and bool (B, L), whether each is valid."""


class CroppedSource:
    """One data set's images and landmarks, cropped and resized.

    Args:
        table: every row of the data set.
        store: of the table's images.
        preprocessing: crop and size.
    """

    def __init__(self, table: FaceTable, store: ImageStore, preprocessing: Preprocessing) -> None:
        self._table, self._store, self._preprocessing = table, store, preprocessing

    def images(self, rows: NDArray[np.int64]) -> Tensor:
        return self._preprocessing.images(self._store.read(rows))

    def landmarks(self, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        return self._preprocessing.landmarks(self._table.landmarks[rows])


class FaceDataset(Dataset[Batch]):
    """One split; ``dataset[BatchRequest]`` is a batch.

    Args:
        table: every row of the data set.
        rows: int64 (n,), the table's rows that belong to the split.
        source: of the table's images and landmarks.
        seed: of the augmentation's random numbers; ``None`` for splits that are not augmented.
    """

    def __init__(self, table: FaceTable, rows: NDArray[np.int64], source: FaceSource, seed: int | None = None) -> None:
        self.rows = rows
        self._table, self._source, self._seed = table, source, seed

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, request: BatchRequest) -> Batch:
        rows = self.rows[request.rows]
        table = self._table
        landmarks, valid = self._source.landmarks(rows)
        batch: Batch = {
            "image": self._source.images(rows),
            "attributes": torch.from_numpy(table.attributes[rows]),
            "landmarks": landmarks,
            "landmarks_valid": valid,
            "identity": torch.from_numpy(table.identity[rows]),
            "index": torch.from_numpy(rows),
            "age_group": torch.from_numpy(table.age_group[rows]),
            "database": torch.from_numpy(table.database[rows]),
        }
        if self._seed is not None:
            randoms = sample_uniforms(self._seed, request.epoch, request.positions, RANDOM_NUMBERS)
            batch["augmentation"] = torch.from_numpy(randoms)
        return batch
