"""Landmark files: written, read back, of every layout, and the headers that are none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from faceattr_lightning.data.annotations import read_landmarks, write_landmarks
from faceattr_lightning.errors import DataError
from faceattr_lightning.landmarks import LANDMARK_COLUMNS
from tests.data.writers import LANDMARK_COLUMNS as OFFICIAL_COLUMNS
from tests.data.writers import write_csv_table, write_text_table

SIZE = (218, 178)
FILES = ["000001.jpg", "people/Ann_A_0001.jpg", "000003.jpg"]


def whole_landmarks(count: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, SIZE[::-1], (len(FILES), count, 2)).astype(np.float32)


@pytest.mark.parametrize("count", [5, 68, 98])
def test_what_is_written_is_read(tmp_path: Path, count: int) -> None:
    landmarks, notes = whole_landmarks(count), []
    landmarks[1, 3, 0] = np.nan
    path = tmp_path / "list_landmarks.txt"
    write_landmarks(path, FILES, landmarks, SIZE)
    read = read_landmarks(path, FILES, SIZE, notes)
    assert read.dtype == np.float32 and np.isnan(read[1]).all()
    np.testing.assert_array_equal(read[[0, 2]], landmarks[[0, 2]])
    assert notes == [f"{path}: 1 of 3 images have no row and so no landmarks."]
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_the_written_format_is_the_official_one(tmp_path: Path) -> None:
    landmarks = whole_landmarks(5)
    write_landmarks(tmp_path / "ours.txt", FILES, landmarks, SIZE)
    write_text_table(tmp_path / "official.txt", FILES, landmarks.astype(int).reshape(3, -1), OFFICIAL_COLUMNS)
    ours, official = ((tmp_path / name).read_text().split("\n") for name in ("ours.txt", "official.txt"))
    # The count, and the names with a space behind them, to the letter; the official rows have runs of spaces.
    assert ours[:2] == official[:2] and ours[1].endswith("rightmouth_y ")
    assert [line.split() for line in ours] == [line.split() for line in official]


def test_coordinates_are_rounded_and_clipped_into_each_image(tmp_path: Path) -> None:
    landmarks = np.array([[(-3, 5.6), (99.5, 0.4), (3, 4), (1e6, -1e6), (0, 0)]] * 2, dtype=np.float32)
    path = tmp_path / "list.txt"
    write_landmarks(path, FILES[:2], landmarks, np.array([[50, 100], [5, 4]]))
    rows = [list(map(int, line.split()[1:])) for line in path.read_text().splitlines()[2:]]
    assert rows == [[0, 6, 99, 0, 3, 4, 99, 0, 0, 0], [0, 4, 3, 0, 3, 4, 3, 0, 0, 0]]


def test_a_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text("before")
    with pytest.raises(DataError, match="without spaces"):
        write_landmarks(path, ["a photo.jpg", *FILES[1:]], whole_landmarks(5), SIZE)
    assert path.read_text() == "before"
    write_landmarks(path, FILES, whole_landmarks(5), SIZE)
    assert path.read_text().startswith("3\n")
    with pytest.raises(DataError, match="can't be written"):
        write_landmarks(tmp_path / "nowhere" / "list.txt", FILES, whole_landmarks(5), SIZE)


@pytest.mark.parametrize("name", ["two words.jpg", "tab\t.jpg", "a\\b.jpg", "", "../up.jpg", "\udcff.jpg"])
def test_a_name_that_would_not_be_read_back(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError):
        write_landmarks(tmp_path / "list.txt", [name], whole_landmarks(5)[:1], SIZE)


@pytest.mark.parametrize("count", [68, 98])
def test_a_csv_file_has_a_layout_too(tmp_path: Path, count: int) -> None:
    landmarks = whole_landmarks(count)
    write_csv_table(tmp_path / "list.csv", FILES, landmarks.astype(int).reshape(3, -1), LANDMARK_COLUMNS[count])
    np.testing.assert_array_equal(read_landmarks(tmp_path / "list.csv", FILES, SIZE, []), landmarks)


BAD_HEADERS = {
    "one name is wrong": (
        ["lefteye_x", "lefteye_y", *OFFICIAL_COLUMNS[2:9], "mouth_y"],
        "name 10 to be 'rightmouth_y'",
    ),
    "a point is missing": (LANDMARK_COLUMNS[68][:-2], "expected 136 names, found 134"),
    "other names": ([f"p{index}" for index in range(196)], "name 1 to be 'point_0_x', found 'p0'"),
    "of 29 points": ([f"point_{index}_{axis}" for index in range(29) for axis in "xy"], "expected 10 names, found 58"),
}


@pytest.mark.parametrize("kind", ["txt", "csv"])
@pytest.mark.parametrize(("columns", "problem"), BAD_HEADERS.values(), ids=BAD_HEADERS)
def test_another_header_names_the_known_layouts(tmp_path: Path, columns: list[str], problem: str, kind: str) -> None:
    path = tmp_path / f"list.{kind}"
    write = write_text_table if kind == "txt" else write_csv_table
    write(path, FILES, np.zeros((3, len(columns)), dtype=int), columns)
    with pytest.raises(DataError) as caught:
        read_landmarks(path, FILES, SIZE, [])
    text = str(caught.value)
    if kind == "txt":
        assert text.startswith(f"{path}, line 2: ") and problem in text, text
    for part in ("5 landmarks (lefteye_x", "68 landmarks (point_0_x", "98 landmarks (point_0_x"):
        assert part in text
