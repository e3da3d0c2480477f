"""Tests of `faceattr_lightning.data.folder`."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from faceattr_lightning.data.folder import Folder, read_folder
from faceattr_lightning.data.table import Split
from faceattr_lightning.errors import ConfigError, DataError
from faceattr_lightning.landmarks import LANDMARKS_5
from tests.data.writers import LANDMARK_COLUMNS, assert_same_table, write_columns, write_folder, write_text_table

FILES = ["faces.csv", "faces.parquet"]


def message(root: Path, **arguments: Any) -> str:
    with pytest.raises(DataError) as caught:
        read_folder(root, **arguments)
    return str(caught.value)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("points", [(), LANDMARKS_5, [f"p{index}" for index in range(68)]], ids=[0, 5, 68])
def test_both_formats_are_read(tmp_path: Path, name: str, points: list[str]) -> None:
    expected = write_folder(tmp_path, points=points, name=name, images=False)
    table = read_folder(tmp_path)
    assert_same_table(table, expected)
    assert table.notes == []


def test_celebas_landmarks_come_in_its_order(tmp_path: Path) -> None:
    order = [3, 0, 4, 1, 2]
    written = write_folder(tmp_path, points=[LANDMARKS_5[index] for index in order], images=False)
    table = read_folder(tmp_path)
    np.testing.assert_array_equal(table.landmarks[:, order], written.landmarks)
    # Five of other names keep the file's order.
    write_folder(tmp_path, points="edcba", images=False)
    np.testing.assert_array_equal(read_folder(tmp_path).landmarks, written.landmarks)


@pytest.mark.parametrize("name", FILES)
def test_every_spelling_of_a_label_and_a_split(tmp_path: Path, name: str) -> None:
    labels = ["1", " 0", "-1", "", "true", "False", "TRUE", "1.0", "0.0", "-1.0"]
    splits = ["train", "validation", "val", "test", "0", "1", "2", "Train", "TEST", "0"]
    files = [f"{row}.jpg" for row in range(10)]
    write_columns(tmp_path / name, {"f": files, "a": labels, "split": splits})
    table = read_folder(tmp_path)
    assert table.attributes[:, 0].tolist() == [1, 0, -1, -1, 1, 0, 1, 1, 0, -1]
    assert table.split.tolist() == [0, 1, 1, 2, 0, 1, 2, 0, 2, 0]
    assert table.attribute_names == ("a",) and table.identity.tolist() == [-1] * 10


def test_types_of_parquet(tmp_path: Path) -> None:
    cells = {
        "file": ["a.jpg", "b.jpg", "c.jpg"],
        "whole": [1, 0, None],
        "real": [1.0, float("nan"), 0.0],
        "truth": [True, None, False],
        "split": [0, 1, 2],
        "identity": [7, None, 7],
        "__index_level_0__": [10, 11, 12],
    }
    write_columns(tmp_path / "t.parquet", cells)
    table = read_folder(tmp_path)
    assert table.attribute_names == ("whole", "real", "truth")
    assert table.attributes.tolist() == [[1, 1, 1], [0, -1, -1], [-1, 0, 0]]
    assert table.identity[0] == table.identity[2] >= 0 and table.identity[1] == -1
    assert table.notes == ["People with images in more than one split, which makes a test too easy: 1."]


def test_byte_order_mark_windows_line_ends_and_quotes(tmp_path: Path) -> None:
    path = tmp_path / "faces.csv"
    path.write_bytes(b'\xef\xbb\xbfimage,Happy\r\n"a, b.jpg",1\r\nc.jpg,0\r\n')
    table = read_folder(tmp_path)
    assert table.files == ["a, b.jpg", "c.jpg"] and table.attributes.tolist() == [[1], [0]]


def test_missing_landmarks_are_nan(tmp_path: Path) -> None:
    cells = {"image": ["a.jpg", "b.jpg"], "Happy": [1, 0]}
    cells |= {name: [3.5, None if name == "nose_y" else 4] for name in LANDMARK_COLUMNS}
    write_columns(tmp_path / "faces.csv", cells)
    landmarks = read_folder(tmp_path).landmarks
    assert np.argwhere(np.isnan(landmarks)).tolist() == [[1, 2, 0], [1, 2, 1]]
    write_columns(tmp_path / "faces.csv", cells | {name: [None, ""] for name in LANDMARK_COLUMNS})
    assert np.isnan(read_folder(tmp_path).landmarks).all()


@pytest.mark.parametrize("columns", [("identity",), ()], ids=["identity", "image"])
def test_without_splits_they_are_drawn(tmp_path: Path, columns: tuple[str, ...]) -> None:
    write_folder(tmp_path, n=100, columns=columns, images=False)
    table = read_folder(tmp_path, seed=3)
    assert [len(table.rows(split)) for split in Split] == [70, 10, 20]
    if columns:
        people = [set(table.identity[table.rows(split)]) for split in Split]
        assert not (people[0] & people[1] or people[0] & people[2] or people[1] & people[2])
    (note,) = table.notes
    assert "no column split" in note and ("by identity." in note) == bool(columns)
    assert list(read_folder(tmp_path, seed=3).split) == list(table.split) != list(read_folder(tmp_path, seed=4).split)


def test_an_attribute_without_labels_is_noted(tmp_path: Path) -> None:
    write_columns(tmp_path / "t.csv", {"f": ["a.jpg"], "Happy": [1], "Sad": [-1], "split": ["train"]})
    (note,) = read_folder(tmp_path).notes
    assert note == f"{tmp_path / 't.csv'}: no image has a label of Sad."


PEOPLE = {"image": ["a.jpg", "b.jpg"], "Happy": [1, 0], "split": ["train", "test"]}
PAIRS = {name: [5, 6] for name in LANDMARK_COLUMNS}
BAD: dict[str, tuple[dict[str, Any], int | None, str]] = {
    "label": ({"Happy": [1, 2]}, 1, "Happy is '2'; expected 1 or true (present), 0 or false (absent), or -1"),
    "near label": ({"Happy": [1, "flase"]}, 1, "Did you mean 'false'?"),
    "split": ({"split": ["train", "tst"]}, 1, "split is 'tst'; expected train, validation (or val), test, or 0, 1, 2."),
    "near split": ({"split": ["vaildation", "test"]}, 0, "Did you mean 'validation'?"),
    "no split": ({"split": ["train", None]}, 1, "split is ''"),
    "near column": ({"Split": ["train", "test"]}, 0, "The column counts as an attribute. Did you mean 'split'?"),
    "half a landmark": ({"nose_x": [5, 6]}, 0, "A landmark needs both nose_x and nose_y."),
    "pixels": (PAIRS | {"nose_y": ["5", "a"]}, 1, "nose_y is 'a'; expected pixels, or nothing where"),
    "infinite": (PAIRS | {"nose_y": ["5", "inf"]}, 1, "nose_y is 'inf'; expected pixels"),
    "four landmarks": (
        {name: [1, 0] for name in LANDMARK_COLUMNS if name != "nose_y"},
        None,
        "of 5, 68 or 98 landmarks, found 4: lefteye, righteye, leftmouth, rightmouth. Without a partner: nose_x.",
    ),
    "fractions": ({name: [0.5, 0.25] for name in LANDMARK_COLUMNS}, None, "expected pixels of the image file, not fr"),
    "duplicate": ({"image": ["a.jpg", "a.jpg"]}, 1, "a.jpg is listed twice"),
    "absolute": ({"image": ["a.jpg", "/b.jpg"]}, 1, "does not stay inside"),
    "empty name": ({"image": ["a.jpg", ""]}, 1, "image name ''"),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(("change", "row", "problem"), BAD.values(), ids=BAD)
def test_a_bad_row_is_named(tmp_path: Path, name: str, change: dict[str, Any], row: int | None, problem: str) -> None:
    cells = {column: [None if cell is None else str(cell) for cell in values] for column, values in change.items()}
    write_columns(tmp_path / name, {**{key: list(map(str, value)) for key, value in PEOPLE.items()}, **cells})
    text = message(tmp_path)
    where = "" if row is None else f", line {row + 2}" if name.endswith("csv") else f", row {row + 1}"
    assert text.startswith(f"{tmp_path / name}{where}: ") and problem in text, text


BAD_TEXTS = {
    "too few": ("image,Happy\na.jpg,1\nb.jpg\n", "line 3: expected 2 columns as in the header, found 1"),
    "too many": ("image,Happy\na.jpg,1,1\n", "line 2: expected 2 columns as in the header, found 3"),
    "blank line": ("image,Happy\n\nb.jpg,1\n", "line 2: expected 2 columns as in the header, found 0"),
    "open quote": ('image,Happy\na.jpg,1\n"b.jpg,1\nc.jpg,1\n', "line 3: can't be read (unexpected end of data)"),
    "two lines": ('image,Happy\n"a\nb.jpg",1\n', 'line 2: a cell that begins with " ends on line 3'),
    "quote": ('image,Happy\n"a"b.jpg,1\n', "line 2: can't be read"),
    "semicolons": ("image;Happy\na.jpg;1\n", "are the columns separated by commas?"),
    "no attribute": ("image,split\na.jpg,train\n", "there is no column of an attribute"),
    "index": (",image,Happy\n0,a.jpg,1\n", "column 1 has no name; give it one; pandas writes its index there"),
    "no name": ("image,Happy,\na.jpg,1,1\n", "line 1: column 3 has no name"),
    "twice": ("image,Happy,Happy\na.jpg,1,1\n", "line 1: two columns are called 'Happy'"),
    "no rows": ("image,Happy\n", "the file has no row"),
    "empty": ("", "the file has no row"),
}


@pytest.mark.parametrize(("content", "problem"), BAD_TEXTS.values(), ids=BAD_TEXTS)
def test_a_bad_csv_file_is_named(tmp_path: Path, content: str, problem: str) -> None:
    path = tmp_path / "faces.csv"
    path.write_text(content)
    text = message(tmp_path)
    assert text.startswith(str(path)) and problem in text, text


def test_bad_parquet_files(tmp_path: Path) -> None:
    path = tmp_path / "faces.parquet"
    path.write_bytes(b"PAR1 and nothing else PAR1")
    assert message(tmp_path).startswith(f"{path}: the file can't be read")
    write_columns(path, {"image": ["a.jpg"], "Happy": [[1, 2]]})
    assert message(tmp_path).startswith(f"{path}: column 2 can't be read")
    write_columns(path, {"image": [], "Happy": []})
    assert "expected a row for each image" in message(tmp_path)


def test_parquet_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path, name="faces.parquet", images=False)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError, match=r"pip install 'faceattr-lightning\[parquet\]'"):
        read_folder(tmp_path)


def test_which_table(tmp_path: Path) -> None:
    root = tmp_path / "root"
    write_folder(root, images=False)
    assert len(read_folder(root, "faces.csv")) == len(read_folder(root, str(root / "faces.csv"))) == 12
    write_folder(root, n=6, name="other.parquet", images=False)
    text = message(root)
    assert "found faces.csv, other.parquet" in text and "data.table=FILE" in text
    assert len(read_folder(root, "other.parquet")) == 6
    assert message(root, table="nope.csv").startswith(f"data.table: there is no file {root / 'nope.csv'} nor nope.csv")
    (root / "notes.txt").touch()
    assert "expected a file ending in .csv or .parquet" in message(root, table="notes.txt")
    (tmp_path / "empty").mkdir()
    assert "found none" in message(tmp_path / "empty")


@pytest.mark.parametrize("frame", [(64,), (0, 64), (64, 64, 3)])
def test_a_bad_frame(frame: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"data\.frame: expected \[height, width\]"):
        Folder(frame=frame)


def test_bad_fractions_and_crops() -> None:
    with pytest.raises(ConfigError, match="leave nothing to train on"):
        Folder(validation_fraction=0.5, test_fraction=0.5)
    with pytest.raises(ConfigError, match="not inside an image of 40 x 30"):
        Folder(frame=(30, 40), crop=(0, 0, 40, 40))


def test_images_of_any_size_fill_the_frame(tmp_path: Path) -> None:
    written = write_folder(tmp_path)
    module = Folder(root=str(tmp_path), frame=(30, 40), image_size=32, batch_size=4)
    module.setup()
    assert module.source_size == module.table.image_size == (30, 40) and module.crop == (0, 0, 40, 30)
    assert module.table.files == written.files and module.table.notes == []
    for row, pixels in enumerate(module.source_images(np.arange(12))):
        with Image.open(tmp_path / written.files[row]) as image:
            np.testing.assert_array_equal(pixels, np.asarray(ImageOps.fit(image.convert("RGB"), (40, 30))))
    batch = next(iter(module.train_dataloader()))
    assert batch["image"].shape == (4, 3, 32, 32) and batch["landmarks"].shape == (4, 0, 2)


@pytest.mark.parametrize("source", ["table", "landmark_file"])
@pytest.mark.parametrize("frame", [(64, 64), (40, 80), (90, 50)])
def test_landmarks_move_with_the_image(tmp_path: Path, frame: tuple[int, int], source: str) -> None:
    """A bright spot is drawn at the landmark; it must be found where the landmark went."""
    cells: dict[str, list[Any]] = {"image": [], "Happy": [], "split": []}
    spots, sizes = [], [(120, 80), (80, 120), (100, 100)]
    for row, (height, width) in enumerate(sizes):
        x, y = width // 2 + 7, height // 2 - 5
        ys, xs = np.mgrid[:height, :width]
        pixels = 255 * np.exp(-((xs - x) ** 2 + (ys - y) ** 2) / 18)
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / f"{row}.png")
        spots.append((x, y))
        for name, cell in (("image", f"{row}.png"), ("Happy", row % 2), ("split", row)):
            cells[name].append(cell)
    points = np.tile(np.array(spots), 5)
    if source == "table":
        cells |= {name: points[:, column].tolist() for column, name in enumerate(LANDMARK_COLUMNS)}
    write_columns(tmp_path / "faces.csv", cells)
    path = tmp_path / "landmarks.txt"
    write_text_table(path, cells["image"], points, LANDMARK_COLUMNS)
    module = Folder(root=str(tmp_path), frame=frame, landmark_file=str(path) if source == "landmark_file" else None)
    module.setup()
    for row, pixels in enumerate(module.source_images(np.arange(3))):
        weight = pixels[..., 0].astype(float) ** 2
        ys, xs = np.mgrid[: frame[0], : frame[1]]
        found = [(xs * weight).sum() / weight.sum(), (ys * weight).sum() / weight.sum()]
        np.testing.assert_allclose(module.table.landmarks[row, 2], found, atol=0.1)


def test_landmarks_outside_their_image_are_noted(tmp_path: Path) -> None:
    write_folder(tmp_path, points=LANDMARKS_5)
    path = tmp_path / "faces.csv"
    lines = path.read_text().splitlines()
    first, column = lines[1].split(","), lines[0].split(",").index("nose_x")
    first[column] = "500"
    lines[1] = ",".join(first)
    path.write_text("\n".join(lines))
    module = Folder(root=str(tmp_path))
    module.setup()
    assert module.table.notes == [f"{tmp_path}: landmarks outside their image, which count as unknown: 1."]
    _, valid = module.source().landmarks(np.array([0]))
    assert not valid[0, 2]


def test_a_photo_on_its_side_is_turned(tmp_path: Path) -> None:
    pixels = np.zeros((40, 20, 3), dtype=np.uint8)
    pixels[:10] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise: the first row becomes the last column
    Image.fromarray(pixels).save(tmp_path / "a.jpg", exif=exif)
    for name in ("b.png", "c.png"):
        Image.fromarray(pixels).save(tmp_path / name)
    cells: dict[str, list[Any]] = {"image": ["a.jpg", "b.png", "c.png"], "Happy": [1, 0, 1], "split": [0, 1, 2]}
    cells |= {name: [30 if name.endswith("x") else 10, 10, 10] for name in LANDMARK_COLUMNS}
    write_columns(tmp_path / "faces.csv", cells)
    module = Folder(root=str(tmp_path), frame=(20, 40))
    module.setup()
    turned = module.source_images(np.array([0]))[0]
    assert turned[:, 31:].mean() > 250 and turned[:, :29].mean() < 5
    np.testing.assert_allclose(module.table.landmarks[0], [[30, 10]] * 5)


def test_bad_images_are_found(tmp_path: Path) -> None:
    written = write_folder(tmp_path, n=30)
    (tmp_path / written.files[4]).write_bytes(b"")
    (tmp_path / written.files[9]).unlink()
    with pytest.raises(DataError, match="2 of 30 images can't be used"):
        Folder(root=str(tmp_path)).setup()
    module = Folder(root=str(tmp_path), on_bad_image="skip")
    module.setup()
    assert len(module.table) == 28


def test_an_empty_split_is_an_error(tmp_path: Path) -> None:
    write_folder(tmp_path, n=2)
    with pytest.raises(DataError, match="no image is in the split validation and in test"):
        Folder(root=str(tmp_path)).setup()


def test_a_missing_landmark_file_is_seen_first(tmp_path: Path) -> None:
    write_folder(tmp_path, images=False)
    with pytest.raises(DataError, match=r"data\.landmark_file: there is no file"):
        Folder(root=str(tmp_path), landmark_file=str(tmp_path / "nope.txt")).setup()


@pytest.mark.parametrize("name", FILES)
def test_a_large_table_is_read_fast(tmp_path: Path, name: str) -> None:
    labels = np.random.default_rng(0).integers(-1, 2, (20_000, 40))
    cells: dict[str, Any] = {"image": [f"{row:06d}.jpg" for row in range(20_000)]}
    write_columns(tmp_path / name, cells | {f"a{column}": labels[:, column].tolist() for column in range(40)})
    started = time.process_time()
    table = read_folder(tmp_path)
    # CPU time: a busy machine does not fail it. A tenth of what users may bring, who should wait a few seconds.
    assert time.process_time() - started < 1.5
    np.testing.assert_array_equal(table.attributes, labels)
