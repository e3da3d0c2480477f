"""A user's own images, of any size, with a table of their attributes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Unpack

import numpy as np
from numpy.typing import NDArray

from faceattr_lightning.data.annotations import check_distinct, check_landmark_file, choose_landmarks
from faceattr_lightning.data.dataset import ImageStore
from faceattr_lightning.data.delimited import TextTable, check_names, read_text_table
from faceattr_lightning.data.images import check_images, fit_image, fit_landmarks, image_sizes, read_image
from faceattr_lightning.data.module import FaceDataModule, FileOptions
from faceattr_lightning.data.splits import check_fractions, draw_split, note_shared_people
from faceattr_lightning.data.table import FaceTable, safe_relative_path
from faceattr_lightning.errors import ConfigError, DataError, did_you_mean
from faceattr_lightning.landmarks import LANDMARK_COLUMNS, LANDMARKS_5

_SUFFIXES = (".csv", ".parquet")
_SPLITS = {"train": 0, "validation": 1, "val": 1, "test": 2, "0": 0, "1": 1, "2": 2}
# pandas writes whole numbers as 1.0 in a column with missing values.
_LABELS = {"1": 1, "0": 0, "-1": -1, "": -1, "true": 1, "false": 0, "1.0": 1, "0.0": 0, "-1.0": -1}


def read_folder(
    root: Path,
    table: str | None = None,
    frame: tuple[int, int] = (256, 256),
    validation_fraction: float = 0.1,
    test_fraction: float = 0.2,
    seed: int = 0,
) -> FaceTable:
    """Read a table of images and attributes.

    Its first column, of any name, is the image's path relative to ``root``. ``split`` (train, validation or val, test;
    or 0, 1, 2), ``identity`` (any text) and landmarks (pairs ``<name>_x``, ``<name>_y``) are optional; every other
    column is an attribute: 1 or true, 0 or false, -1 or nothing where it is not labelled. CelebA's five landmarks are
    brought into its order; others keep the file's, which must be that of a known layout. No image is looked at: see
    `check_images`.

    Args:
        root: the folder with the images.
        table: the CSV or Parquet file, relative to ``root`` or not; ``None`` takes the only one in ``root``.
        frame: (height, width) in pixels that the images will be brought to.
        validation_fraction: for a table without splits, about which part of the images to validate on, in [0, 1).
        test_fraction: the same for the test split. Both are drawn by whole identities.
        seed: of the draw; the same names and seed always give the same split.

    Returns:
        The table with landmarks still in pixels of the image files.

    Raises:
        ConfigError: a fraction is out of range, or pyarrow is not installed.
        DataError: the table is missing or malformed.
    """
    check_fractions(validation_fraction, test_fraction)
    notes: list[str] = []
    path = _find_table(root, table)
    text = _read_parquet(path) if path.suffix.lower() == ".parquet" else read_text_table(path)
    image, *others = text.columns
    files = [safe_relative_path(name.strip(), text.where(row)) for row, name in enumerate(text.columns[image])]
    check_distinct(files, text.where)

    points = [name[:-2] for name in others if name.endswith("_x") and f"{name[:-2]}_y" in others]
    if set(points) == set(LANDMARKS_5):
        points = list(LANDMARKS_5)
    coordinates = [f"{name}_{axis}" for name in points for axis in "xy"]
    names = [name for name in others if name not in ("split", "identity", *coordinates)]
    if not names:
        separated = "" if others else " Its only column is the image's; are the columns separated by commas?"
        raise DataError(f"{path}: there is no column of an attribute; expected one or more.{separated}")
    attributes = np.stack([_labels(text, name) for name in names], axis=1)
    unlabelled = [name for column, name in enumerate(names) if not (attributes[:, column] >= 0).any()]
    if unlabelled:
        notes.append(f"{path}: no image has a label of {', '.join(unlabelled)}.")

    people = [cell.strip() for cell in text.columns["identity"]] if "identity" in others else [""] * len(files)
    known = np.array([bool(person) for person in people])
    identity = np.where(known, np.unique(people, return_inverse=True)[1], -1).astype(np.int64)
    if "split" in others:
        split = text.codes("split", _SPLITS, "train, validation (or val), test, or 0, 1, 2").astype(np.int8)
        note_shared_people(identity, split, notes)
    else:
        # An image's path is no person's name: a slash at the front keeps them apart.
        people = [person or f"/{file}" for person, file in zip(people, files, strict=True)]
        split = draw_split(people, validation_fraction, seed, test_fraction)
        by = "identity" if known.all() else "image, where the identity is not known"
        notes.append(f"{path}: there is no column split, so the splits are drawn, by {by}.")
    return FaceTable(
        name="folder",
        root=root,
        files=files,
        attribute_names=tuple(names),
        attributes=attributes,
        split=split,
        image_size=frame,
        landmarks=_landmarks(text, points, [name for name in names if name.endswith(("_x", "_y"))]),
        identity=identity,
        notes=notes,
    )


def _find_table(root: Path, table: str | None) -> Path:
    if table is not None:
        candidates = [root / table, Path(table)]
        path = next((path for path in candidates if path.is_file()), None)
        if path is None:
            raise DataError(f"data.table: there is no file {' nor '.join(map(str, dict.fromkeys(candidates)))}.")
        if path.suffix.lower() not in _SUFFIXES:
            raise DataError(f"data.table: expected a file ending in .csv or .parquet, found {path}.")
        return path
    found = sorted(path for path in root.iterdir() if path.suffix.lower() in _SUFFIXES and path.is_file())
    if len(found) != 1:
        which = f"found {', '.join(path.name for path in found)}" if found else "found none"
        raise DataError(
            f"data.table: expected one file ending in .csv or .parquet in {root}, {which}. "
            "Name the file with the attributes: data.table=FILE."
        )
    return found[0]


def _read_parquet(path: Path) -> TextTable:
    """Read a Parquet file as the texts that a CSV file would have."""
    try:
        import pyarrow
        import pyarrow.compute
        import pyarrow.parquet
    except ImportError as error:
        problem = f"data.table: reading {path} takes pyarrow; pip install 'faceattr-lightning[parquet]'."
        raise ConfigError([problem]) from error
    columns: dict[str, Sequence[str]] = {}
    try:
        content = pyarrow.parquet.ParquetFile(path).read()
        # pandas keeps its index in a column of this name, unless the index has one.
        names = [name for name in content.column_names if not name.startswith("__index_level_")]
        check_names(str(path), names)
        for name in names:
            cells = content.column(name)
            if pyarrow.types.is_floating(cells.type):
                cells = pyarrow.compute.if_else(pyarrow.compute.is_nan(cells), None, cells)
            columns[name] = pyarrow.compute.fill_null(cells.cast(pyarrow.string()), "").to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        where = f"{path}: column {len(columns) + 1}" if columns else f"{path}: the file"
        raise DataError(f"{where} can't be read ({error}); expected a Parquet file of texts and numbers.") from error
    if not columns or not content.num_rows:
        raise DataError(f"{path}: expected a row for each image, but the file has none.")
    return TextTable(path, columns, "row")


def _labels(text: TextTable, name: str) -> NDArray[np.int8]:
    near = did_you_mean(name, ("split", "identity"))
    hint = f" The column counts as an attribute.{near}" if near else ""
    if name.endswith(("_x", "_y")):
        hint = f" A landmark needs both {name[:-1]}x and {name[:-1]}y."
    expected = "1 or true (present), 0 or false (absent), or -1 or nothing (not labelled)"
    return text.codes(name, _LABELS, expected, hint).astype(np.int8)


def _landmarks(text: TextTable, points: Sequence[str], unpaired: Sequence[str]) -> NDArray[np.float32]:
    """Return float32 (N, L, 2) in pixels of the image files, NaN where missing."""
    if points and len(points) not in LANDMARK_COLUMNS:
        *first, last = map(str, LANDMARK_COLUMNS)
        alone = f" Without a partner: {', '.join(unpaired)}." if unpaired else ""
        raise DataError(
            f"{text.path}: expected the columns <name>_x and <name>_y of {', '.join(first)} or {last} landmarks, found "
            f"{len(points)}: {', '.join(points[:10])}.{alone}"
        )
    landmarks = np.empty((len(text.columns[next(iter(text.columns))]), len(points), 2), dtype=np.float32)
    for index, name in enumerate(points):
        landmarks[:, index] = np.stack([_pixels(text, f"{name}_{axis}") for axis in "xy"], axis=-1)
    known = landmarks[~np.isnan(landmarks)]
    if known.size and known.max() <= 1:
        raise DataError(
            f"{text.path}: no landmark is greater than 1; expected pixels of the image file, not fractions."
        )
    landmarks[np.isnan(landmarks).any(axis=-1)] = np.nan
    return landmarks


def _pixels(text: TextTable, column: str) -> NDArray[np.float64]:
    cells = text.columns[column]
    try:
        pixels = np.array([cell.strip() or "nan" for cell in cells]).astype(np.float64)
        wrong = np.flatnonzero(np.isinf(pixels))
    except ValueError:
        pixels, wrong = np.empty(0), np.array([row for row, cell in enumerate(cells) if not _is_number(cell)])
    if wrong.size:
        raise DataError(
            f"{text.where(wrong[0])}: {column} is {cells[wrong[0]][:60]!r}; expected pixels, or nothing where the "
            f"landmark is not known. Mend the {text.unit}."
        )
    return pixels


def _is_number(cell: str) -> bool:
    try:
        float(cell.strip() or "nan")
    except ValueError:
        return False
    return True


class FittedStore:
    """Decodes image files of any size, each brought to the table's frame; see `fit_image`."""

    def __init__(self, table: FaceTable) -> None:
        self._table = table

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        table = self._table
        return np.stack([fit_image(read_image(table.root / table.files[row], None), table.image_size) for row in rows])


