"""Tests of `faceattr_lightning.data.celeba` and of the table reader under it."""

from __future__ import annotations

import gzip
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from faceattr_lightning.attributes import CELEBA_ATTRIBUTES
from faceattr_lightning.data.celeba import read_attribute_file, read_celeba, read_identity_file, read_partition_file
from faceattr_lightning.data.table import Split
from faceattr_lightning.errors import DataError
from tests.data.writers import LANDMARK_COLUMNS, assert_same_table, write_celeba, write_csv_table

ATTRIBUTES = "list_attr_celeba.txt"
PARTITION = "list_eval_partition.txt"
LANDMARKS = "list_landmarks_align_celeba.txt"
IDENTITIES = "identity_CelebA.txt"


def edit(path: Path, change: Callable[[list[str]], None]) -> None:
    lines = path.read_text().splitlines()
    change(lines)
    path.write_text("\n".join(lines) + "\n")


def replace_line(number: int, pattern: str, replacement: str) -> Callable[[list[str]], None]:
    def change(lines: list[str]) -> None:
        lines[number - 1], count = re.subn(pattern, replacement, lines[number - 1], count=1)
        assert count == 1

    return change


def message(root: Path) -> str:
    with pytest.raises(DataError) as caught:
        read_celeba(root)
    return str(caught.value)


@pytest.mark.parametrize("layout", ["flat", "official", "kaggle"])
def test_every_layout_is_read(tmp_path: Path, layout: Literal["flat", "official", "kaggle"]) -> None:
    expected = write_celeba(tmp_path, layout=layout, images=False)
    table = read_celeba(tmp_path)
    assert_same_table(table, expected)
    assert table.notes == []


@pytest.mark.parametrize("layout", ["flat", "kaggle"])
def test_the_slow_parser_agrees(
    tmp_path: Path, layout: Literal["flat", "kaggle"], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = write_celeba(tmp_path, layout=layout, images=False)
    monkeypatch.setattr("faceattr_lightning.data.annotations._parse_fast", lambda *_: None)
    assert_same_table(read_celeba(tmp_path), expected)


def test_windows_line_ends_byte_order_mark_and_blank_end(tmp_path: Path) -> None:
    expected = write_celeba(tmp_path, images=False)
    for name in (ATTRIBUTES, PARTITION, LANDMARKS, IDENTITIES):
        text = (tmp_path / name).read_text()
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + (text + "\n").replace("\n", "\r\n").encode())
    assert_same_table(read_celeba(tmp_path), expected)


def test_zero_is_not_labelled(tmp_path: Path) -> None:
    expected = write_celeba(tmp_path, images=False)
    edit(tmp_path / ATTRIBUTES, replace_line(5, r"^(000003.jpg) +-?1", r"\1 0"))
    table = read_celeba(tmp_path)
    expected.attributes[2, 0] = -1
    assert_same_table(table, expected)
    assert len(table.notes) == 1 and "1 labels are 0" in table.notes[0]


@pytest.mark.parametrize("layout", ["flat", "kaggle"])
def test_labels_of_0_and_1_are_refused(tmp_path: Path, layout: Literal["flat", "kaggle"]) -> None:
    write_celeba(tmp_path, layout=layout, images=False)
    path = next(tmp_path.glob("list_attr_celeba.*"))
    path.write_text(path.read_text().replace("-1", "0"))
    assert f"{path}: every label is 0 or 1" in message(tmp_path)


def test_a_subset_of_the_label_file_ignores_the_other_rows(tmp_path: Path) -> None:
    expected = write_celeba(tmp_path, images=False)
    edit(tmp_path / ATTRIBUTES, lambda lines: lines.__setitem__(slice(None), ["2", lines[1], lines[9], lines[3]]))
    table = read_celeba(tmp_path)
    assert table.files == ["000008.jpg", "000002.jpg"]
    for name in ("attributes", "split", "landmarks", "identity"):
        np.testing.assert_array_equal(getattr(table, name), getattr(expected, name)[[7, 1]], err_msg=name)
    assert [note.split(":")[0] for note in table.notes] == [
        str(tmp_path / n) for n in (PARTITION, LANDMARKS, IDENTITIES)
    ]
    assert all("10 rows are of images without labels" in note for note in table.notes)


