"""Tables whose cells are texts: CSV and tab-separated files, read strictly."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from faceattr_lightning.data.annotations import check_header, read_lines
from faceattr_lightning.errors import DataError, did_you_mean


@dataclass
class TextTable:
    """The rows of a file, column by column.

    Attributes:
        path: the file.
        columns: name to (N,) cells, in the file's order.
        unit: what rows are counted in, for messages: lines, the first row on line 2, or rows from 1.
    """

    path: Path
    columns: dict[str, Sequence[str]]
    unit: Literal["line", "row"] = "line"

    def where(self, row: int) -> str:
        """Return the file and line of a row, for messages."""
        return f"{self.path}, {self.unit} {row + (2 if self.unit == 'line' else 1)}"

    def codes(self, column: str, codes: Mapping[str, int], expected: str, hint: str = "") -> NDArray[np.int64]:
        """Return a column as numbers, int64 (N,).

        Args:
            column: its name.
            codes: cell to number; a cell that is not in it is looked for in lower case and without spaces around it.
            expected: in words what a cell must be, for messages.
            hint: put behind a message.

        Raises:
            DataError: a cell that has no code; the message names its line.
        """
        cells = self.columns[column]
        try:
            return np.fromiter(map(codes.__getitem__, cells), dtype=np.int64, count=len(cells))
        except KeyError:
            pass
        found = [codes.get(cell, codes.get(cell.strip().lower())) for cell in cells]
        numbers = [number for number in found if number is not None]
        if len(numbers) < len(found):
            row = found.index(None)
            raise DataError(
                f"{self.where(row)}: {column} is {cells[row][:60]!r}; expected {expected}."
                f"{did_you_mean(cells[row][:60], codes)}{hint} Mend the {self.unit}."
            )
        return np.array(numbers, dtype=np.int64)


def read_text_table(path: Path, delimiter: Literal[",", "\t"] = ",", columns: Sequence[str] | None = None) -> TextTable:
    """Read a file of a header and rows of as many cells; only cells between commas may be quoted.

    Args:
        path: the file.
        delimiter: between the cells.
        columns: the header that the file must have; ``None`` takes any of different names.

    Raises:
        DataError: the file is not text or has no row; the header is wrong; a row has another number of cells or goes
            over several lines. The message names the line.
    """
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if delimiter == "," else csv.QUOTE_NONE
    reader = csv.reader(read_lines(path), delimiter=delimiter, quoting=quoting, strict=True)
    rows: list[list[str]] = []
    try:
        for row in reader:
            rows.append(row)
            if reader.line_num != len(rows):
                raise DataError(
                    f'{path}, line {len(rows)}: a cell that begins with " ends on line {reader.line_num}. Mend it.'
                )
            if len(row) != len(rows[0]):
                raise DataError(
                    f"{path}, line {len(rows)}: expected {len(rows[0])} columns as in the header, found {len(row)}. "
                    "Mend the line, or fetch the file again if it was cut short."
                )
    except csv.Error as error:
        raise DataError(f"{path}, line {len(rows) + 1}: can't be read ({error}). Mend the line.") from error
    if len(rows) < 2:
        raise DataError(f"{path}: expected a header and a row for each image, but the file has no row.")
    header = [name.strip() for name in rows[0]]
    if columns is not None:
        check_header(path, 1, header, columns)
    check_names(f"{path}, line 1", header)
    return TextTable(path, dict(zip(header, zip(*rows[1:], strict=True), strict=True)))


def check_names(where: str, names: Sequence[str]) -> None:
    """Raise a `DataError` unless each column has a name of its own; ``where`` begins the message."""
    for position, name in enumerate(names):
        if not name:
            raise DataError(
                f"{where}: column {position + 1} has no name; give it one"
                + ("; pandas writes its index there unless it is told index=False." if position == 0 else ".")
            )
        if name in names[:position]:
            raise DataError(f"{where}: two columns are called {name!r}; rename or remove one.")
