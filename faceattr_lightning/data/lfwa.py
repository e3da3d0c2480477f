"""LFWA: 13,143 photos of LFW with forty or seventy-three attributes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Unpack

import numpy as np
from numpy.typing import NDArray

from faceattr_lightning.attributes import CELEBA_ATTRIBUTES, canonical_attribute
from faceattr_lightning.data.annotations import check_distinct, choose_landmarks, find_file, not_found
from faceattr_lightning.data.images import check_images
from faceattr_lightning.data.module import FaceDataModule, FileOptions
from faceattr_lightning.data.splits import check_fractions, draw_split
from faceattr_lightning.data.table import FaceTable, Split, safe_relative_path
from faceattr_lightning.errors import DataError

IMAGE_SIZE = (250, 250)
"""(height, width) of LFW's images."""

_SOURCE = "the LFWA entry of the CelebA project page of the Multimedia Laboratory, CUHK"
# Kaggle's archive nests the deep-funneled images twice.
_LANDMARK_FILE = "list_landmarks_lfwa.txt"
_IMAGE_FOLDERS = ("lfw", "lfw-deepfunneled/lfw-deepfunneled", "lfw-deepfunneled", "images", "")


def read_lfwa(
    root: Path,
    attributes: Literal[40, 73] = 40,
    validation_fraction: float = 0.1,
    seed: int = 0,
    landmark_file: str | None = None,
) -> FaceTable:
    """Read LFWA's annotations from MATLAB files of version 5 or 7.3 (HDF5).

    The official files have no validation split: whole people are moved to it from the training images. No image is
    looked at: see `check_images`.

    Args:
        root: the folder with ``lfw_att_40.mat`` or ``lfw_att_73.mat``, ``indices_train_test.mat`` and the image folder.
        attributes: which of the two label files to read.
        validation_fraction: about which part of the training images to validate on, in [0, 1).
        seed: of the draw of people for validation; the same names and seed always give the same split.
        landmark_file: see `FaceDataModule`.

    Raises:
        ConfigError: ``validation_fraction`` is out of range.
        DataError: a file is missing, malformed or contradicts another.
    """
    check_fractions(validation_fraction)
    notes: list[str] = []
    label_path = _require(root, f"lfw_att_{attributes}.mat")
    index_path = _require(root, "indices_train_test.mat")
    files, names, labels = _read_label_file(label_path, attributes)
    split = _read_index_file(index_path, len(files))

    people = [file.split("/")[-2] for file in files]
    image_root = _image_root(root, files)
    train = np.flatnonzero(split == Split.TRAIN)
    split[train] = draw_split([people[row] for row in train], validation_fraction, seed)

    own = find_file([root / _LANDMARK_FILE], notes)
    return FaceTable(
        name="lfwa",
        root=image_root,
        files=files,
        attribute_names=names,
        attributes=labels,
        split=split,
        image_size=IMAGE_SIZE,
        landmarks=choose_landmarks(landmark_file, own, files, IMAGE_SIZE, notes),
        identity=np.unique(people, return_inverse=True)[1].astype(np.int64),
        notes=notes,
    )


def _require(root: Path, name: str) -> Path:
    if not (root / name).is_file():
        raise not_found(f"LFWA's {name}", [root], "lfwa", _SOURCE)
    return root / name


def _image_root(root: Path, files: Sequence[str]) -> Path:
    people = dict.fromkeys(file.rpartition("/")[0] for file in files)
    folders = [root / folder for folder in _IMAGE_FOLDERS]
    for folder in folders:
        if any((folder / person).is_dir() for person in people):
            return folder
    raise not_found(f"LFW's image folder, with {next(iter(people))}/ in it,", [root, *folders[:-1]], "lfwa", _SOURCE)


def _read_label_file(path: Path, n_attributes: int) -> tuple[list[str], tuple[str, ...], NDArray[np.int8]]:
    """Return the image names, the attribute names and int8 (N, A): 1 present, 0 absent, -1 not labelled."""
    content = _read_mat(path, strings=("AttrName", "name"), numbers=("label",))
    names = tuple(map(canonical_attribute, content["AttrName"]))
    if len(set(names)) != n_attributes or len(names) != n_attributes:
        found = ", ".join(content["AttrName"])[:1000]
        raise DataError(
            f"{path}: expected {n_attributes} different names in AttrName, found {len(names)}: {found}. "
            "Names that differ in case, spaces and punctuation alone, or in a known other spelling, are the same."
        )
    if n_attributes == len(CELEBA_ATTRIBUTES):
        for name, official in zip(names, CELEBA_ATTRIBUTES, strict=True):
            if name != official:
                raise DataError(
                    f"{path}: expected {official!r} in AttrName, found {name!r}. "
                    "The forty names must be CelebA's, in its order. Fetch the file again."
                )

    def where(row: int) -> str:
        return f"{path}, row {row + 1}"

    files = [safe_relative_path(name, where(row)) for row, name in enumerate(content["name"])]
    for row, file in enumerate(files):
        if "/" not in file:
            raise DataError(f"{where(row)}: expected an image name such as Person\\Person_0001.jpg, found {file!r}.")
    check_distinct(files, where)

    label = content["label"]
    if label.shape != (len(files), len(names)) or not files:
        raise DataError(
            f"{path}: label is of size {' x '.join(map(str, label.shape))}, but there are {len(files)} image names and "
            f"{len(names)} attribute names. Fetch the file again."
        )
    unlabelled = np.isnan(label) | (label == -1)
    wrong = np.argwhere(~(unlabelled | (label == 0) | (label == 1)))
    if wrong.size:
        row, column = wrong[0].tolist()
        raise DataError(
            f"{where(row)} ({files[row]}): {names[column]} is {label[row, column]:g}; "
            "expected 1 (present), 0 (absent), or NaN or -1 (not labelled)."
        )
    return files, names, np.where(unlabelled, -1, label).astype(np.int8)


