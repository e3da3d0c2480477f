"""Tests of `faceattr_lightning.data.lfwa`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import scipy.io

from faceattr_lightning.attributes import CELEBA_ATTRIBUTES
from faceattr_lightning.data.lfwa import read_lfwa
from faceattr_lightning.data.table import FaceTable, Split
from faceattr_lightning.errors import ConfigError, DataError
from tests.data.writers import (
    LANDMARK_COLUMNS,
    assert_same_table,
    write_indices,
    write_lfwa,
    write_mat,
    write_text_table,
)

Version = Literal["5", "7.3"]
LABELS = "lfw_att_40.mat"
INDICES = "indices_train_test.mat"


def label_variables(table: FaceTable) -> dict[str, Any]:
    return {
        "AttrName": list(table.attribute_names),
        "label": table.attributes.astype(np.float64),
        "name": [file.replace("/", "\\") for file in table.files],
    }


def index_variables(table: FaceTable) -> dict[str, Any]:
    return {
        "indices_img_train": table.rows(Split.TRAIN)[:, None] + 1.0,
        "indices_img_test": table.rows(Split.TEST)[:, None] + 1.0,
    }


def message(root: Path) -> str:
    with pytest.raises(DataError) as caught:
        read_lfwa(root)
    return str(caught.value)


def validation_people(table: FaceTable) -> set[str]:
    return {table.files[row].split("/")[0] for row in table.rows(Split.VALIDATION)}


@pytest.mark.parametrize("version", ["5", "7.3"])
@pytest.mark.parametrize("attributes", [40, 73])
def test_both_versions_and_label_files_are_read(tmp_path: Path, version: Version, attributes: Literal[40, 73]) -> None:
    expected = write_lfwa(tmp_path, attributes=attributes, version=version, images=False)
    table = read_lfwa(tmp_path, attributes, validation_fraction=0)
    assert_same_table(table, expected)
    assert table.notes == []


@pytest.mark.parametrize("folder", ["lfw", "lfw-deepfunneled", "lfw-deepfunneled/lfw-deepfunneled", "images", "."])
def test_every_image_folder_is_found(tmp_path: Path, folder: str) -> None:
    (tmp_path / "lfw").mkdir()
    expected = write_lfwa(tmp_path, image_folder=folder, images=False)
    assert read_lfwa(tmp_path).root == expected.root


def test_names_of_the_forty_are_spelled_as_in_celeba(tmp_path: Path) -> None:
    table = write_lfwa(tmp_path, images=False)
    variables = label_variables(table)
    variables["AttrName"] = ["5 o'Clock Shadow", *(name.replace("_", " ") for name in CELEBA_ATTRIBUTES[1:])]
    write_mat(tmp_path / LABELS, variables, "5")
    assert read_lfwa(tmp_path).attribute_names == CELEBA_ATTRIBUTES


def test_names_of_the_73_that_fall_together_are_refused(tmp_path: Path) -> None:
    table = write_lfwa(tmp_path, attributes=73, images=False)
    variables = label_variables(table)
    variables["AttrName"][7] = "MALE"
    write_mat(tmp_path / "lfw_att_73.mat", variables, "5")
    with pytest.raises(DataError, match=r"expected 73 different names in AttrName, found 73.*are the same"):
        read_lfwa(tmp_path, 73)


@pytest.mark.parametrize("version", ["5", "7.3"])
def test_nan_and_minus_one_are_not_labelled(tmp_path: Path, version: Version) -> None:
    expected = write_lfwa(tmp_path, images=False)
    variables = label_variables(expected)
    variables["label"][1, 2] = np.nan
    variables["label"][3, 4] = -1
    write_mat(tmp_path / LABELS, variables, version)
    expected.attributes[[1, 3], [2, 4]] = -1
    assert_same_table(read_lfwa(tmp_path, validation_fraction=0), expected)


def test_identities_follow_the_people_not_the_rows(tmp_path: Path) -> None:
    expected = write_lfwa(tmp_path, images=False)
    order = np.random.default_rng(1).permutation(len(expected))
    variables = label_variables(expected)
    variables["name"] = [variables["name"][row] for row in order]
    write_mat(tmp_path / LABELS, variables, "5")
    np.testing.assert_array_equal(read_lfwa(tmp_path).identity, expected.identity[order])


def test_validation_takes_whole_people_from_train(tmp_path: Path) -> None:
    written = write_lfwa(tmp_path, people=26, images=False)
    table = read_lfwa(tmp_path, validation_fraction=0.3)
    train, validation = table.identity[table.rows(Split.TRAIN)], table.identity[table.rows(Split.VALIDATION)]
    assert not set(train) & set(validation)
    np.testing.assert_array_equal(table.rows(Split.TEST), written.rows(Split.TEST))
    # Nobody has more than four images, so the nearest number is at most two away.
    assert abs(len(validation) - 0.3 * len(written.rows(Split.TRAIN))) <= 2


def test_validation_depends_on_names_and_seed_only(tmp_path: Path) -> None:
    written = write_lfwa(tmp_path, people=26, images=False)
    drawn = validation_people(read_lfwa(tmp_path, validation_fraction=0.3, seed=7))
    order = np.random.default_rng(1).permutation(len(written))
    variables = label_variables(written)
    variables["name"] = [variables["name"][row] for row in order]
    write_mat(tmp_path / LABELS, variables, "7.3")
    write_indices(tmp_path / INDICES, written.split[order])
    assert validation_people(read_lfwa(tmp_path, validation_fraction=0.3, seed=7)) == drawn
    assert validation_people(read_lfwa(tmp_path, validation_fraction=0.3, seed=8)) != drawn


def test_the_draw_never_changes(tmp_path: Path) -> None:
    """A user's validation scores stay comparable over versions of this package and of its dependencies."""
    write_lfwa(tmp_path, people=26, images=False)
    assert validation_people(read_lfwa(tmp_path, validation_fraction=0.3, seed=0)) == {"Ann_B", "Ann_J", "Ann_R"}


