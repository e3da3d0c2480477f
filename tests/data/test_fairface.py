"""Tests of `faceattr_lightning.data.fairface`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from faceattr_lightning.attributes import FAIRFACE_AGE_GROUPS
from faceattr_lightning.data.fairface import FairFace, read_fairface
from faceattr_lightning.data.images import without_images
from faceattr_lightning.data.table import Split
from faceattr_lightning.errors import ConfigError, DataError
from tests.data.writers import LANDMARK_COLUMNS, assert_same_table, write_fairface, write_text_table

TRAIN, VAL = "fairface_label_train.csv", "fairface_label_val.csv"


def message(root: Path) -> str:
    with pytest.raises(DataError) as caught:
        read_fairface(root)
    return str(caught.value)


def edit(path: Path, line: int, old: str, new: str) -> None:
    lines = path.read_text().splitlines()
    assert old in lines[line - 1]
    lines[line - 1] = lines[line - 1].replace(old, new, 1)
    path.write_text("\n".join(lines) + "\n")


def test_both_files_are_read(tmp_path: Path) -> None:
    expected = write_fairface(tmp_path, images=False)
    table = read_fairface(tmp_path, validation_fraction=0)
    assert_same_table(table, expected)
    assert table.notes == []


def test_validation_is_drawn_from_the_training_file(tmp_path: Path) -> None:
    written = write_fairface(tmp_path, images=False)
    table = read_fairface(tmp_path, seed=1)
    np.testing.assert_array_equal(table.rows(Split.TEST), written.rows(Split.TEST))
    assert len(table.rows(Split.VALIDATION)) == 3 and len(table.rows(Split.TRAIN)) == 27
    assert list(read_fairface(tmp_path, seed=1).split) == list(table.split) != list(read_fairface(tmp_path).split)


def test_without_the_training_file_all_splits_are_drawn(tmp_path: Path) -> None:
    expected = write_fairface(tmp_path, n_train=0, n_val=50, images=False)
    table = read_fairface(tmp_path)
    assert [len(table.rows(split)) for split in Split] == [35, 5, 10]
    (note,) = table.notes
    assert TRAIN in note and "70%, 10% and 20%" in note
    expected.split = table.split
    assert_same_table(table, expected)


def test_nothing_is_not_labelled(tmp_path: Path) -> None:
    expected = write_fairface(tmp_path, images=False)
    path = tmp_path / VAL
    age, race = FAIRFACE_AGE_GROUPS[expected.age_group[30]], expected.slices["race"]
    edit(path, 2, f",{age},", ",,")
    edit(path, 4, f",{race.sides[race.code[32]]},", ",,")
    race.code[32] = -1
    edit(path, 3, "Female" if expected.attributes[31] == 0 else "Male", "")
    expected.age_group[30], expected.attributes[31] = -1, -1
    assert_same_table(read_fairface(tmp_path, validation_fraction=0), expected)


def test_landmark_file(tmp_path: Path) -> None:
    expected = write_fairface(tmp_path, images=False)
    points = np.random.default_rng(0).integers(0, 224, (42, 10))
    write_text_table(tmp_path / "mine.txt", expected.files, points, LANDMARK_COLUMNS)
    table = read_fairface(tmp_path, landmark_file=str(tmp_path / "mine.txt"))
    np.testing.assert_array_equal(table.landmarks, points.reshape(42, 5, 2))
    with pytest.raises(DataError, match=r"data\.landmark_file: there is no file"):
        read_fairface(tmp_path, landmark_file=str(tmp_path / "other.txt"))


BAD = {
    "age": (VAL, 4, "10-19", "Oct-19", "age is 'Oct-19'; expected 0-2, 3-9, 10-19,"),
    "gender": (TRAIN, 4, "ale,", "ala,", "expected Female, Male or nothing (not labelled). Did you mean"),
    "race": (TRAIN, 2, "East Asian", "Est Asian", "race is 'Est Asian'; expected Black, East Asian"),
    "columns": (TRAIN, 5, ",True", ",True,1", "expected 5 columns as in the header, found 6"),
    "header": (VAL, 1, "age", "ages", "name 2 to be 'age', found 'ages'"),
    "duplicate": (VAL, 5, "val/4", "val/2", "val/2.jpg is listed twice"),
    "parent": (VAL, 5, "val/4", "../4", "does not stay inside"),
    "quote": (VAL, 5, "val/4", '"val/4', "line 5"),
}


@pytest.mark.parametrize(("name", "line", "old", "new", "problem"), BAD.values(), ids=BAD)
def test_a_bad_line_is_named(tmp_path: Path, name: str, line: int, old: str, new: str, problem: str) -> None:
    write_fairface(tmp_path, images=False)
    path = tmp_path / name
    if old == "10-19":
        lines = path.read_text().splitlines()
        lines[line - 1] = ",".join([lines[line - 1].split(",")[0], old, "Male,White,True"])
        path.write_text("\n".join(lines))
    edit(path, line, old, new)
    text = message(tmp_path)
    assert text.startswith(f"{path}, line {line}: ") and problem in text, text


def test_a_file_without_genders_is_refused(tmp_path: Path) -> None:
    write_fairface(tmp_path, images=False)
    path = tmp_path / VAL
    path.write_text(path.read_text().replace(",Male,", ",,").replace(",Female,", ",,"))
    assert message(tmp_path).startswith(f"{path}: no row has a gender")


def test_missing_and_empty_files(tmp_path: Path) -> None:
    text = message(tmp_path)
    for part in (VAL, str(tmp_path), "project page", "data.root", "FACEATTR_DATA"):
        assert part in text
    (tmp_path / VAL).write_text("file,age,gender,race,service_test\n")
    assert "has no row" in message(tmp_path)


def test_every_division_of_the_images(tmp_path: Path) -> None:
    table = write_fairface(tmp_path, images=False)
    slices = table.all_slices()
    assert list(slices) == ["race", "age_group", "Male"]
    assert slices["age_group"].sides == FAIRFACE_AGE_GROUPS and slices["Male"].sides == ("0", "1")
    np.testing.assert_array_equal(slices["age_group"].code, table.age_group)
    np.testing.assert_array_equal(slices["Male"].code, table.attributes[:, 0])
    race = without_images(table, {table.files[3]: "bad"}).slices["race"]
    assert race.code.tolist() == np.delete(slices["race"].code, 3).tolist()


def test_fraction_out_of_range() -> None:
    with pytest.raises(ConfigError, match=r"data\.validation_fraction"):
        FairFace(validation_fraction=1)


def test_batches_carry_gender_and_age(tmp_path: Path) -> None:
    write_fairface(tmp_path, n_train=20, n_val=4)
    module = FairFace(root=str(tmp_path), batch_size=4, image_size=32)
    module.setup()
    batch = next(iter(module.test_dataloader()))
    assert batch["image"].shape == (4, 3, 32, 32) and batch["landmarks"].shape == (4, 0, 2)
    assert batch["age_group"].tolist() == module.table.age_group[20:].tolist()
    assert batch["attributes"].tolist() == module.table.attributes[20:].tolist()
    assert module.attribute_names == ["Male"]


def test_real_faces(real_data: Path) -> None:
    table = read_fairface(real_data / "fairface")
    assert [len(table.rows(split)) for split in Split] == [1400, 200, 400]
    # Counted with cut, sort and uniq.
    assert np.bincount(table.age_group).tolist() == [35, 253, 220, 606, 420, 228, 159, 61, 18]
    assert np.bincount(table.attributes[:, 0]).tolist() == [935, 1065]
    race = table.slices["race"]
    assert race.sides[0] == "Black" and race.sides[-1] == "White"
    assert np.bincount(race.code).tolist() == [322, 304, 242, 281, 214, 246, 391]
    assert (table.root / table.files[0]).is_file() and (table.root / table.files[-1]).is_file()