def test_landmarks_and_identities_are_optional(tmp_path: Path) -> None:
    expected = write_celeba(tmp_path, images=False)
    (tmp_path / LANDMARKS).unlink()
    (tmp_path / IDENTITIES).unlink()
    expected.landmarks[:] = np.nan
    expected.identity[:] = -1
    table = read_celeba(tmp_path)
    assert_same_table(table, expected)
    assert [name in note for name, note in zip((LANDMARKS, IDENTITIES), table.notes, strict=True)] == [True, True]


@pytest.mark.parametrize("own", [True, False])
def test_a_landmark_file_takes_the_place_of_the_own(tmp_path: Path, own: bool) -> None:
    expected = write_celeba(tmp_path, images=False)
    if not own:
        (tmp_path / LANDMARKS).unlink()
    expected.landmarks = np.random.default_rng(9).integers(0, 178, (12, 5, 2)).astype(np.float32)
    path = tmp_path / "mine.csv"
    write_csv_table(path, expected.files, expected.landmarks.astype(int).reshape(12, -1), LANDMARK_COLUMNS)
    table = read_celeba(tmp_path, str(path))
    assert_same_table(table, expected)
    assert table.notes == []


def test_a_landmark_file_that_is_not_there(tmp_path: Path) -> None:
    write_celeba(tmp_path, images=False)
    with pytest.raises(DataError, match=r"data\.landmark_file: there is no file /nowhere\.txt"):
        read_celeba(tmp_path, "/nowhere.txt")


def test_landmark_and_identity_rows_may_be_missing(tmp_path: Path) -> None:
    expected = write_celeba(tmp_path, images=False)
    edit(tmp_path / LANDMARKS, lambda lines: lines.__setitem__(slice(None), ["11", *lines[1:4], *lines[5:]]))
    edit(tmp_path / IDENTITIES, lambda lines: lines.__delitem__(0))
    expected.landmarks[2] = np.nan
    expected.identity[0] = -1
    table = read_celeba(tmp_path)
    assert_same_table(table, expected)
    assert all("1 of 12 images have no row" in note for note in table.notes) and len(table.notes) == 2


def test_text_is_preferred_to_csv(tmp_path: Path) -> None:
    expected = write_celeba(tmp_path, images=False)
    write_csv_table(tmp_path / "list_eval_partition.csv", expected.files, 2 - expected.split[:, None], ["partition"])
    table = read_celeba(tmp_path)
    assert_same_table(table, expected)
    assert table.notes == [f"Read {tmp_path / PARTITION} and ignored {tmp_path / 'list_eval_partition.csv'}."]