def test_one_person_with_many_images_does_not_flood_validation(tmp_path: Path) -> None:
    people = ["Flood"] * 60 + [f"Ann_{number}" for number in range(40)]
    names = [f"{person}\\{person}_{number:04d}.jpg" for number, person in enumerate(people)]
    write_lfwa(tmp_path, people=1, images=False)
    (tmp_path / "lfw" / "Flood").mkdir()
    labels = np.zeros((100, 40))
    write_mat(tmp_path / LABELS, {"AttrName": list(CELEBA_ATTRIBUTES), "label": labels, "name": names}, "5")
    write_indices(tmp_path / INDICES, np.zeros(100, dtype=np.int8))
    for seed in range(10):
        table = read_lfwa(tmp_path, seed=seed)
        assert len(table.rows(Split.VALIDATION)) == 10 and "Flood" not in validation_people(table)


def test_a_small_set_still_gets_a_validation_split(tmp_path: Path) -> None:
    write_lfwa(tmp_path, people=5, images=False)
    assert len(validation_people(read_lfwa(tmp_path, validation_fraction=0.01))) == 1


@pytest.mark.parametrize("fraction", [-0.1, 1.0])
def test_a_fraction_out_of_range_is_refused(tmp_path: Path, fraction: float) -> None:
    with pytest.raises(ConfigError, match=r"data\.validation_fraction"):
        read_lfwa(tmp_path, validation_fraction=fraction)


def test_landmarks_of_a_detector_are_read(tmp_path: Path) -> None:
    expected = write_lfwa(tmp_path, images=False)
    points = np.random.default_rng(0).integers(0, 250, (len(expected), 10))
    path = tmp_path / "list_landmarks_lfwa.txt"
    write_text_table(path, expected.files[::-1], points[::-1], LANDMARK_COLUMNS)
    table = read_lfwa(tmp_path, validation_fraction=0)
    expected.landmarks = points.reshape(-1, 5, 2).astype(np.float32)
    assert_same_table(table, expected)

    points[0, 3] = 250
    write_text_table(path, expected.files, points, LANDMARK_COLUMNS)
    assert f"{path}, line 3: righteye_y is 250; expected whole pixels" in message(tmp_path)