def _read_index_file(path: Path, n_rows: int) -> NDArray[np.int8]:
    """Return int8 (N,), `Split.TRAIN` or `Split.TEST` for each row."""
    variables = {Split.TRAIN: "indices_img_train", Split.TEST: "indices_img_test"}
    content = _read_mat(path, strings=(), numbers=tuple(variables.values()))
    split = np.full(n_rows, -1, dtype=np.int8)
    for code, variable in variables.items():
        indices = content[variable].ravel()
        wrong = indices[~((indices >= 1) & (indices <= n_rows) & (indices == np.floor(indices)))]
        if wrong.size:
            raise DataError(
                f"{path}: {variable} holds {wrong[0]:g}; expected whole numbers from 1 to {n_rows}, the number of rows "
                "of the label file. Take both files from the same source."
            )
        rows = indices.astype(np.int64) - 1
        again = rows[split[rows] >= 0]
        if again.size:
            raise DataError(
                f"{path}: row {again[0] + 1} is both in {' and in '.join(variables.values())}; leave it in one of them."
            )
        split[rows] = code
    left = np.flatnonzero(split < 0)
    if left.size:
        raise DataError(
            f"{path}: {left.size:,} of the {n_rows:,} rows are neither in {' nor in '.join(variables.values())}, "
            f"first row {left[0] + 1}. Add each to one of them."
        )
    return split


def _read_mat(path: Path, strings: Sequence[str], numbers: Sequence[str]) -> dict[str, Any]:
    """Read variables of a MATLAB file: ``strings`` as lists of str, ``numbers`` as float64 arrays in MATLAB's shape.

    Raises:
        DataError: the file is neither v5 nor v7.3, a variable is missing or of another type.
    """
    import h5py

    wanted = (*strings, *numbers)
    try:
        if h5py.is_hdf5(path):
            with h5py.File(path, "r") as file:
                found, content = _read_hdf5(file, wanted)
        else:
            found, content = _read_v5(path, wanted)
    # On damaged files these libraries raise anything from TypeError to zlib.error.
    except Exception as error:
        raise DataError(
            f"{path}: expected a MATLAB file of version 5 or 7.3 (HDF5), but it can't be read: {error}. Fetch it again."
        ) from error
    missing = [name for name in wanted if name not in content]
    if missing:
        raise DataError(
            f"{path}: expected the variables {', '.join(wanted)}; found {', '.join(found)}. "
            f"Rename what stands for {', '.join(missing)}, or fetch the file again."
        )
    for name in wanted:
        if isinstance(content[name], list) != (name in strings):
            kind = "strings" if name in strings else "numbers"
            raise DataError(f"{path}: expected the variable {name} to hold {kind}. Fetch the file again.")
    return content


def _read_v5(path: Path, wanted: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    import scipy.io

    content = {name: value for name, value in scipy.io.loadmat(path).items() if not name.startswith("__")}
    return list(content), {name: _plain(content[name]) for name in wanted if name in content}


def _plain(value: NDArray[Any]) -> list[str] | NDArray[np.float64]:
    # A cell array of strings is an array of objects, each an array of one string.
    if value.dtype.kind == "O":
        return ["".join(cell.ravel().tolist()) for cell in value.ravel()]
    return value.astype(np.float64)


def _read_hdf5(file: Any, wanted: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    content: dict[str, Any] = {}
    for name in wanted:
        if name not in file:
            continue
        value = file[name][()]
        # A cell array of strings is an array of references to arrays of UTF-16 codes.
        if value.dtype.kind == "O":
            content[name] = [file[cell][()].astype("<u2").tobytes().decode("utf-16-le") for cell in value.ravel()]
        else:
            # MATLAB stores its matrices column by column, which HDF5 shows as the transposed matrix.
            content[name] = value.T.astype(np.float64)
    return [name for name in file if not name.startswith("#")], content


class LFWA(FaceDataModule):
    """LFWA's official files over the deep-funneled LFW images; see `read_lfwa`.

    Args:
        label_set: 40 for CelebA's attributes, 73 for the longer list.
        validation_fraction: share of the training images, by whole identities, that becomes the validation split.
        options: see `FaceDataModule`.
    """

    name = "lfwa"
    source_size = IMAGE_SIZE
    default_crop = (36, 22, 214, 200)
    # MTCNN's, over the 5,636 training images of the split in shared/data. Aligned to them, LFW's photos are answered as
    # well as cropped at the same place (+0.01 ± 0.10 points of accuracy); cut out by a face's box 4.1 points worse.
    mean_landmarks = ((104.68, 112.89), (146.37, 112.01), (125.66, 137.06), (108.06, 159.0), (144.77, 158.32))
    table_options = ("label_set", "validation_fraction", "seed", "landmark_file")

    def __init__(
        self,
        label_set: Literal[40, 73] = 40,
        validation_fraction: float = 0.1,
        **options: Unpack[FileOptions],
    ) -> None:
        check_fractions(validation_fraction)
        super().__init__(**options)
        self.label_set, self.validation_fraction = label_set, validation_fraction

    def annotation_files(self) -> list[Path]:
        names = (f"lfw_att_{self.label_set}.mat", "indices_train_test.mat", _LANDMARK_FILE)
        return [*super().annotation_files(), *(self.data_root() / name for name in names)]

    def read_table(self) -> FaceTable:
        table = read_lfwa(self.data_root(), self.label_set, self.validation_fraction, self.seed, self.landmark_file)
        return check_images(table, self.on_bad_image)