BAD_LINES = {
    "too few columns": (ATTRIBUTES, replace_line(5, r" +-?1$", ""), 5, "40 values, found 40 columns"),
    "too many columns": (ATTRIBUTES, replace_line(5, "$", " 1"), 5, "40 values, found 42 columns"),
    "no columns": (ATTRIBUTES, replace_line(5, " .*", ""), 5, "found 1 columns"),
    "blank line": (IDENTITIES, replace_line(5, ".*", ""), 5, "found 1 columns"),
    "label 2": (ATTRIBUTES, replace_line(6, r"-?1$", "2"), 6, "Young is 2; expected 1 (present), -1 (absent)"),
    "huge label": (ATTRIBUTES, replace_line(6, r"-?1$", "9" * 30), 6, "Young is 9"),
    "word": (ATTRIBUTES, replace_line(14, r"-?1$", "yes"), 14, "whole number for Young, found 'yes'"),
    "fraction": (LANDMARKS, replace_line(14, r"\d+$", "7.5"), 14, "whole number for rightmouth_y, found '7.5'"),
    "comma": (PARTITION, replace_line(3, " +", ","), 3, "found 1 columns"),
    "duplicate": (ATTRIBUTES, replace_line(5, "000003", "000001"), 5, "000001.jpg is listed twice"),
    "duplicate split": (PARTITION, replace_line(5, "000005", "000002"), 5, "000002.jpg is listed twice"),
    "partition code": (PARTITION, replace_line(5, r"\d$", "3"), 5, "partition is 3; expected 0 (train)"),
    "identity": (IDENTITIES, replace_line(5, r"\d+$", "-7"), 5, "identity is -7; expected the number of a person"),
    "landmark x": (LANDMARKS, replace_line(4, r"^(\S+) +\d+", r"\1 178"), 4, "lefteye_x is 178; expected whole pixels"),
    "landmark y": (LANDMARKS, replace_line(4, r"\d+$", "218"), 4, "rightmouth_y is 218; expected whole pixels"),
    "landmark < 0": (LANDMARKS, replace_line(4, r"\d+$", "-1"), 4, "rightmouth_y is -1; expected whole pixels"),
    "count too high": (ATTRIBUTES, replace_line(1, "12", "13"), 1, "the count says 13 rows, but the file has 12"),
    "count too low": (LANDMARKS, replace_line(1, "12", "11"), 1, "the count says 11 rows, but the file has 12"),
    "no count": (
        ATTRIBUTES,
        lambda lines: lines.__delitem__(0),
        1,
        "expected the number of rows, found '5_o_Clock_Shadow",
    ),
    "header name": (ATTRIBUTES, replace_line(2, "Bald", "bald"), 2, "name 5 to be 'Bald', found 'bald'"),
    "header length": (LANDMARKS, replace_line(2, "nose_x", ""), 2, "10 names, found 9"),
}


@pytest.mark.parametrize(("name", "change", "line", "problem"), BAD_LINES.values(), ids=BAD_LINES)
def test_a_bad_line_is_named(
    tmp_path: Path, name: str, change: Callable[[list[str]], None], line: int, problem: str
) -> None:
    write_celeba(tmp_path, images=False)
    edit(tmp_path / name, change)
    text = message(tmp_path)
    assert text.startswith(f"{tmp_path / name}, line {line}: ") and problem in text


def test_columns_that_make_up_for_each_other_are_found(tmp_path: Path) -> None:
    write_celeba(tmp_path, images=False)
    edit(tmp_path / ATTRIBUTES, replace_line(5, r" +-?1$", ""))
    edit(tmp_path / ATTRIBUTES, replace_line(6, "$", " 1"))
    assert f"{tmp_path / ATTRIBUTES}, line 5: expected an image name and 40 values" in message(tmp_path)


BAD_CSV_LINES = {
    "empty cell": (3, ",-?1$", ",", 3, "whole number for Young, found ''"),
    "too few columns": (3, ",-?1$", "", 3, "40 values, found 40 columns"),
    "no header": (1, "image_id", "000000.jpg", 1, "name 1 to be 'image_id', found '000000.jpg'"),
    "no name": (3, "^000002.jpg", "", 3, "image name ''"),
}


@pytest.mark.parametrize(
    ("number", "pattern", "replacement", "line", "problem"), BAD_CSV_LINES.values(), ids=BAD_CSV_LINES
)
def test_a_bad_csv_line_is_named(
    tmp_path: Path, number: int, pattern: str, replacement: str, line: int, problem: str
) -> None:
    write_celeba(tmp_path, layout="kaggle", images=False)
    path = tmp_path / "list_attr_celeba.csv"
    edit(path, replace_line(number, pattern, replacement))
    text = message(tmp_path)
    assert text.startswith(f"{path}, line {line}: ") and problem in text


@pytest.mark.parametrize("name", [ATTRIBUTES, PARTITION, LANDMARKS, IDENTITIES])
@pytest.mark.parametrize("image", ["../../x.jpg", "/etc/x.jpg", r"..\\x.jpg", r"C:\\x.jpg", r"\\\\host\\x.jpg"])
def test_a_name_that_leaves_the_root_is_refused(tmp_path: Path, name: str, image: str) -> None:
    write_celeba(tmp_path, images=False)
    edit(tmp_path / name, replace_line(4, r"^\S+", image))
    text = message(tmp_path)
    assert text.startswith(f"{tmp_path / name}, line 4: ") and "does not stay inside" in text