def test_a_landmark_file_takes_the_place_of_the_own(tmp_path: Path) -> None:
    expected = write_lfwa(tmp_path, images=False)
    (tmp_path / "list_landmarks_lfwa.txt").write_text("not read")
    points = np.random.default_rng(0).integers(0, 250, (len(expected), 10))
    path = tmp_path / "mine.txt"
    write_text_table(path, expected.files, points, LANDMARK_COLUMNS)
    expected.landmarks = points.reshape(-1, 5, 2).astype(np.float32)
    assert_same_table(read_lfwa(tmp_path, validation_fraction=0, landmark_file=str(path)), expected)
    with pytest.raises(DataError, match=r"data\.landmark_file: there is no file /nowhere\.txt"):
        read_lfwa(tmp_path, landmark_file="/nowhere.txt")


def rename(old: str, new: str) -> Callable[[dict[str, Any]], None]:
    return lambda variables: variables.__setitem__(new, variables.pop(old))


def put(name: str, position: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda variables: variables[name].__setitem__(position, value)


BAD_LABELS: dict[str, tuple[Callable[[dict[str, Any]], None], list[str]]] = {
    "variable name": (rename("label", "labels"), ["AttrName, name, label; found", "labels", "stands for label"]),
    "label": (put("label", (2, 4), 3), ["row 3 (", "Bald is 3; expected 1 (present), 0 (absent)"]),
    "label size": (lambda v: v.update(label=v["label"].T), ["label is of size 40 x", "40 attribute names"]),
    "label type": (lambda v: v.update(label=["a", "b"]), ["expected the variable label to hold numbers"]),
    "name type": (lambda v: v.update(name=np.ones((3, 1))), ["expected the variable name to hold strings"]),
    "duplicate": (lambda v: put("name", 4, v["name"][1])(v), ["row 5: ", "is listed twice, first in ", "row 2."]),
    "parent": (put("name", 1, "..\\..\\x.jpg"), ["row 2: ", "does not stay inside"]),
    "absolute": (put("name", 1, "\\etc\\x.jpg"), ["row 2: ", "does not stay inside"]),
    "drive": (put("name", 1, "C:\\x.jpg"), ["row 2: ", "does not stay inside"]),
    "empty name": (put("name", 1, ""), ["row 2: ", "does not stay inside"]),
    "no person": (put("name", 1, "x.jpg"), ["row 2: expected an image name such as Person\\Person_0001.jpg"]),
    "attribute name": (put("AttrName", 4, "Hairless"), ["expected 'Bald' in AttrName, found 'Hairless'"]),
    "attribute twice": (put("AttrName", 4, "Male"), ["expected 40 different names in AttrName, found 40"]),
    "attribute count": (lambda v: v["AttrName"].pop(), ["expected 40 different names in AttrName, found 39"]),
}


@pytest.mark.parametrize("version", ["5", "7.3"])
@pytest.mark.parametrize(("change", "problems"), BAD_LABELS.values(), ids=BAD_LABELS)
def test_a_bad_label_file_is_named(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], problems: list[str], version: Version
) -> None:
    variables = label_variables(write_lfwa(tmp_path, images=False))
    change(variables)
    write_mat(tmp_path / LABELS, variables, version)
    text = message(tmp_path)
    assert text.startswith(str(tmp_path / LABELS)) and all(problem in text for problem in problems), text


BAD_INDICES: dict[str, tuple[Callable[[dict[str, Any]], None], list[str]]] = {
    "variable name": (rename("indices_img_test", "test"), ["found", "stands for indices_img_test"]),
    "zero": (put("indices_img_train", 0, 0), ["indices_img_train holds 0; expected whole numbers from 1 to"]),
    "too high": (
        lambda v: put("indices_img_test", 0, sum(map(len, v.values())) + 1)(v),
        ["indices_img_test holds 27; expected whole numbers from 1 to 26,"],
    ),
    "fraction": (put("indices_img_test", 0, 1.5), ["indices_img_test holds 1.5;"]),
    "NaN": (put("indices_img_test", 0, np.nan), ["indices_img_test holds nan;"]),
    "overlap": (
        lambda v: put("indices_img_test", 0, v["indices_img_train"][0])(v),
        ["is both in indices_img_train and in indices_img_test"],
    ),
    "left out": (
        lambda v: v.update(indices_img_test=v["indices_img_test"][:-2]),
        ["2 of the", "are neither in indices_img_train nor in indices_img_test"],
    ),
}