class Folder(FaceDataModule):
    """A user's own images and attributes; see `read_folder`.

    Each image is turned upright, scaled to cover the frame and cut off at its centre; landmarks move with it.

    Args:
        table: the CSV or Parquet file; ``None`` takes the only one in ``root``.
        frame: (height, width) in pixels that every image is brought to before it is cropped.
        validation_fraction: for a table without splits, share of the images that becomes the validation split.
        test_fraction: the same for the test split.
        options: see `FaceDataModule`. The crop is in pixels of the frame, and ``None`` takes all of it; the landmark
            file is in pixels of the image files, like the table's landmarks.
    """

    name = "folder"
    any_size = True
    table_options = ("table_file", "source_size", "validation_fraction", "test_fraction", "seed", "landmark_file")

    def __init__(
        self,
        table: str | None = None,
        frame: Sequence[int] = (256, 256),
        validation_fraction: float = 0.1,
        test_fraction: float = 0.2,
        **options: Unpack[FileOptions],
    ) -> None:
        if len(frame) != 2 or min(frame) < 1:
            raise ConfigError([f"data.frame: expected [height, width] in pixels, found {list(frame)}."])
        check_fractions(validation_fraction, test_fraction)
        self.source_size, self.default_crop = (frame[0], frame[1]), (0, 0, frame[1], frame[0])
        super().__init__(**options)
        self.table_file, self.validation_fraction, self.test_fraction = table, validation_fraction, test_fraction

    def annotation_files(self) -> list[Path]:
        return [*super().annotation_files(), _find_table(self.data_root(), self.table_file)]

    def read_table(self) -> FaceTable:
        check_landmark_file(self.landmark_file)
        table = read_folder(
            self.data_root(), self.table_file, self.source_size, self.validation_fraction, self.test_fraction, self.seed
        )
        table = check_images(table, self.on_bad_image, any_size=self.any_size)
        if self.landmark_file is None and not table.landmarks.shape[1]:
            return table
        sizes = image_sizes(table)
        if self.landmark_file is not None:
            largest = (int(sizes[:, 0].max()), int(sizes[:, 1].max()))
            table.landmarks = choose_landmarks(self.landmark_file, None, table.files, largest, table.notes)
        outside = ((table.landmarks < -0.5) | (table.landmarks > sizes[:, None, ::-1] - 0.5)).any(axis=-1).sum()
        if outside:
            table.notes.append(f"{table.root}: landmarks outside their image, which count as unknown: {outside:,}.")
        table.landmarks = fit_landmarks(table.landmarks, sizes, self.source_size)
        return table

    def open_store(self, table: FaceTable) -> ImageStore:
        return FittedStore(table)
