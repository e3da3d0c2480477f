"""What every data set's LightningDataModule shares: splits, loaders, augmentation, preprocessing."""

from __future__ import annotations

import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, TypedDict

import numpy as np
import torch
from lightning import LightningDataModule
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, get_worker_info

from faceattr_lightning.attributes import resolve_attributes
from faceattr_lightning.data.annotations import check_landmark_file
from faceattr_lightning.data.augment import Augmentation, augment
from faceattr_lightning.data.batch import Batch
from faceattr_lightning.data.dataset import CroppedSource, FaceDataset, FaceSource, FileStore, ImageStore
from faceattr_lightning.data.order import EpochOrder, Mix
from faceattr_lightning.data.prepared import PackedImages, Prepared, PreparedSource, prepare
from faceattr_lightning.data.preprocessing import Preprocessing, check_crop, resize
from faceattr_lightning.data.splits import stratified_order
from faceattr_lightning.data.table import FaceTable, Split
from faceattr_lightning.errors import ConfigError, DataError

log = logging.getLogger(__name__)

DATA_ENVIRONMENT_VARIABLE = "FACEATTR_DATA"
CACHE_ENVIRONMENT_VARIABLE = "FACEATTR_CACHE"
DEFAULT_CACHE = "~/.cache/faceattr-lightning"


class FileOptions(TypedDict, total=False):
    """The arguments that a data module of files hands on to `FaceDataModule`, where they are explained."""

    root: str | None
    image_size: int
    crop: Sequence[int] | None
    batch_size: int
    num_workers: int | None
    attributes: Sequence[str] | None
    train_fraction: float
    on_bad_image: Literal["error", "skip"]
    augmentation: dict[str, float] | None
    seed: int
    landmark_file: str | None
    prepared: bool
    cache_dir: str | None


def _shared(batch: Any) -> Any:
    """Put a worker's batch into shared memory here, where an error is seen: torch's queue would wait for ever."""
    if get_worker_info() is not None:
        for value in batch.values():
            if isinstance(value, Tensor):
                value.share_memory_()  # type: ignore[no-untyped-call]
    return batch