@pytest.mark.parametrize(("change", "problems"), BAD_INDICES.values(), ids=BAD_INDICES)
def test_a_bad_index_file_is_named(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], problems: list[str]
) -> None:
    variables = index_variables(write_lfwa(tmp_path, images=False))
    change(variables)
    write_mat(tmp_path / INDICES, variables, "5")
    text = message(tmp_path)
    assert text.startswith(str(tmp_path / INDICES)) and all(problem in text for problem in problems), text


@pytest.mark.parametrize("version", ["5", "7.3"])
@pytest.mark.parametrize("damage", ["text", "empty", "cut"])
def test_a_file_that_is_not_matlabs(tmp_path: Path, version: Version, damage: str) -> None:
    write_lfwa(tmp_path, version=version, images=False)
    path = tmp_path / LABELS
    content = path.read_bytes()
    path.write_bytes({"text": b"<html>404</html>" * 20, "empty": b"", "cut": content[: len(content) // 2]}[damage])
    assert message(tmp_path).startswith(f"{path}: expected a MATLAB file of version 5 or 7.3 (HDF5)")


@pytest.mark.parametrize("name", [LABELS, INDICES])
def test_a_missing_file_is_named_with_what_to_do(tmp_path: Path, name: str) -> None:
    write_lfwa(tmp_path, images=False)
    (tmp_path / name).unlink()
    text = message(tmp_path)
    for part in (name, str(tmp_path), "project page", "data.root", "FACEATTR_DATA"):
        assert part in text


def test_a_missing_image_folder_is_named(tmp_path: Path) -> None:
    write_lfwa(tmp_path, image_folder="pictures", images=False)
    text = message(tmp_path)
    for part in ("image folder", "Ann_A/", str(tmp_path / "lfw-deepfunneled"), "FACEATTR_DATA"):
        assert part in text


@pytest.mark.parametrize("attributes", [40, 73])
def test_real_labels(real_data: Path, attributes: Literal[40, 73]) -> None:
    table = read_lfwa(real_data / "lfwa", attributes)
    assert len(table) == 13_143 and table.attributes.shape == (13_143, attributes)
    train, validation, test = (table.rows(split) for split in Split)
    assert (len(train) + len(validation), len(test)) == (6_263, 6_880) and abs(len(validation) - 626) <= 1
    assert table.landmarks.shape == (13_143, 0, 2) and set(np.unique(table.attributes)) == {0, 1}
    people = [set(table.identity[rows]) for rows in (train, validation, test)]
    assert not (people[0] & people[1] or people[0] & people[2] or people[1] & people[2])
    assert (table.root / table.files[0]).is_file() and (table.root / table.files[-1]).is_file()


def test_real_labels_in_the_official_version(real_data: Path, tmp_path: Path) -> None:
    """The official files are of version 7.3, those at hand of version 5."""
    table = read_lfwa(real_data / "lfwa", 73)
    source = scipy.io.loadmat(real_data / "lfwa" / "lfw_att_73.mat")
    variables = {
        "AttrName": [str(cell[0]) for cell in source["AttrName"].ravel()],
        "label": source["label"].astype(np.float64),
        "name": [str(cell[0]) for cell in source["name"].ravel()],
    }
    assert table.attribute_names == tuple(variables["AttrName"])
    write_mat(tmp_path / "lfw_att_73.mat", variables, "7.3")
    indices = scipy.io.loadmat(real_data / "lfwa" / INDICES)
    write_mat(tmp_path / INDICES, {name: value for name, value in indices.items() if name.startswith("ind")}, "7.3")
    (tmp_path / "lfw" / variables["name"][0].split("\\")[0]).mkdir(parents=True)
    official = read_lfwa(tmp_path, 73)
    assert official.root == tmp_path / "lfw"
    official.root = table.root
    assert_same_table(official, table)
