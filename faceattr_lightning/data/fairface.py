"""FairFace: 97,698 faces with gender, nine age groups and seven races."""

from __future__ import annotations

from pathlib import Path
from typing import Unpack

import numpy as np
from numpy.typing import NDArray

from faceattr_lightning.attributes import FAIRFACE_AGE_GROUPS, FAIRFACE_RACES, GENDER
from faceattr_lightning.data.annotations import check_distinct, choose_landmarks, not_found
from faceattr_lightning.data.delimited import TextTable, read_text_table
from faceattr_lightning.data.images import check_images
from faceattr_lightning.data.module import FaceDataModule, FileOptions
from faceattr_lightning.data.splits import check_fractions, draw_split
from faceattr_lightning.data.table import FaceTable, Slice, Split, safe_relative_path
from faceattr_lightning.errors import DataError

IMAGE_SIZE = (224, 224)
"""(height, width) of the images with a padding of 0.25."""

TEST_FRACTION = 0.2
"""Share of the validation file that becomes the test split where there is no training file."""

_SOURCE = "the FairFace project page (images with padding 0.25, and both label files)"
_COLUMNS = ("file", "age", "gender", "race", "service_test")
_GENDERS = {"Female": 0, "Male": 1, "": -1}
_AGES = {name: code for code, name in enumerate(FAIRFACE_AGE_GROUPS)} | {"": -1}
_RACES = {name: code for code, name in enumerate(FAIRFACE_RACES)} | {"": -1}


def read_fairface(
    root: Path, validation_fraction: float = 0.1, seed: int = 0, landmark_file: str | None = None
) -> FaceTable:
    """Read FairFace's label files.

    With the training file, the validation file is the test split (ours: the official test split is not public) and the
    validation split is drawn from the training file. Without it, all three splits are drawn from the validation file.
    There are no identities, so each image is a person of its own. The race is no attribute but the slice ``race``:
    nobody learns it. No image is looked at: see `check_images`.

    Args:
        root: the folder with ``fairface_label_val.csv``, ``fairface_label_train.csv``, ``val/`` and ``train/``.
        validation_fraction: which part of the file that it is drawn from to validate on, in [0, 1).
        seed: of the draw; the same names and seed always give the same split.
        landmark_file: see `FaceDataModule`.

    Raises:
        ConfigError: ``validation_fraction`` is out of range.
        DataError: a file is missing or malformed, or has no gender in any row.
    """
    check_fractions(validation_fraction)
    notes: list[str] = []
    train_path, test_path = _label_files(root)
    if not test_path.is_file():
        raise not_found(f"FairFace's {test_path.name}", [root], "fairface", _SOURCE)
    files, labels = _read_label_file(test_path)
    if train_path.is_file():
        train_files, train_labels = _read_label_file(train_path)
        split = np.concatenate(
            [draw_split(train_files, validation_fraction, seed), np.full(len(files), Split.TEST, dtype=np.int8)]
        )
        files = train_files + files
        labels = np.concatenate([train_labels, labels])
        check_distinct(files, lambda row: f"{train_path if row < len(train_files) else test_path}")
    else:
        split = draw_split(files, validation_fraction, seed, TEST_FRACTION)
        notes.append(
            f"{root}: there is no {train_path.name}, so train, validation and test are drawn from {test_path.name}, "
            f"{1 - validation_fraction - TEST_FRACTION:.0%}, {validation_fraction:.0%} and {TEST_FRACTION:.0%} of it; "
            "no figure may be compared with one on the official split."
        )
    gender, age_group, race = labels.T
    return FaceTable(
        name="fairface",
        root=root,
        files=files,
        attribute_names=(GENDER,),
        attributes=gender.astype(np.int8)[:, None],
        split=split,
        image_size=IMAGE_SIZE,
        landmarks=choose_landmarks(landmark_file, None, files, IMAGE_SIZE, notes),
        identity=np.full(len(files), -1, dtype=np.int64),
        age_groups=FAIRFACE_AGE_GROUPS,
        age_group=np.ascontiguousarray(age_group),
        slices={"race": Slice(FAIRFACE_RACES, np.ascontiguousarray(race))},
        notes=notes,
    )


def _label_files(root: Path) -> list[Path]:
    return [root / f"fairface_label_{part}.csv" for part in ("train", "val")]


def _read_label_file(path: Path) -> tuple[list[str], NDArray[np.int64]]:
    """Return the image names, and int64 (N, 3): gender, 1 male, age group and race; -1 where not labelled."""
    table = read_text_table(path, columns=_COLUMNS)
    files = [safe_relative_path(name, table.where(row)) for row, name in enumerate(table.columns["file"])]
    check_distinct(files, table.where)
    gender = _known(table, "gender", _GENDERS)
    if (gender < 0).all():
        raise DataError(f"{path}: no row has a gender; expected Male or Female. Fetch the file again.")
    return files, np.stack([gender, _known(table, "age", _AGES), _known(table, "race", _RACES)], axis=1)


def _known(table: TextTable, column: str, codes: dict[str, int]) -> NDArray[np.int64]:
    return table.codes(column, codes, f"{', '.join(filter(None, codes))} or nothing (not labelled)")


class FairFace(FaceDataModule):
    """FairFace's official files; see `read_fairface`.

    Args:
        validation_fraction: share of the training file, or of the validation file where there is no other, that becomes
            the validation split.
        options: see `FaceDataModule`.
    """

    name = "fairface"
    source_size = IMAGE_SIZE
    default_crop = (0, 0, 224, 224)
    age_group_names = FAIRFACE_AGE_GROUPS
    table_options = ("validation_fraction", "seed", "landmark_file")

    def __init__(
        self,
        validation_fraction: float = 0.1,
        **options: Unpack[FileOptions],
    ) -> None:
        check_fractions(validation_fraction)
        super().__init__(**options)
        self.validation_fraction = validation_fraction

    def annotation_files(self) -> list[Path]:
        return [*super().annotation_files(), *_label_files(self.data_root())]

    def read_table(self) -> FaceTable:
        table = read_fairface(self.data_root(), self.validation_fraction, self.seed, self.landmark_file)
        return check_images(table, self.on_bad_image)