class FaceLoader(DataLoader[Batch]):
    """A loader in which training can go on inside an epoch.

    Where it goes on is no state of the loader: a worker has fetched more than was trained on. The Trainer knows it, and
    `FaceDataModule.first_step` says it. Lightning asks for the two methods before it goes on inside an epoch.
    """

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing to do."""


class FaceDataModule(LightningDataModule, ABC):
    """Base of the data modules: a subclass says how its annotations are read and, if not from files, its images.

    The loaders yield whole batches (`Batch`) in an order, and with an augmentation, that depend on nothing but
    (seed, epoch, position); so the Trainer must be made with ``use_distributed_sampler=False``, as ours are.

    Args:
        root: the data set's folder; ``None`` takes the environment variable ``FACEATTR_DATA`` plus the data set's name.
        image_size: height and width of the network's input in pixels.
        crop: (left, top, right, bottom) of the source image in pixels; ``None`` takes `default_crop`.
        batch_size: samples per process and step.
        num_workers: loader processes per training process; ``None`` takes none on CPU, where the network keeps every
            core busy, and up to eight beside a GPU.
        attributes: the attributes to learn, in this order; ``None`` takes all.
        train_fraction: share of the training split to use, in (0, 1], stratified; a smaller share is part of a larger.
        on_bad_image: ``error`` stops before training, ``skip`` leaves the image out and lists it.
        augmentation: the fields of `Augmentation`; ``None`` or an empty mapping trains on the plain crop.
        seed: of order, augmentation and subset.
        landmark_file: landmarks in CelebA's format, instead of those of the data set; ``task=annotate`` writes one.
        prepared: keep the checked annotations, and the images at working size in one memory-mapped file, made when they
            are first used; ``False`` reads and decodes the files each time.
        cache_dir: folder for what is prepared; ``None`` takes the environment variable ``FACEATTR_CACHE``, or
            ``~/.cache/faceattr-lightning`` without it.

    Raises:
        ConfigError: a crop that is not inside the images, or an augmentation out of its range.
    """

    name: str
    """Of the data set; also its folder under ``FACEATTR_DATA``."""
    source_size: tuple[int, int]
    """(height, width) in pixels that every image of the data set has, or is brought to."""
    any_size: bool = False
    """Whether the image files are of any size."""
    default_crop: tuple[int, int, int, int]
    """(left, top, right, bottom) in pixels."""
    mean_landmarks: tuple[tuple[float, float], ...] = ()
    """(L, 2) in pixels of the source image: where faces have their landmarks in a data set whose images are aligned but
    come without any. A photo is aligned to them; there is nothing in them to learn."""
    age_group_names: tuple[str, ...] = ()
    """Of the age groups that the data set labels, youngest first."""
    table_options: ClassVar[tuple[str, ...]] = ("landmark_file",)
    """The attributes of the data module that `read_table` depends on, its folder and `on_bad_image` aside."""

    def __init__(
        self,
        root: str | None = None,
        image_size: int = 128,
        crop: Sequence[int] | None = None,
        batch_size: int = 64,
        num_workers: int | None = None,
        attributes: Sequence[str] | None = None,
        train_fraction: float = 1.0,
        on_bad_image: Literal["error", "skip"] = "error",
        augmentation: dict[str, float] | None = None,
        seed: int = 0,
        landmark_file: str | None = None,
        prepared: bool = True,
        cache_dir: str | None = None,
    ) -> None:
        super().__init__()
        crop = self.default_crop if crop is None else crop
        check_crop(crop, self.source_size)
        left, top, right, bottom = crop
        self.crop = (left, top, right, bottom)
        self.root, self.image_size, self.batch_size, self.num_workers = root, image_size, batch_size, num_workers
        self.attributes, self.train_fraction, self.on_bad_image = attributes, train_fraction, on_bad_image
        self.augmentation = Augmentation(**augmentation) if augmentation else None
        self.seed = seed
        self.landmark_file = landmark_file
        self.prepared = prepared
        self.cache_dir = Path(cache_dir or os.environ.get(CACHE_ENVIRONMENT_VARIABLE, DEFAULT_CACHE)).expanduser()
        self.first_step = (0, 0)
        """The epoch, and the step in it, that training goes on with."""
        self.train_size: int | None = None
        """Height and width of the training images in pixels, where they are not to be ``image_size``."""
        self._table: FaceTable | None = None
        self._train_rows: NDArray[np.int64] | None = None
        self._store: ImageStore | None = None
        self._packed: PackedImages | None = None

    @abstractmethod
    def read_table(self) -> FaceTable:
        """Read and check the annotations of every split, and, where they are files, the images (`check_images`)."""

    def annotation_files(self) -> list[Path]:
        """Return the files that `read_table` reads, and those that it would read if they were there."""
        return [Path(self.landmark_file)] if self.landmark_file is not None else []

    def open_store(self, table: FaceTable) -> ImageStore:
        """Return where the images of ``table`` are read from."""
        return FileStore(table)

    def find_data(self) -> None:
        """Raise a DataError if the folder or the landmark file is not there; cheap, for checks before the work."""
        self.data_root()
        check_landmark_file(self.landmark_file)

    def data_root(self) -> Path:
        """Return the data set's folder.

        Raises:
            DataError: there is no such folder, or none was named.
        """
        base = os.environ.get(DATA_ENVIRONMENT_VARIABLE)
        hint = (
            f"Set data.root=/path/to/{self.name}, or {DATA_ENVIRONMENT_VARIABLE} "
            f"to the folder that holds '{self.name}'."
        )
        if self.root is None and base is None:
            raise DataError(
                f"data.root: the folder of the data set '{self.name}' is not known. "
                f"{hint} The README says how to get the data."
            )
        root = Path(self.root) if self.root is not None else Path(str(base)) / self.name
        if not root.is_dir():
            raise DataError(f"data.root: there is no folder {root}. {hint} The README says how to get the data.")
        return root

    def prepare_data(self) -> None:
        """Prepare the data, unless it is; Lightning calls it in one process per machine."""
        if self.prepared:
            prepare(self)

    def setup(self, stage: str | None = None) -> None:
        """Read and check the annotations and images, once; ``stage`` makes no difference."""
        if self._table is not None:
            return
        prepared = prepare(self) if self.prepared else Prepared(self.read_table(), None)
        table = prepared.table
        empty = [split.name.lower() for split in Split if not len(table.rows(split))]
        if empty:
            raise DataError(f"{table.root}: no image is in the split {' and in '.join(empty)}; each split needs some.")
        for note in table.notes:
            log.info("%s: %s", table.name, note)
        columns = [
            table.attribute_names.index(name) for name in resolve_attributes(self.attributes, table.attribute_names)
        ]
        table.attribute_names = tuple(table.attribute_names[column] for column in columns)
        table.attributes = np.ascontiguousarray(table.attributes[:, columns])
        self._table, self._store, self._packed = table, self.open_store(table), prepared.images

    @property
    def table(self) -> FaceTable:
        """The rows of every split; after `setup`."""
        if self._table is None:
            raise RuntimeError("Call setup() before the table is used.")
        return self._table

    @property
    def attribute_names(self) -> list[str]:
        """The names of the columns of a batch's ``attributes``; after `setup`."""
        return list(self.table.attribute_names)

    def preprocessing(self, mean: Sequence[float], std: Sequence[float]) -> Preprocessing:
        """Return how this data set's images become a network's input, for a backbone's ``mean`` and ``std``."""
        return Preprocessing(
            source_size=self.table.image_size,
            crop=self.crop,
            image_size=self.image_size,
            mean=tuple(mean),
            std=tuple(std),
            template=self._template(),
            any_size=self.any_size,
        )

    def training_prevalence(self, database: int | None = None) -> Tensor:
        """Return the share of positives among the labelled training images, float32 (A,), NaN without a label.

        Args:
            database: of the images of this one of `FaceTable.databases`; ``None`` of all.
        """
        rows = self.train_rows()
        if database is not None:
            rows = rows[self.table.database[rows] == database]
        labels = self.table.attributes[rows]
        labelled = (labels >= 0).sum(axis=0)
        with np.errstate(invalid="ignore"):
            return torch.from_numpy(((labels == 1).sum(axis=0) / labelled).astype(np.float32))

    def labelled_attributes(self) -> list[list[bool]]:
        """Return for each of `FaceTable.databases` and each attribute whether a training image carries its label."""
        rows = self.train_rows()
        labelled, database = self.table.attributes[rows] >= 0, self.table.database[rows]
        return [labelled[database == index].any(axis=0).tolist() for index in range(len(self.table.databases))]

    def training_age_groups(self) -> Tensor:
        """Return the share of each age group among the labelled training images, float32 (G,), NaN without a label."""
        labels = self.table.age_group[self.train_rows()]
        counts = np.bincount(labels[labels >= 0], minlength=len(self.table.age_groups))
        with np.errstate(invalid="ignore"):
            return torch.from_numpy((counts / counts.sum()).astype(np.float32))

    def train_rows(self) -> NDArray[np.int64]:
        """Return the table's rows to train on, int64 (n,): the training split, or `train_fraction` of it, with about
        the whole's shares of `FaceTable.all_slices`, that is of the attributes to learn too.
        """
        rows = self.table.rows(Split.TRAIN)
        if not 0 < self.train_fraction <= 1:
            raise ConfigError([f"data.train_fraction: expected a share in (0, 1], found {self.train_fraction}."])
        kept = max(1, round(self.train_fraction * len(rows)))
        if kept == len(rows):
            return rows
        if self._train_rows is None:
            divisions = [part.code[rows] for part in self.table.all_slices().values()]
            self._train_rows = np.sort(rows[stratified_order(divisions, kept, self.seed)])
        return self._train_rows

    def mix(self, rows: NDArray[np.int64]) -> Mix | None:
        """Return how much of an epoch each part of the training split gets; ``None`` for every row once.

        Args:
            rows: int64 (n,), the table's rows to train on.
        """
        return None

    def dataset(self, split: Split) -> FaceDataset:
        """Return a split; only the training split is augmented."""
        training = split is Split.TRAIN
        rows = self.train_rows() if training else self.table.rows(split)
        return FaceDataset(self.table, rows, self.source(), self.seed if training and self.augmentation else None)

    def source(self) -> FaceSource:
        """Return where images and landmarks of the table's rows come from; after `setup`."""
        source = self.cropped_source(self.table)
        return source if self._packed is None else PreparedSource(self._packed, source)

    def cropped_source(self, table: FaceTable) -> CroppedSource:
        """Return the images and landmarks of a table of this data set, from its files."""
        # Normalisation is the network's; the data set's own part of the preprocessing is geometry alone.
        geometry = Preprocessing(table.image_size, self.crop, self.image_size, mean=(), std=())
        return CroppedSource(table, self.open_store(table), geometry)

    def source_images(self, rows: NDArray[np.int64]) -> Sequence[NDArray[np.uint8]]:
        """Return the crops of the table's ``rows`` at the source's resolution, uint8 (h, w, 3) each, for people to
        look at.
        """
        assert self._store is not None
        left, top, right, bottom = self.crop
        return list(self._store.read(rows)[:, top:bottom, left:right])

    def train_dataloader(self) -> DataLoader[Batch]:
        return self._loader(Split.TRAIN)

    def val_dataloader(self) -> DataLoader[Batch]:
        return self._loader(Split.VALIDATION)

    def test_dataloader(self) -> DataLoader[Batch]:
        return self._loader(Split.TEST)

    def check_batches(self, processes: int) -> None:
        """Raise a ConfigError unless each split has enough images for a step of so many processes; after `setup`."""
        problems = []
        for split in Split:
            try:
                self._order(split, 0, processes)
            except ConfigError as error:
                problems += error.problems
        if problems:
            raise ConfigError(problems)

    def _order(self, split: Split, rank: int, world_size: int) -> EpochOrder:
        training = split is Split.TRAIN
        rows = self.train_rows() if training else self.table.rows(split)
        mix = self.mix(rows) if training else None
        return EpochOrder(
            len(rows), self.batch_size, self.seed, training, rank, world_size, split=split.name.lower(), mix=mix
        )

    def _loader(self, split: Split) -> DataLoader[Batch]:
        dataset = self.dataset(split)
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        order = self._order(split, rank, world_size)
        if split is Split.TRAIN:
            # Not only by Lightning, which says so after workers have begun to fetch.
            order.begin_at(*self.first_step)
        gpu = torch.cuda.is_available()
        workers = self.num_workers
        if workers is None:
            workers = min(8, (os.cpu_count() or 1) // max(1, torch.cuda.device_count())) if gpu else 0
        return FaceLoader(
            dataset,
            batch_size=None,
            sampler=order,
            num_workers=workers,
            collate_fn=_shared,
            pin_memory=gpu,
            persistent_workers=workers > 0,
            # The loader draws a number for each iterator: from its own source, or dropout would depend on the workers.
            generator=torch.Generator(),
        )

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        if self.train_size is not None and self.trainer is not None and self.trainer.training:
            batch["image"] = resize(batch["image"], self.train_size)
        if "augmentation" in batch:
            assert self.augmentation is not None
            return augment(batch, self.augmentation)
        return batch

    def landmark_count(self) -> int:
        """Return how many landmarks there are to learn; 0 where no training image has any. After `setup`."""
        known = self._known_landmarks()
        return known.shape[1] if len(known) else 0

    def _template(self) -> tuple[tuple[float, float], ...]:
        points = self._known_landmarks().mean(axis=0) if self.landmark_count() else np.array(self.mean_landmarks)
        left, top, right, bottom = self.crop
        fractions = (points.reshape(-1, 2) + 0.5 - (left, top)) / (right - left, bottom - top)
        return tuple((round(float(x), 4), round(float(y), 4)) for x, y in fractions)

    def _known_landmarks(self) -> NDArray[np.float32]:
        """Return the landmarks of the training images that have all of them."""
        landmarks = self.table.landmarks[self.table.split == Split.TRAIN]
        known: NDArray[np.float32] = landmarks[~np.isnan(landmarks).any(axis=(1, 2))]
        return known
