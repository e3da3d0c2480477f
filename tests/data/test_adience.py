"""Tests of `faceattr_lightning.data.adience`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from faceattr_lightning.data.adience import Adience, read_adience
from faceattr_lightning.data.table import Split
from faceattr_lightning.errors import ConfigError, DataError
from tests.data.writers import LANDMARK_COLUMNS, assert_same_table, write_adience, write_text_table


def message(root: Path) -> str:
    with pytest.raises(DataError) as caught:
        read_adience(root)
    return str(caught.value)


def set_cells(path: Path, column: int, *values: str) -> None:
    """Put values into a column, from line 2 on."""
    lines = path.read_text().splitlines()
    for line, value in enumerate(values, start=1):
        cells = lines[line].split("\t")
        cells[column] = value
        lines[line] = "\t".join(cells)
    path.write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("folder", ["aligned", "faces"])
def test_both_folders_are_read(tmp_path: Path, folder: Literal["aligned", "faces"]) -> None:
    expected = write_adience(tmp_path, folder=folder, images=False)
    table = read_adience(tmp_path, images=folder, validation_fraction=0)
    assert_same_table(table, expected)
    assert table.notes == []


@pytest.mark.parametrize("fold", range(5))
def test_a_fold_is_the_test_split(tmp_path: Path, fold: int) -> None:
    write_adience(tmp_path, images=False)
    table = read_adience(tmp_path, fold)
    tested = {int(table.files[row].split("@")[0]) - 100 for row in table.rows(Split.TEST)}
    assert tested == {person for person in range(25) if person % 5 == fold}
    people = [set(table.identity[table.rows(split)]) for split in Split]
    assert people[Split.VALIDATION] and not people[Split.TRAIN] & people[Split.VALIDATION]
    n_learned = len(table) - len(table.rows(Split.TEST))
    assert abs(len(table.rows(Split.VALIDATION)) - 0.1 * n_learned) <= 1.5


AGES = {
    "(25, 32)": 4,
    "(0, 2)": 0,
    "(60, 100)": 7,
    "(38, 42)": 5,
    "(27,32)": 4,
    "35": -1,
    "2": 0,
    "3": -1,
    "100": 7,
    "101": -1,
    "(8, 23)": -1,
    "(38, 48)": -1,
    "(60, 120)": -1,
    "None": -1,
    "": -1,
}


def test_ages(tmp_path: Path) -> None:
    write_adience(tmp_path, people=100, images=False)
    set_cells(tmp_path / "fold_1_data.txt", 3, *AGES)
    table = read_adience(tmp_path, fold=1)
    assert table.age_group[table.rows(Split.TEST)][: len(AGES)].tolist() == list(AGES.values())
    within, without = table.notes
    assert "the ages of 4 images lie within one age group and count as that: (27,32) (1), (38, 42) (1)" in within
    assert (
        "the ages of 8 images are in no age group or in two, and are not labelled: empty (1), (38, 48) (1)" in without
    )


@pytest.mark.parametrize("age", ["young", "-3", "121", "(32, 25)", "(25, 132)", "(25; 32)", "25, 32", "35.5"])
def test_what_is_no_age(tmp_path: Path, age: str) -> None:
    write_adience(tmp_path, images=False)
    path = tmp_path / "fold_3_data.txt"
    set_cells(path, 3, "None", age)
    text = message(tmp_path)
    assert text.startswith(f"{path}, line 3: age is {age!r}; expected (0, 2), (4, 6)") and "from 0 to 120" in text


def test_genders(tmp_path: Path) -> None:
    write_adience(tmp_path, images=False)
    path = tmp_path / "fold_0_data.txt"
    set_cells(path, 4, "u", "", "m", "f")
    table = read_adience(tmp_path)
    assert table.attributes[:4, 0].tolist() == [-1, -1, 1, 0]
    set_cells(path, 4, "u", "male")
    assert message(tmp_path).startswith(f"{path}, line 3: gender is 'male'; expected m, f, u or nothing")


def test_no_gender_at_all(tmp_path: Path) -> None:
    write_adience(tmp_path, images=False)
    for fold in range(5):
        path = tmp_path / f"fold_{fold}_data.txt"
        set_cells(path, 4, *["u"] * (len(path.read_text().splitlines()) - 1))
    assert "no row of the five files has a gender" in message(tmp_path)


def test_people_in_two_folds_are_noted(tmp_path: Path) -> None:
    write_adience(tmp_path, images=False)
    set_cells(tmp_path / "fold_0_data.txt", 0, "101@N03")
    assert [note for note in read_adience(tmp_path).notes if "in more than one split" in note]


def test_landmark_file(tmp_path: Path) -> None:
    expected = write_adience(tmp_path, images=False)
    points = np.random.default_rng(0).integers(0, 816, (len(expected), 10))
    write_text_table(tmp_path / "mine.txt", expected.files, points, LANDMARK_COLUMNS)
    table = read_adience(tmp_path, landmark_file=str(tmp_path / "mine.txt"))
    np.testing.assert_array_equal(table.landmarks, points.reshape(-1, 5, 2))
    with pytest.raises(DataError, match=r"data\.landmark_file: there is no file"):
        read_adience(tmp_path, landmark_file=str(tmp_path / "other.txt"))


@pytest.mark.parametrize("missing", ["fold_2_data.txt", "aligned"])
def test_a_missing_part_is_named(tmp_path: Path, missing: str) -> None:
    write_adience(tmp_path, images=False)
    path = tmp_path / missing
    path.rmdir() if path.is_dir() else path.unlink()
    text = message(tmp_path)
    for part in (missing, str(tmp_path), "Adience page", "data.root", "FACEATTR_DATA"):
        assert part in text


@pytest.mark.parametrize(
    ("old", "new", "line", "problem"),
    [
        ("\t6\n", "\n", 2, "expected 12 columns as in the header, found 11"),
        ("\t6\n", "\t6\t\n", 2, "expected 12 columns as in the header, found 13"),
        ("\tage\t", "\tages\t", 1, "name 4 to be 'age', found 'ages'"),
        ("104@N03", "../104", 2, "does not stay inside"),
        ("4_0_o.jpg", '"4_0_o.jpg', None, ""),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, old: str, new: str, line: int | None, problem: str) -> None:
    write_adience(tmp_path, images=False)
    path = tmp_path / "fold_4_data.txt"
    path.write_text(path.read_text().replace(old, new, 1))
    if line is None:  # a quotation mark is a letter like others
        assert any('"' in file for file in read_adience(tmp_path).files)
    else:
        text = message(tmp_path)
        assert text.startswith(f"{path}, line {line}: ") and problem in text, text


def test_a_duplicate_over_two_folds_is_found(tmp_path: Path) -> None:
    write_adience(tmp_path, images=False)
    row = (tmp_path / "fold_0_data.txt").read_text().splitlines()[1]
    path = tmp_path / "fold_3_data.txt"
    path.write_text(path.read_text() + row + "\n")
    text = message(tmp_path)
    assert "is listed twice, first in" in text and f"{tmp_path / 'fold_0_data.txt'}, line 2" in text


@pytest.mark.parametrize("fold", [-1, 5])
def test_fold_out_of_range(fold: int) -> None:
    with pytest.raises(ConfigError, match=r"data\.fold: expected a number from 0 to 4"):
        Adience(fold=fold)


def test_batches_carry_gender_and_age(tmp_path: Path) -> None:
    write_adience(tmp_path, people=10)
    module = Adience(root=str(tmp_path), batch_size=2, image_size=32)
    module.setup()
    batch = next(iter(module.test_dataloader()))
    rows = module.table.rows(Split.TEST)[: len(batch["index"])]
    assert batch["image"].shape[1:] == (3, 32, 32)
    assert batch["age_group"].tolist() == module.table.age_group[rows].tolist()
