"""Writers of tiny data sets in the official formats. Every image and label is drawn at random: none is real."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
import scipy.io
from numpy.typing import NDArray
from PIL import Image

from faceattr_lightning.attributes import CELEBA_ATTRIBUTES
from faceattr_lightning.data.table import FaceTable, Split
from faceattr_lightning.landmarks import LANDMARKS_5

LANDMARK_COLUMNS = [f"{name}_{axis}" for name in LANDMARKS_5 for axis in "xy"]
LFWA_73 = ("Male", "No Eyewear", "5 o'Clock Shadow", *(f"Attribute {number}" for number in range(70)))


def smooth_image(rng: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    """Return an RGB image of (height, width) with random smooth colours."""
    height, width = size
    coarse = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def write_images(root: Path, files: Sequence[str], size: tuple[int, int], rng: np.random.Generator) -> None:
    """Write a JPEG of (height, width) for each of ``files``."""
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        smooth_image(rng, size).save(root / file, "JPEG")


def write_text_table(path: Path, files: Sequence[str], values: NDArray[Any], columns: Sequence[str] | None) -> None:
    """Write a table as the official files have it: with ``columns``, a count and a header that ends with a space."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [f"{file} {' '.join(f'{value:2d}' for value in row)}" for file, row in zip(files, values, strict=True)]
    heading = [] if columns is None else [str(len(files)), " ".join(columns) + " "]
    path.write_text("\n".join([*heading, *lines]) + "\n")


