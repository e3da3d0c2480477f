"""Writers of tiny data sets in the official formats. Every image and label is drawn at random: none is real."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
import pyarrow
import pyarrow.parquet
import scipy.io
from numpy.typing import NDArray
from PIL import Image

from faceattr_lightning.attributes import ADIENCE_AGE_GROUPS, CELEBA_ATTRIBUTES, FAIRFACE_AGE_GROUPS, FAIRFACE_RACES
from faceattr_lightning.data.table import FaceTable, Slice, Split
from faceattr_lightning.landmarks import LANDMARKS_5

LANDMARK_COLUMNS = [f"{name}_{axis}" for name in LANDMARKS_5 for axis in "xy"]
LFWA_73 = ("Male", "No Eyewear", "5 o'Clock Shadow", *(f"Attribute {number}" for number in range(70)))
"""As a label file may spell them."""
LFWA_73_SPELLED = ("Male", "No_Eyewear", "5_o_Clock_Shadow", *(f"Attribute_{number}" for number in range(70)))
ADIENCE_HEADER = "user_id original_image face_id age gender x y dx dy tilt_ang fiducial_yaw_angle fiducial_score"


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
    attribute_names = CELEBA_ATTRIBUTES if attributes == 40 else LFWA_73_SPELLED
    labels = rng.integers(0, 2, (len(files), attributes), dtype=np.int8)
    split = np.where(identity % 2 == 1, Split.TRAIN, Split.TEST).astype(np.int8)

    root.mkdir(parents=True, exist_ok=True)
    write_mat(
        root / f"lfw_att_{attributes}.mat",
        {
            "AttrName": list(CELEBA_ATTRIBUTES if attributes == 40 else LFWA_73),
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


def write_fairface(root: Path, n_train: int = 30, n_val: int = 12, images: bool = True, seed: int = 0) -> FaceTable:
    """Write a FairFace and return what `read_fairface` must give without a validation split.

    With ``n_train`` 0 there is no training file, and the split is not meaningful.
    """
    rng = np.random.default_rng(seed)
    # Each in turn, in another order than ours.
    races = ("East Asian", "Indian", "Black", "White", "Middle Eastern", "Latino_Hispanic", "Southeast Asian")
    files: list[str] = []
    gender = rng.integers(0, 2, n_train + n_val)
    age_group = rng.integers(0, len(FAIRFACE_AGE_GROUPS), n_train + n_val)
    root.mkdir(parents=True, exist_ok=True)
    for part, count in (("train", n_train), ("val", n_val)):
        lines = ["file,age,gender,race,service_test"]
        for number in range(1, count + 1):
            row = len(files)
            files.append(f"{part}/{number}.jpg")
            sex = ("Female", "Male")[gender[row]]
            lines.append(
                f"{files[-1]},{FAIRFACE_AGE_GROUPS[age_group[row]]},{sex},{races[row % 7]},{('False', 'True')[row % 2]}"
            )
        if count:
            (root / f"fairface_label_{part}.csv").write_text("\n".join(lines) + "\n")
    if images:
        write_images(root, files, (224, 224), rng)
    return FaceTable(
        name="fairface",
        root=root,
        files=files,
        attribute_names=("Male",),
        attributes=gender.astype(np.int8)[:, None],
        split=np.repeat([Split.TRAIN, Split.TEST], [n_train, n_val]).astype(np.int8),
        image_size=(224, 224),
        landmarks=np.empty((len(files), 0, 2), dtype=np.float32),
        identity=np.full(len(files), -1),
        age_groups=FAIRFACE_AGE_GROUPS,
        age_group=age_group,
        slices={
            "race": Slice(FAIRFACE_RACES, np.array([FAIRFACE_RACES.index(races[row % 7]) for row in range(len(files))]))
        },
    )


def write_adience(
    root: Path, people: int = 25, folder: Literal["aligned", "faces"] = "aligned", images: bool = True, seed: int = 0
) -> FaceTable:
    """Write an Adience, a fifth of the people in each fold, and return what `read_adience` must give.

    It is the table for fold 0 and without a validation split. With ``images`` off the image folder is left empty.
    """
    rng = np.random.default_rng(seed)
    prefix = {"aligned": "landmark_aligned_face", "faces": "coarse_tilt_aligned_face"}[folder]
    rows: dict[int, list[str]] = {fold: [] for fold in range(5)}
    entries = []
    (root / folder).mkdir(parents=True)
    for person in sorted(range(people), key=lambda person: person % 5):
        for number in range(1 + person % 3):
            group, gender = int(rng.integers(8)), int(rng.integers(2))
            user, image = f"{100 + person}@N03", f"{person}_{number}_o.jpg"
            age = f"({ADIENCE_AGE_GROUPS[group].replace('-', ', ')})"
            rows[person % 5].append("\t".join([user, image, f"{person + 1}", age, "fm"[gender], *map(str, range(7))]))
            entries.append((f"{user}/{prefix}.{person + 1}.{image}", group, gender, person, person % 5))
    for fold, lines in rows.items():
        (root / f"fold_{fold}_data.txt").write_text("\n".join([ADIENCE_HEADER.replace(" ", "\t"), *lines]) + "\n")
    files, groups, genders, identity, folds = map(list, zip(*entries, strict=True))
    if images:
        write_images(root / folder, files, (816, 816), rng)
    return FaceTable(
        name="adience",
        root=root / folder,
        files=files,
        attribute_names=("Male",),
        attributes=np.array(genders, dtype=np.int8)[:, None],
        split=np.where(np.array(folds) == 0, Split.TEST, Split.TRAIN).astype(np.int8),
        image_size=(816, 816),
        landmarks=np.empty((len(files), 0, 2), dtype=np.float32),
        identity=np.array(identity),
        age_groups=ADIENCE_AGE_GROUPS,
        age_group=np.array(groups),
    )


def write_folder(
    root: Path,
    n: int = 12,
    points: Sequence[str] = (),
    columns: Sequence[str] = ("split", "identity"),
    name: str = "faces.csv",
    images: bool = True,
    seed: int = 0,
) -> FaceTable:
    """Write images of several sizes with a CSV or Parquet file, and return what `read_folder` must give.

    Two images of each person stand in one of the splits. One label in six is missing. In the file, the columns of
    ``points`` stand between the attributes.
    """
    rng = np.random.default_rng(seed)
    sizes = np.array([(60, 40), (40, 60), (32, 32), (90, 50)])[np.arange(n) % 4]
    files = [f"person {row // 2}/{row}.{('jpg', 'png')[row % 2]}" for row in range(n)]
    attributes = rng.choice(np.array([0, 1, 0, 1, 0, -1], dtype=np.int8), (n, 3))
    landmarks = (rng.random((n, len(points), 2)) * (sizes[:, None, ::-1] - 1)).round(2)
    split = (np.arange(n) // 2 % 3).astype(np.int8)
    cells: dict[str, list[Any]] = {"image": files, "Happy": _labels(attributes[:, 0])}
    if "split" in columns:
        cells["split"] = [("train", "validation", "test")[code] for code in split]
    for index, point in enumerate(points):
        for axis in (0, 1):
            cells[f"{point}_{'xy'[axis]}"] = landmarks[:, index, axis].tolist()
    cells |= {"Sad": _labels(attributes[:, 1]), "Wearing Hat": _labels(attributes[:, 2])}
    if "identity" in columns:
        cells["identity"] = [f"person {row // 2}" for row in range(n)]
    root.mkdir(parents=True, exist_ok=True)
    write_columns(root / name, cells)
    if images:
        for file, (height, width) in zip(files, sizes.tolist(), strict=True):
            (root / file).parent.mkdir(exist_ok=True)
            smooth_image(rng, (height, width)).save(root / file)
    return FaceTable(
        name="folder",
        root=root,
        files=files,
        attribute_names=("Happy", "Sad", "Wearing Hat"),
        attributes=attributes,
        split=split,
        image_size=(256, 256),
        landmarks=landmarks.astype(np.float32),
        identity=np.unique([f"person {row // 2}" for row in range(n)], return_inverse=True)[1]
        if "identity" in columns
        else np.full(n, -1),
    )


def write_columns(path: Path, cells: Mapping[str, Sequence[Any]]) -> None:
    """Write a CSV file, or a Parquet file if its name says so; ``None`` is a missing value."""
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.table({name: list(column) for name, column in cells.items()}), path)
        return
    rows = [",".join("" if cell is None else str(cell) for cell in row) for row in zip(*cells.values(), strict=True)]
    path.write_text("\n".join([",".join(cells), *rows]) + "\n")


def _labels(codes: NDArray[np.int8]) -> list[int | None]:
    return [None if code < 0 else int(code) for code in codes]


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
    for name in ("name", "root", "files", "attribute_names", "image_size", "age_groups", "databases"):
        assert getattr(table, name) == getattr(expected, name), name
    for name, dtype in (
        ("attributes", np.int8),
        ("split", np.int8),
        ("landmarks", np.float32),
        ("identity", np.int64),
        ("age_group", np.int64),
        ("database", np.int64),
    ):
        assert getattr(table, name).dtype == dtype, name
        np.testing.assert_array_equal(getattr(table, name), getattr(expected, name), err_msg=name)
    assert table.slices.keys() == expected.slices.keys()
    for name, part in expected.slices.items():
        assert table.slices[name].sides == part.sides and table.slices[name].code.dtype == np.int64
        np.testing.assert_array_equal(table.slices[name].code, part.code, err_msg=name)
