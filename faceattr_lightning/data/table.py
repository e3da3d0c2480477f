"""What a reader of annotation files hands on: every row of a data set, checked, before any image is opened."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from faceattr_lightning.errors import DataError


class Split(IntEnum):
    """The official partition codes of ``list_eval_partition.txt``."""

    TRAIN = 0
    VALIDATION = 1
    TEST = 2


@dataclass(frozen=True)
class Slice:
    """A division of a data set's images into sides, such as by race, on each of which a model is judged by itself.

    Attributes:
        sides: (S,) names.
        code: integers (N,), the side of each image, -1 where it is not known.
    """

    sides: tuple[str, ...]
    code: NDArray[np.signedinteger]


@dataclass
class FaceTable:
    """The rows of one data set.

    Attributes:
        name: the data set's name, e.g. ``celeba``.
        root: the folder that `files` are relative to.
        files: (N,) paths of the images relative to `root`, checked by `safe_relative_path`.
        attribute_names: (A,) names, in the order of the columns of `attributes`.
        attributes: int8 (N, A): 1 present, 0 absent, -1 not labelled.
        split: int8 (N,), a `Split` each.
        image_size: (height, width) in pixels that every image must have.
        landmarks: float32 (N, L, 2), x then y in pixels of the image, NaN where missing; L = 0 without landmarks.
        identity: int64 (N,), -1 where unknown.
        age_groups: (G,) names of the age groups, youngest first; empty where the data set has none.
        age_group: int64 (N,), an index into `age_groups`, -1 where not labelled; empty stands for -1 everywhere.
        databases: (D,) names of the data sets that were fused; empty stands for `name` alone.
        database: int64 (N,), an index into `databases`; empty stands for 0 everywhere.
        slices: divisions of the images that nobody learns, by name, beside those of `all_slices`.
        notes: what the reader noticed and a user should know, one sentence each; logged once.
    """

    name: str
    root: Path
    files: list[str]
    attribute_names: tuple[str, ...]
    attributes: NDArray[np.int8]
    split: NDArray[np.int8]
    image_size: tuple[int, int]
    landmarks: NDArray[np.float32]
    identity: NDArray[np.int64]
    age_groups: tuple[str, ...] = ()
    age_group: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    databases: tuple[str, ...] = ()
    database: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    slices: dict[str, Slice] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not len(self.age_group):
            self.age_group = np.full(len(self.files), -1, dtype=np.int64)
        if not len(self.database):
            self.databases, self.database = (self.name,), np.zeros(len(self.files), dtype=np.int64)

    def __len__(self) -> int:
        return len(self.files)

    def rows(self, split: Split) -> NDArray[np.int64]:
        """Return the row numbers of a split in the table's order, int64 (n,)."""
        return np.flatnonzero(self.split == split).astype(np.int64)

    def all_slices(self) -> dict[str, Slice]:
        """Return every division of the images by name: `slices`, ``database`` and ``age_group`` where there are
        several, and each attribute by its labels, ``0`` and ``1``.
        """
        found = dict(self.slices)
        if len(self.databases) > 1:
            found["database"] = Slice(self.databases, self.database)
        if self.age_groups:
            found["age_group"] = Slice(self.age_groups, self.age_group)
        return found | {
            name: Slice(("0", "1"), column)
            for name, column in zip(self.attribute_names, self.attributes.T, strict=True)
        }


def safe_relative_path(name: str, where: str) -> str:
    """Return an image's file name with forward slashes, if it stays inside the data root.

    Args:
        name: the name as written in an annotation file; backslashes count as separators.
        where: file and line or row, for the message.

    Raises:
        DataError: the name is empty, absolute, has a drive letter or climbs out with ``..``.
    """
    path = name.replace("\\", "/")
    if not path or path.startswith("/") or re.match(r"^[A-Za-z]:", path) or ".." in path.split("/") or "\0" in path:
        raise DataError(
            f"{where}: the image name {name!r} does not stay inside the data root; expected a relative path "
            "such as 000001.jpg. Mend the line; nothing was read from that path."
        )
    return path
