"""CelebA: 202,599 aligned faces with forty attributes, five landmarks and identities."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from faceattr_lightning.attributes import CELEBA_ATTRIBUTES
from faceattr_lightning.data.annotations import choose_landmarks, find_file, not_found, read_annotations
from faceattr_lightning.data.images import check_images
from faceattr_lightning.data.module import FaceDataModule
from faceattr_lightning.data.table import FaceTable, Split
from faceattr_lightning.errors import DataError
from faceattr_lightning.landmarks import LANDMARKS_5

IMAGE_SIZE = (218, 178)
"""(height, width) of the aligned images."""

_SOURCE = "the CelebA project page of the Multimedia Laboratory, CUHK (aligned and cropped images, and annotations)"
_ANNOTATION_FOLDERS = ("", "Anno", "Eval")
# The inner folder first: Kaggle's archive nests the images twice, and then the outer one holds nothing else.
_IMAGE_FOLDERS = (
    "img_align_celeba/img_align_celeba",
    "img_align_celeba",
    "Img/img_align_celeba/img_align_celeba",
    "Img/img_align_celeba",
)
# Ours by the official code, which indexes it: 0 is not labelled, 1 present, -1 (the last item) absent.
_LABEL_OF_CODE = np.array([-1, 1, 0], dtype=np.int8)


def read_celeba(root: Path, landmark_file: str | None = None) -> FaceTable:
    """Read CelebA's annotations, flat or in the official folders, as text or Kaggle's CSV, of all images or any subset.

    The attribute file decides which images there are. Landmarks and identities are optional. No image is looked at:
    see `check_images`.

    Args:
        root: the folder with the annotations and the image folder.
        landmark_file: see `FaceDataModule`.

    Raises:
        DataError: a file is missing or malformed, or the partition misses images.
    """
    notes: list[str] = []
    attribute_path = _require_table(root, "list_attr_celeba", notes)
    partition_path = _require_table(root, "list_eval_partition", notes)
    image_root = next((root / folder for folder in _IMAGE_FOLDERS if (root / folder).is_dir()), None)
    if image_root is None:
        raise not_found("CelebA's image folder img_align_celeba", [root, root / "Img"], "celeba", _SOURCE)

    files, attributes = read_attribute_file(attribute_path, notes)
    split = read_partition_file(partition_path, files, notes)
    own = _find_table(root, "list_landmarks_align_celeba", notes)
    if own is None and landmark_file is None:
        notes.append(f"{root}: there is no list_landmarks_align_celeba.txt (or .csv), so there are no landmarks.")
        landmarks = np.full((len(files), len(LANDMARKS_5), 2), np.nan, dtype=np.float32)
    else:
        landmarks = choose_landmarks(landmark_file, own, files, IMAGE_SIZE, notes)
    identity_path = _find_table(root, "identity_CelebA", notes)
    if identity_path is None:
        notes.append(f"{root}: there is no identity_CelebA.txt (or .csv), so identities are unknown.")
        identity = np.full(len(files), -1, dtype=np.int64)
    else:
        identity = read_identity_file(identity_path, files, notes)
    return FaceTable(
        name="celeba",
        root=image_root,
        files=files,
        attribute_names=CELEBA_ATTRIBUTES,
        attributes=attributes,
        split=split,
        image_size=IMAGE_SIZE,
        landmarks=landmarks,
        identity=identity,
        notes=notes,
    )


def read_attribute_file(path: Path, notes: list[str]) -> tuple[list[str], NDArray[np.int8]]:
    """Read ``list_attr_celeba``: the image names and int8 (N, 40), 1 present, 0 absent, -1 not labelled.

    The file's own codes are 1, -1 and 0 for these.

    Raises:
        DataError: see `read_annotations`; also a file whose codes are 0 and 1 only.
    """
    expected = "1 (present), -1 (absent) or 0 (not labelled)"
    table = read_annotations(path, CELEBA_ATTRIBUTES, -1, 1, expected)
    unlabelled = int((table.values == 0).sum())
    if unlabelled and table.values.min() == 0:
        raise DataError(
            f"{path}: every label is 0 or 1, but CelebA writes absent as -1; expected {expected}. Write -1 for 0."
        )
    if unlabelled:
        notes.append(f"{path}: {unlabelled:,} labels are 0 and were taken as not labelled.")
    return table.files, _LABEL_OF_CODE[table.values]


def read_partition_file(path: Path, files: Sequence[str], notes: list[str]) -> NDArray[np.int8]:
    """Read ``list_eval_partition`` for the images ``files``: int8 (N,), a `Split` each.

    Raises:
        DataError: see `read_annotations`; also an image without a row.
    """
    expected = "0 (train), 1 (validation) or 2 (test)"
    table = read_annotations(path, ("partition",), min(Split), max(Split), expected, titled=False)
    rows = table.rows_of(files, notes)
    missing = np.flatnonzero(rows < 0)
    if missing.size:
        raise DataError(
            f"{path}: the partition misses {missing.size:,} of the {len(files):,} images that have labels, "
            f"first {files[missing[0]]}. Add a row for each of them, or take the official file."
        )
    split: NDArray[np.int8] = table.values[rows, 0].astype(np.int8)
    return split


def read_identity_file(path: Path, files: Sequence[str], notes: list[str]) -> NDArray[np.int64]:
    """Read ``identity_CelebA`` for the images ``files``: int64 (N,), -1 for an image without a row.

    Raises:
        DataError: see `read_annotations`.
    """
    expected = "the number of a person, from 0"
    table = read_annotations(path, ("identity",), 0, np.iinfo(np.int32).max, expected, titled=False)
    rows = table.rows_of(files, notes)
    missing = rows < 0
    if missing.any():
        notes.append(f"{path}: {int(missing.sum()):,} of {len(files):,} images have no row and so no identity.")
    return np.where(missing, -1, table.values[rows, 0])


def _candidates(root: Path, stem: str) -> list[Path]:
    names = [f"{stem}{suffix}" for suffix in (".txt", ".csv")]
    return [root / folder / name for name in names for folder in _ANNOTATION_FOLDERS]


def _find_table(root: Path, stem: str, notes: list[str]) -> Path | None:
    return find_file(_candidates(root, stem), notes)


def _require_table(root: Path, stem: str, notes: list[str]) -> Path:
    path = _find_table(root, stem, notes)
    if path is None:
        folders = [root / folder for folder in _ANNOTATION_FOLDERS]
        raise not_found(f"CelebA's {stem}.txt (or .csv)", folders, "celeba", _SOURCE)
    return path


class CelebA(FaceDataModule):
    """CelebA's official files, or any subset of them, with the official partition; see `read_celeba`."""

    name = "celeba"
    source_size = IMAGE_SIZE
    default_crop = (0, 20, 178, 198)

    def annotation_files(self) -> list[Path]:
        stems = ("list_attr_celeba", "list_eval_partition", "list_landmarks_align_celeba", "identity_CelebA")
        own = [path for stem in stems for path in _candidates(self.data_root(), stem)]
        return [*super().annotation_files(), *own]

    def read_table(self) -> FaceTable:
        return check_images(read_celeba(self.data_root(), self.landmark_file), self.on_bad_image)
