"""One reader for every table in CelebA's formats, the official text files and Kaggle's CSV copies; and a writer."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from faceattr_lightning.data.table import safe_relative_path
from faceattr_lightning.errors import DataError
from faceattr_lightning.files import whole_file
from faceattr_lightning.landmarks import LANDMARK_COLUMNS

_KNOWN_LAYOUTS = "Known layouts: " + "; ".join(
    f"{count} landmarks ({' '.join(columns[:10])}{' ...' * (count > 5)})" for count, columns in LANDMARK_COLUMNS.items()
)
_PLAIN_NAME = re.compile(r"[\w-]+\.\w+").fullmatch
_ROW_END = int(np.iinfo(np.int64).min) + 1


@dataclass
class Annotations:
    """The checked rows of one annotation file.

    Attributes:
        path: the file.
        first_line: the line number, from 1, of the first row.
        files: (N,) image names as `safe_relative_path` returns them, each once.
        values: int64 (N, C), the columns after the image's name.
    """

    path: Path
    first_line: int
    files: list[str]
    values: NDArray[np.int64]

    def where(self, row: int) -> str:
        """Return the file and line of a row, for messages."""
        return f"{self.path}, line {self.first_line + row}"

    def rows_of(self, files: Sequence[str], notes: list[str]) -> NDArray[np.int64]:
        """Return the row of each of ``files``, int64 (n,), -1 where there is none.

        Who cuts down the label file only is left with rows of images without labels; they are counted in ``notes``.
        """
        index = {name: row for row, name in enumerate(self.files)}
        rows = np.fromiter((index.get(name, -1) for name in files), dtype=np.int64, count=len(files))
        extra = len(self.files) - int((rows >= 0).sum())
        if extra:
            notes.append(f"{self.path}: {extra:,} rows are of images without labels and were ignored.")
        return rows


def read_annotations(
    path: Path,
    columns: Sequence[str],
    low: int | Sequence[int],
    high: int | Sequence[int],
    expected: str,
    titled: bool = True,
) -> Annotations:
    """Read a table of an image name and whole numbers in each row.

    A ``.csv`` has a header line and commas. Any other file has runs of spaces and, if ``titled``, a line with the
    number of rows and a line with the names of the columns on top.

    Args:
        path: the file.
        columns: (C,) the names that the header must have, without the image's column.
        low: the least value allowed, for all columns or for each.
        high: the greatest value allowed, for all columns or for each.
        expected: in words what a value must be, for messages.
        titled: whether the text format has a count and a header on top.

    Raises:
        DataError: the file is not text or empty; a count, header, row, value or image name is wrong; an image is
            listed twice. The message names the line.
    """
    lines = read_lines(path)
    csv = _is_csv(path)
    n_heading = 1 if csv else 2 if titled else 0
    if len(lines) <= n_heading:
        raise DataError(f"{path}: expected a row for each image, but the file has none. Fetch the file again.")
    rows = lines[n_heading:]
    if csv:
        check_header(path, 1, [name.strip() for name in lines[0].split(",")], ("image_id", *columns))
    elif titled:
        _check_count(path, lines[0].strip(), len(rows))
        check_header(path, 2, lines[1].split(), columns)

    separator = "," if csv else None
    first_line = n_heading + 1
    parsed = _parse_fast(rows, separator, len(columns)) or _parse_slowly(path, first_line, rows, separator, columns)
    names, values = parsed
    table = Annotations(path, first_line, names, values)
    outside = (values < np.asarray(low)) | (values > np.asarray(high))
    if outside.any():
        row, column = np.argwhere(outside)[0].tolist()
        raise DataError(
            f"{table.where(row)}: {columns[column]} is {values[row, column]}; expected {expected}. Mend the line."
        )
    table.files = [
        name if _PLAIN_NAME(name) else safe_relative_path(name, table.where(row)) for row, name in enumerate(names)
    ]
    check_distinct(table.files, table.where)
    return table


def read_landmarks(
    path: Path, files: Sequence[str], image_size: tuple[int, int], notes: list[str]
) -> NDArray[np.float32]:
    """Read a landmark file in CelebA's format for the images ``files``; its header says which layout it has.

    Args:
        path: the file.
        files: (N,) the images of the data set.
        image_size: (height, width) in pixels.
        notes: takes a sentence if there are images without a row, or rows without an image.

    Returns:
        float32 (N, L, 2), x then y in pixels, NaN for an image without a row; L is 5, 68 or 98.

    Raises:
        DataError: see `read_annotations`; also a header of no known layout, or a landmark outside the image.
    """
    height, width = image_size
    columns = _landmark_columns(path)
    expected = f"whole pixels inside the image, x in 0..{width - 1} and y in 0..{height - 1}"
    table = read_annotations(path, columns, 0, (width - 1, height - 1) * (len(columns) // 2), expected)
    rows = table.rows_of(files, notes)
    landmarks = table.values[rows].astype(np.float32).reshape(len(files), -1, 2)
    missing = rows < 0
    landmarks[missing] = np.nan
    if missing.any():
        notes.append(f"{path}: {int(missing.sum()):,} of {len(files):,} images have no row and so no landmarks.")
    return landmarks


def choose_landmarks(
    landmark_file: str | None, own: Path | None, files: Sequence[str], image_size: tuple[int, int], notes: list[str]
) -> NDArray[np.float32]:
    """Read the landmarks of the images ``files``.

    Args:
        landmark_file: the file that the user names, in CelebA's format.
        own: the data set's file, read if there is no ``landmark_file``.
        files: (N,) the images as the table lists them.
        image_size: (height, width) in pixels.
        notes: see `read_landmarks`.

    Returns:
        float32 (N, L, 2) as `read_landmarks` does; L = 0 without any file.

    Raises:
        DataError: see `check_landmark_file` and `read_landmarks`.
    """
    check_landmark_file(landmark_file)
    path = own if landmark_file is None else Path(landmark_file)
    if path is None:
        return np.empty((len(files), 0, 2), dtype=np.float32)
    return read_landmarks(path, files, image_size, notes)


def check_landmark_file(landmark_file: str | None) -> None:
    """Raise a `DataError` if the user names a file that is not there."""
    if landmark_file is not None and not Path(landmark_file).is_file():
        raise DataError(
            f"data.landmark_file: there is no file {landmark_file}. Leave it out (null) for the data set's own "
            "landmarks, or write one with task=annotate."
        )


def write_landmarks(
    path: Path,
    files: Sequence[str],
    landmarks: NDArray[np.float32],
    image_size: tuple[int, int] | NDArray[np.int64],
) -> None:
    """Write a landmark file in CelebA's text format, which has whole pixels inside the image; whole or not at all.

    Args:
        path: the file; one that is there is replaced.
        files: (N,) names of the images, see `check_writable`.
        landmarks: float (N, L, 2), x then y in pixels, with L one of 5, 68 and 98. An image with a NaN gets no row.
        image_size: (height, width) in pixels of all images, or int64 (N, 2) of each.

    Raises:
        DataError: a name can't stand in the file, or the file can't be written.
    """
    check_writable(files)
    last = np.broadcast_to(np.asarray(image_size), (len(files), 2))[:, None, ::-1] - 1
    known: list[int] = np.flatnonzero(~np.isnan(landmarks).any(axis=(1, 2))).tolist()
    pixels = np.clip(np.rint(landmarks[known]), 0, last[known]).astype(np.int64).reshape(len(known), -1).tolist()
    lines = [f"{files[row]} {' '.join(map(str, values))}" for row, values in zip(known, pixels, strict=True)]
    # The official header ends with a space.
    header = " ".join(LANDMARK_COLUMNS[landmarks.shape[1]]) + " "
    try:
        with whole_file(path) as partial:
            partial.write_text("\n".join([str(len(lines)), header, *lines, ""]), encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path}: can't be written ({error.strerror}). Choose another folder.") from error


def check_writable(files: Iterable[str]) -> None:
    """Raise a DataError unless each name can stand in the text format and be read back as it is."""
    for name in files:
        if " " in name or not name.isprintable() or safe_relative_path(name, name) != name:
            raise DataError(
                f"{name!r}: CelebA's text format has image names without spaces and backslashes. Rename the file."
            )


def find_file(candidates: Iterable[Path], notes: list[str]) -> Path | None:
    """Return the first of ``candidates`` that is a file, or ``None``; ``notes`` takes a sentence if there are more."""
    found = [path for path in candidates if path.is_file()]
    if len(found) > 1:
        notes.append(f"Read {found[0]} and ignored {', '.join(map(str, found[1:]))}.")
    return found[0] if found else None


def not_found(what: str, folders: Sequence[Path], data_set: str, source: str) -> DataError:
    """Return the error for a part of a data set that is not in any of ``folders``.

    Args:
        what: the file or folder that was looked for.
        folders: where it was looked for, the data root first.
        data_set: the name of the data set's folder under ``FACEATTR_DATA``.
        source: who gives the data away.
    """
    root = folders[0]
    absent = "" if root.is_dir() else f" {root} is not a folder."
    return DataError(
        f"{what} was looked for in {', '.join(map(str, folders))} and not found.{absent} Get the data from {source}; "
        f"then set data.root to its folder, or the environment variable FACEATTR_DATA to the folder around {data_set}/."
    )


def check_distinct(names: Sequence[str], where: Callable[[int], str]) -> None:
    """Raise a `DataError` if a name stands twice; ``where`` turns its position into words."""
    if len(set(names)) == len(names):
        return
    first: dict[str, int] = {}
    for position, name in enumerate(names):
        if name in first:
            raise DataError(
                f"{where(position)}: {name} is listed twice, first in {where(first[name])}. Keep one of the two."
            )
        first[name] = position


def _is_csv(path: Path) -> bool:
    return path.suffix.lower() == ".csv"


def _landmark_columns(path: Path) -> tuple[str, ...]:
    """Return the columns of the layout that a landmark file's header names; CelebA's for a file without a header."""
    heading = [*read_lines(path, 2), "", ""]
    line, names = (1, heading[0].split(",")[1:]) if _is_csv(path) else (2, heading[1].split())
    found = [name.strip() for name in names]
    nearest = min(LANDMARK_COLUMNS.values(), key=lambda columns: abs(len(columns) - len(found)))
    # Without a count there is no header either, which the reader of the rows tells.
    if _is_csv(path) or heading[0].strip().isdigit():
        check_header(path, line, found, nearest, _KNOWN_LAYOUTS)
    return nearest


def read_lines(path: Path, count: int | None = None) -> list[str]:
    """Return a file's lines, or the first ``count`` of them, without blank ones at the end."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            text = file.read() if count is None else "".join(itertools.islice(file, count))
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: expected text, found other bytes at offset {error.start}. Fetch the file again."
        ) from error
    except OSError as error:
        raise DataError(f"{path}: can't be read ({error.strerror}). Check its permissions.") from error
    text = text.rstrip()
    # Not splitlines(), which also splits at characters that no editor counts as a line's end.
    return text.split("\n") if text else []


