"""Adience: 26,580 photos of Flickr albums with gender and eight age groups, in five folds."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Unpack

import numpy as np
from numpy.typing import NDArray

from faceattr_lightning.attributes import ADIENCE_AGE_GROUPS, GENDER
from faceattr_lightning.data.annotations import check_distinct, choose_landmarks, not_found
from faceattr_lightning.data.delimited import TextTable, read_text_table
from faceattr_lightning.data.images import check_images
from faceattr_lightning.data.module import FaceDataModule, FileOptions
from faceattr_lightning.data.splits import check_fractions, draw_split, note_shared_people
from faceattr_lightning.data.table import FaceTable, Split, safe_relative_path
from faceattr_lightning.errors import ConfigError, DataError

IMAGE_SIZE = (816, 816)
"""(height, width) of the images."""

FOLDS = 5

_SOURCE = "the Adience page of the Open University of Israel (faces or aligned faces, and the files of the five folds)"
_COLUMNS = (
    "user_id",
    "original_image",
    "face_id",
    "age",
    "gender",
    "x",
    "y",
    "dx",
    "dy",
    "tilt_ang",
    "fiducial_yaw_angle",
    "fiducial_score",
)
_PREFIXES = {"aligned": "landmark_aligned_face", "faces": "coarse_tilt_aligned_face"}
_GENDERS = {"f": 0, "m": 1, "u": -1, "": -1}
_AGE = re.compile(r"\((\d{1,3}),\s*(\d{1,3})\)|(\d{1,3})").fullmatch
_OLDEST = 120
_LISTED = 10


def read_adience(
    root: Path,
    fold: int = 0,
    images: Literal["aligned", "faces"] = "aligned",
    validation_fraction: float = 0.1,
    seed: int = 0,
    landmark_file: str | None = None,
) -> FaceTable:
    """Read Adience's five files; one fold is the test split, as published, the other four are for training.

    Ours: the validation split, drawn from the four by whole people, as a ``user_id`` (an album) stands for; and an age
    that is none of the eight groups but lies within one, such as 29 or (27, 32), counts as that group. The files have
    ages in no group and in two, too: they are not labelled. No image is looked at: see `check_images`.

    Args:
        root: the folder with ``fold_0_data.txt`` to ``fold_4_data.txt`` and the folder ``aligned`` or ``faces``.
        fold: the test split, 0 to 4.
        images: which of the two folders to take.
        validation_fraction: about which part of the other folds' images to validate on, in [0, 1).
        seed: of the draw of people for validation; the same names and seed always give the same split.
        landmark_file: see `FaceDataModule`.

    Raises:
        ConfigError: ``fold`` or ``validation_fraction`` is out of range.
        DataError: a file or folder is missing or malformed, or no row has a gender.
    """
    _check_fold(fold)
    check_fractions(validation_fraction)
    notes: list[str] = []
    tables = [_read_fold(root, number) for number in range(FOLDS)]
    if not (root / images).is_dir():
        raise not_found(f"Adience's image folder {images}", [root], "adience", _SOURCE)
    files, places = [], []
    for table in tables:
        columns = (table.columns[name] for name in ("user_id", "face_id", "original_image"))
        for row, (user, face, image) in enumerate(zip(*columns, strict=True)):
            places.append(table.where(row))
            files.append(safe_relative_path(f"{user}/{_PREFIXES[images]}.{face}.{image}", places[-1]))
    check_distinct(files, places.__getitem__)
    gender = np.concatenate([table.codes("gender", _GENDERS, "m, f, u or nothing (not known)") for table in tables])
    if (gender < 0).all():
        raise DataError(f"{root}: no row of the five files has a gender; expected m or f. Fetch the files again.")

    users = [user for table in tables for user in table.columns["user_id"]]
    test = np.repeat(np.arange(FOLDS) == fold, [len(table.columns["user_id"]) for table in tables])
    split = np.full(len(files), Split.TEST, dtype=np.int8)
    people = [user for user, is_test in zip(users, test, strict=True) if not is_test]
    split[~test] = draw_split(people, validation_fraction, seed)
    identity = np.unique(users, return_inverse=True)[1].astype(np.int64)
    note_shared_people(identity, split, notes)
    return FaceTable(
        name="adience",
        root=root / images,
        files=files,
        attribute_names=(GENDER,),
        attributes=gender.astype(np.int8)[:, None],
        split=split,
        image_size=IMAGE_SIZE,
        landmarks=choose_landmarks(landmark_file, None, files, IMAGE_SIZE, notes),
        identity=identity,
        age_groups=ADIENCE_AGE_GROUPS,
        age_group=_age_groups(root, tables, notes),
        notes=notes,
    )


def _check_fold(fold: int) -> None:
    if fold not in range(FOLDS):
        raise ConfigError([f"data.fold: expected a number from 0 to {FOLDS - 1}, found {fold}."])


def _fold_file(root: Path, fold: int) -> Path:
    return root / f"fold_{fold}_data.txt"


def _read_fold(root: Path, fold: int) -> TextTable:
    path = _fold_file(root, fold)
    if not path.is_file():
        raise not_found(f"Adience's {path.name}", [root], "adience", _SOURCE)
    return read_text_table(path, "\t", _COLUMNS)


def _age_groups(root: Path, tables: Sequence[TextTable], notes: list[str]) -> NDArray[np.int64]:
    """Return the age groups of all rows, int64 (N,), -1 where not labelled; count in ``notes`` what is irregular."""
    counts = Counter(age for table in tables for age in table.columns["age"])
    codes = {age: group for age in counts if (group := _age_group(age)) is not None}
    regular = tuple(f"({name.replace('-', ', ')})" for name in ADIENCE_AGE_GROUPS)
    for ages, what in (
        ({age for age in codes.keys() - set(regular) if codes[age] >= 0}, "lie within one age group and count as that"),
        ({age for age in codes if codes[age] < 0}, "are in no age group or in two, and are not labelled"),
    ):
        if ages:
            # Sorted for the order of those that are equally frequent.
            listed = sorted(ages, key=lambda age: (-counts[age], age))
            shown = ", ".join(f"{age or 'empty'} ({counts[age]:,})" for age in listed[:_LISTED])
            more = f", and {len(listed) - _LISTED} more" if len(listed) > _LISTED else ""
            total = sum(counts[age] for age in ages)
            notes.append(f"{root}: the ages of {total:,} images {what}: {shown}{more}.")
    expected = f"{', '.join(regular)}, another age or range from 0 to {_OLDEST}, or None"
    return np.concatenate([table.codes("age", codes, expected) for table in tables])


def _age_group(age: str) -> int | None:
    """Return the group that an age lies within, -1 if there is none, ``None`` if it is no age."""
    if age.strip() in ("", "None"):
        return -1
    match = _AGE(age.strip())
    if match is None:
        return None
    low, high = (int(match[1] or match[3]), int(match[2] or match[3]))
    if not low <= high <= _OLDEST:
        return None
    for group, name in enumerate(ADIENCE_AGE_GROUPS):
        first, last = map(int, name.split("-"))
        if first <= low and high <= last:
            return group
    return -1


class Adience(FaceDataModule):
    """Adience's official files; see `read_adience`.

    Args:
        fold: the fold that is the test split, 0 to 4; a published figure is a mean over the five.
        images: ``aligned`` for the faces aligned by landmarks, ``faces`` for those turned upright only.
        validation_fraction: share of the other folds' images, by whole people, that becomes the validation split.
        options: see `FaceDataModule`.
    """

    name = "adience"
    source_size = IMAGE_SIZE
    default_crop = (0, 0, 816, 816)
    age_group_names = ADIENCE_AGE_GROUPS
    table_options = ("fold", "images", "validation_fraction", "seed", "landmark_file")

    def __init__(
        self,
        fold: int = 0,
        images: Literal["aligned", "faces"] = "aligned",
        validation_fraction: float = 0.1,
        **options: Unpack[FileOptions],
    ) -> None:
        _check_fold(fold)
        check_fractions(validation_fraction)
        super().__init__(**options)
        self.fold, self.images, self.validation_fraction = fold, images, validation_fraction

    def annotation_files(self) -> list[Path]:
        return [*super().annotation_files(), *(_fold_file(self.data_root(), fold) for fold in range(FOLDS))]

    def read_table(self) -> FaceTable:
        table = read_adience(
            self.data_root(), self.fold, self.images, self.validation_fraction, self.seed, self.landmark_file
        )
        return check_images(table, self.on_bad_image)