def write_csv_table(path: Path, files: Sequence[str], values: NDArray[Any], columns: Sequence[str]) -> None:
    """Write a table as Kaggle's copies have it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [",".join([file, *map(str, row)]) for file, row in zip(files, values, strict=True)]
    path.write_text("\n".join([",".join(["image_id", *columns]), *rows]) + "\n")


def write_celeba(
    root: Path, n: int = 12, layout: Literal["flat", "official", "kaggle"] = "flat", images: bool = True, seed: int = 0
) -> FaceTable:
    """Write a CelebA of ``n`` images, three of each person, and return the table that `read_celeba` must give.

    Of the people, one in four is in validation and one in four in test. With ``images`` off the folder is left empty.
    """
    rng = np.random.default_rng(seed)
    files = [f"{number:06d}.jpg" for number in range(1, n + 1)]
    attributes = rng.integers(0, 2, (n, len(CELEBA_ATTRIBUTES)), dtype=np.int8)
    landmarks = rng.integers(0, (178, 218), (n, len(LANDMARKS_5), 2))
    identity = 100 + np.arange(n) // 3
    split = np.array([Split.TRAIN, Split.TRAIN, Split.VALIDATION, Split.TEST], dtype=np.int8)[identity % 4]

    folders = {"flat": ("", "", "img_align_celeba"), "official": ("Anno", "Eval", "Img/img_align_celeba")}
    annotations, evaluation, image_folder = folders.get(layout, ("", "", "img_align_celeba/img_align_celeba"))
    for folder, stem, values, columns, titled in (
        (annotations, "list_attr_celeba", attributes * 2 - 1, list(CELEBA_ATTRIBUTES), True),
        (annotations, "list_landmarks_align_celeba", landmarks.reshape(n, -1), LANDMARK_COLUMNS, True),
        (annotations, "identity_CelebA", identity[:, None], ["identity"], False),
        (evaluation, "list_eval_partition", split[:, None], ["partition"], False),
    ):
        if layout == "kaggle":
            write_csv_table(root / folder / f"{stem}.csv", files, values, columns)
        else:
            write_text_table(root / folder / f"{stem}.txt", files, values, columns if titled else None)
    (root / image_folder).mkdir(parents=True)
    if images:
        write_images(root / image_folder, files, (218, 178), rng)
    return FaceTable(
        name="celeba",
        root=root / image_folder,
        files=files,
        attribute_names=CELEBA_ATTRIBUTES,
        attributes=attributes,
        split=split,
        image_size=(218, 178),
        landmarks=landmarks.astype(np.float32),
        identity=identity,
    )


def write_lfwa(
    root: Path,
    people: int = 12,
    attributes: Literal[40, 73] = 40,
    version: Literal["5", "7.3"] = "5",
    image_folder: str = "lfw",
    images: bool = True,
    seed: int = 0,
) -> FaceTable:
    """Write an LFWA, odd people for training, and return what `read_lfwa` must give without a validation split.

    With ``images`` off only the people's folders are made.
    """
    rng = np.random.default_rng(seed)
    counts = 1 + np.arange(people) * 7 % 5 % 4
    names = [f"Ann_{chr(65 + person)}" for person in range(people)]
    files = [
        f"{name}/{name}_{number:04d}.jpg"
        for name, count in zip(names, counts, strict=True)
        for number in range(1, count + 1)
    ]
    identity = np.repeat(np.arange(people), counts)
    attribute_names = CELEBA_ATTRIBUTES if attributes == 40 else LFWA_73
    labels = rng.integers(0, 2, (len(files), attributes), dtype=np.int8)
    split = np.where(identity % 2 == 1, Split.TRAIN, Split.TEST).astype(np.int8)

    root.mkdir(parents=True, exist_ok=True)
    write_mat(
        root / f"lfw_att_{attributes}.mat",
        {
            "AttrName": list(attribute_names),
            "label": labels.astype(np.float64),
            "name": [file.replace("/", "\\") for file in files],
        },
        version,
    )
    write_indices(root / "indices_train_test.mat", split, version)
    for name in names:
        (root / image_folder / name).mkdir(parents=True)
    if images:
        write_images(root / image_folder, files, (250, 250), rng)
    return FaceTable(
        name="lfwa",
        root=root / image_folder,
        files=files,
        attribute_names=attribute_names,
        attributes=labels,
        split=split,
        image_size=(250, 250),
        landmarks=np.empty((len(files), 0, 2), dtype=np.float32),
        identity=identity,
    )


def write_indices(path: Path, split: NDArray[np.int8], version: Literal["5", "7.3"] = "5") -> None:
    """Write ``indices_train_test.mat``: the rows of train and test as columns of numbers from 1."""
    write_mat(
        path,
        {
            name: np.flatnonzero(split == code).astype(np.float64)[:, None] + 1
            for name, code in (("indices_img_train", Split.TRAIN), ("indices_img_test", Split.TEST))
        },
        version,
    )


def write_mat(path: Path, variables: Mapping[str, list[str] | NDArray[Any]], version: Literal["5", "7.3"]) -> None:
    """Write MATLAB variables; a list of strings becomes a column of cells."""
    if version == "5":
        cells = {name: _cells(value) if isinstance(value, list) else value for name, value in variables.items()}
        scipy.io.savemat(path, cells)
        return
    with h5py.File(path, "w", userblock_size=512) as file:
        strings = file.create_group("#refs#")
        for name, value in variables.items():
            if isinstance(value, list):
                references = np.empty((1, len(value)), dtype=h5py.ref_dtype)
                for position, text in enumerate(value):
                    codes = np.frombuffer(text.encode("utf-16-le"), dtype="<u2")[:, None]
                    cell = strings.create_dataset(f"{name}_{position}", data=codes)
                    cell.attrs.update({"MATLAB_class": np.bytes_("char"), "MATLAB_int_decode": np.int32(2)})
                    references[0, position] = cell.ref
                node = file.create_dataset(name, data=references, dtype=h5py.ref_dtype)
                node.attrs["MATLAB_class"] = np.bytes_("cell")
            else:
                node = file.create_dataset(name, data=value.T)
                node.attrs["MATLAB_class"] = np.bytes_("double")
    with path.open("r+b") as raw:
        raw.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64 HDF5 schema 1.00 .".ljust(124) + b"\x00\x02IM")


def _cells(texts: Sequence[str]) -> NDArray[Any]:
    cells = np.empty((len(texts), 1), dtype=object)
    cells[:, 0] = texts
    return cells


def assert_same_table(table: FaceTable, expected: FaceTable) -> None:
    """Compare everything except `FaceTable.notes`, types included."""
    for name in ("name", "root", "files", "attribute_names", "image_size"):
        assert getattr(table, name) == getattr(expected, name), name
    for name, dtype in (("attributes", np.int8), ("split", np.int8), ("landmarks", np.float32), ("identity", np.int64)):
        assert getattr(table, name).dtype == dtype, name
        np.testing.assert_array_equal(getattr(table, name), getattr(expected, name), err_msg=name)