def _check_count(path: Path, count: str, n_rows: int) -> None:
    if not (count.isascii() and count.isdigit()):
        raise DataError(
            f"{path}, line 1: expected the number of rows, found {count[:60]!r}. "
            "The official format has a line with that number, a line with the column names, then the rows."
        )
    if int(count) != n_rows:
        raise DataError(
            f"{path}, line 1: the count says {int(count)} rows, but the file has {n_rows}. "
            f"Fetch the file again if it was cut short; put {n_rows} on line 1 if you chose these rows."
        )


def check_header(path: Path, line: int, found: Sequence[str], expected: Sequence[str], hint: str = "") -> None:
    if list(found) == list(expected):
        return
    if len(found) != len(expected):
        difference = f"{len(expected)} names, found {len(found)}"
    else:
        column = next(i for i, (name, other) in enumerate(zip(found, expected, strict=True)) if name != other)
        difference = f"name {column + 1} to be {expected[column]!r}, found {found[column]!r}"
    hint = hint or f"The header must read: {' '.join(expected)[:1000]}"
    raise DataError(f"{path}, line {line}: expected {difference}. {hint}")


def _parse_fast(
    rows: Sequence[str], separator: str | None, n_columns: int
) -> tuple[list[str], NDArray[np.int64]] | None:
    """Parse all rows at once; ``None`` unless each is a name and ``n_columns`` whole numbers."""
    try:
        names, cells = zip(*(row.split(separator, 1) for row in rows), strict=True)
        # A mark behind each row shows afterwards whether every row had the right number of cells.
        mark = f" {_ROW_END} " if separator is None else f",{_ROW_END},"
        text = mark.join([*cells, ""]).rstrip(" ,")
        values = np.fromstring(text, dtype=np.int64, sep=separator or " ").reshape(len(rows), n_columns + 1)
    except ValueError:
        return None
    if (values[:, -1] != _ROW_END).any():
        return None
    return list(names), values[:, :-1]


def _parse_slowly(
    path: Path, first_line: int, rows: Sequence[str], separator: str | None, columns: Sequence[str]
) -> tuple[list[str], NDArray[np.int64]]:
    """Parse row by row, to name the line that is wrong."""
    names: list[str] = []
    values = np.empty((len(rows), len(columns)), dtype=np.int64)
    for row, text in enumerate(rows):
        name, *cells = text.split(separator) or [""]
        where = f"{path}, line {first_line + row}"
        if len(cells) != len(columns):
            raise DataError(
                f"{where}: expected an image name and {len(columns)} values, found {len(cells) + 1} columns. "
                "Mend the line, or fetch the file again if it was cut short."
            )
        for column, cell in enumerate(cells):
            try:
                values[row, column] = int(cell)
            except (ValueError, OverflowError) as error:
                raise DataError(
                    f"{where}: expected a whole number for {columns[column]}, found {cell[:60]!r}. Mend the line."
                ) from error
        names.append(name)
    return names, values