@pytest.mark.parametrize(
    ("name", "content"),
    [(ATTRIBUTES, b""), (ATTRIBUTES, b" \n\n"), (ATTRIBUTES, b"0\nheader\n"), (PARTITION, b""), (PARTITION, b"\n")],
)
def test_an_empty_file(tmp_path: Path, name: str, content: bytes) -> None:
    write_celeba(tmp_path, images=False)
    (tmp_path / name).write_bytes(content)
    assert f"{tmp_path / name}: expected a row for each image, but the file has none" in message(tmp_path)


def test_binary_garbage(tmp_path: Path) -> None:
    write_celeba(tmp_path, images=False)
    (tmp_path / ATTRIBUTES).write_bytes(b"12\n\xff\xd8\xff")
    assert f"{tmp_path / ATTRIBUTES}: expected text, found other bytes at offset 3" in message(tmp_path)


def test_a_file_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="can't be read"):
        read_attribute_file(tmp_path, [])


def test_the_partition_misses_rows(tmp_path: Path) -> None:
    write_celeba(tmp_path, images=False)
    edit(tmp_path / PARTITION, lambda lines: lines.__delitem__(slice(4, 6)))
    text = message(tmp_path)
    assert f"{tmp_path / PARTITION}: the partition misses 2 of the 12 images" in text and "000005.jpg" in text


@pytest.mark.parametrize("name", [ATTRIBUTES, PARTITION, "img_align_celeba"])
def test_a_missing_part_is_named_with_what_to_do(tmp_path: Path, name: str) -> None:
    write_celeba(tmp_path, images=False)
    path = tmp_path / name
    path.rmdir() if path.is_dir() else path.unlink()
    text = message(tmp_path)
    for part in (name, str(tmp_path), "project page", "data.root", "FACEATTR_DATA"):
        assert part in text


def test_a_missing_root_is_named(tmp_path: Path) -> None:
    root = tmp_path / "nowhere"
    text = message(root)
    assert ATTRIBUTES in text and f"{root} is not a folder" in text and "FACEATTR_DATA" in text


def test_real_subset(real_data: Path) -> None:
    table = read_celeba(real_data / "celeba")
    assert [len(table.rows(split)) for split in Split] == [4560, 780, 659]
    assert len(np.unique(table.identity)) == 200 and not np.isnan(table.landmarks).any()
    assert set(np.unique(table.attributes)) == {0, 1} and table.notes == []
    # The README of the data: nobody among the test images is bald, one has a double chin.
    positives = dict(
        zip(table.attribute_names, (table.attributes[table.rows(Split.TEST)] == 1).sum(axis=0), strict=True)
    )
    assert positives["Bald"] == 0 and positives["Double_Chin"] == 1


def test_full_labels(real_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All 202,599 rows, without falling back to the parser that takes row by row."""
    monkeypatch.setattr("faceattr_lightning.data.annotations._parse_slowly", None)
    source = real_data / "celeba_full_labels"
    with zipfile.ZipFile(source / "list_attr_celeba.zip") as archive:
        archive.extractall(tmp_path)
    for name in (PARTITION, IDENTITIES):
        with gzip.open(source / f"{name}.gz") as packed, (tmp_path / name).open("wb") as file:
            shutil.copyfileobj(packed, file)
    notes: list[str] = []
    files, attributes = read_attribute_file(tmp_path / ATTRIBUTES, notes)
    split = read_partition_file(tmp_path / PARTITION, files, notes)
    identity = read_identity_file(tmp_path / IDENTITIES, files, notes)
    assert files[0] == "000001.jpg" and files[-1] == "202599.jpg" and notes == []
    assert np.bincount(split).tolist() == [162_770, 19_867, 19_962]
    assert len(np.unique(identity)) == 10_177
    # Published counts of the whole set.
    prevalence = dict(zip(CELEBA_ATTRIBUTES, (attributes == 1).mean(axis=0).round(4), strict=True))
    assert prevalence["Male"] == 0.4168 and prevalence["Smiling"] == 0.4821 and prevalence["Bald"] == 0.0224
    assert (attributes >= 0).all()
