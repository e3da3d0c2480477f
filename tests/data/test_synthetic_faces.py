"""The drawn faces: labels like CelebA's, pictures that show them, landmarks that are where the pixels are."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from faceattr_lightning.attributes import CELEBA_ATTRIBUTES
from faceattr_lightning.data import synthetic_faces
from faceattr_lightning.data.synthetic import Synthetic
from faceattr_lightning.data.synthetic_faces import (
    DRAWN_ATTRIBUTES,
    IMAGE_SIZE,
    NOT_DRAWN_ATTRIBUTES,
    People,
    draw_face,
    draw_faces,
    sample_people,
)
from faceattr_lightning.errors import DataError
from tests.disks import small_disk
from tests.runs import ROOT

COLUMN = {name: column for column, name in enumerate(CELEBA_ATTRIBUTES)}

# Of CelebA's training images, in the order of CELEBA_ATTRIBUTES.
PREVALENCE = (
    0.112, 0.266, 0.514, 0.204, 0.023, 0.152, 0.241, 0.236, 0.239, 0.149, 0.051, 0.204, 0.144, 0.058, 0.047, 0.065,
    0.064, 0.042, 0.384, 0.452, 0.419, 0.482, 0.041, 0.116, 0.834, 0.283, 0.043, 0.276, 0.080, 0.065, 0.056, 0.480,
    0.209, 0.319, 0.187, 0.049, 0.470, 0.121, 0.073, 0.779,
)  # fmt: skip
CORRELATION = (
    ("Wearing_Lipstick", "Heavy_Makeup", 0.80),
    ("Wearing_Lipstick", "Male", -0.79),
    ("Smiling", "High_Cheekbones", 0.69),
    ("Heavy_Makeup", "Male", -0.67),
    ("No_Beard", "Goatee", -0.57),
    ("Smiling", "Mouth_Slightly_Open", 0.54),
    ("Double_Chin", "Chubby", 0.55),
    ("No_Beard", "Male", -0.52),
    ("Sideburns", "Goatee", 0.51),
    ("Attractive", "Young", 0.39),
    ("Young", "Gray_Hair", -0.36),
)
HAIR_COLOURS = ("Black_Hair", "Blond_Hair", "Brown_Hair", "Gray_Hair")


@pytest.fixture(scope="module")
def people() -> People:
    return sample_people(60_000, seed=7)


def labels(*names: str) -> NDArray[np.int8]:
    """Return a row with these attributes."""
    row = np.zeros(len(CELEBA_ATTRIBUTES), dtype=np.int8)
    row[[COLUMN[name] for name in names]] = 1
    return row


def shown(people: People, name: str) -> NDArray[np.bool_]:
    return people.attributes[:, COLUMN[name]] == 1


def test_names_cover_the_attributes_once() -> None:
    assert sorted(DRAWN_ATTRIBUTES + NOT_DRAWN_ATTRIBUTES) == sorted(CELEBA_ATTRIBUTES)


def test_labels_have_the_documented_types(people: People) -> None:
    assert people.attributes.dtype == np.int8 and people.attributes.shape == (60_000, 40)
    assert set(np.unique(people.attributes)) == {0, 1}
    assert people.identity.dtype == np.int64 and people.identity.shape == (60_000,)


@pytest.mark.parametrize(("name", "target"), list(zip(CELEBA_ATTRIBUTES, PREVALENCE, strict=True)))
def test_prevalence_is_like_celeba(people: People, name: str, target: float) -> None:
    assert shown(people, name).mean() == pytest.approx(target, abs=0.01 if target < 0.1 else 0.02)


@pytest.mark.parametrize(("first", "second", "target"), CORRELATION)
def test_correlation_is_like_celeba(people: People, first: str, second: str, target: float) -> None:
    found = np.corrcoef(shown(people, first), shown(people, second))[0, 1]
    assert found == pytest.approx(target, abs=0.1)


def test_at_most_one_hair_colour(people: People) -> None:
    assert sum(shown(people, name).astype(int) for name in HAIR_COLOURS).max() == 1


@pytest.mark.parametrize(
    ("first", "second"),
    [
        *(("Bald", name) for name in (*HAIR_COLOURS, "Bangs", "Straight_Hair", "Wavy_Hair", "Wearing_Hat")),
        ("Straight_Hair", "Wavy_Hair"),
        ("Receding_Hairline", "Bangs"),
        ("Receding_Hairline", "Wearing_Hat"),
        *(("No_Beard", name) for name in ("Goatee", "Mustache", "Sideburns")),
        ("Wearing_Necktie", "Wearing_Necklace"),
    ],
)
def test_contradictions_do_not_occur(people: People, first: str, second: str) -> None:
    assert not (shown(people, first) & shown(people, second)).any()


def test_more_people_keep_the_first_ones() -> None:
    few, many = sample_people(37, seed=3), sample_people(2000, seed=3)
    np.testing.assert_array_equal(few.attributes, many.attributes[:37])
    np.testing.assert_array_equal(few.identity, many.identity[:37])


def test_seed_changes_the_people() -> None:
    assert (sample_people(100, seed=0).attributes != sample_people(100, seed=1).attributes).any()


def test_no_people() -> None:
    assert sample_people(0, seed=0).attributes.shape == (0, 40)


def test_identities_are_contiguous_and_have_about_twenty_images(people: People) -> None:
    steps = np.diff(people.identity)
    assert people.identity[0] == 0 and set(np.unique(steps)) == {0, 1}
    sizes = np.bincount(people.identity)[:-1]
    assert 18 < sizes.mean() < 22 and sizes.std() > 2


@pytest.mark.parametrize("name", ["Male", "Young", "Big_Nose", "Oval_Face", "Gray_Hair", "Receding_Hairline"])
def test_stable_attributes_agree_within_an_identity(people: People, name: str) -> None:
    # Neighbouring rows mostly show one person; rows a thousand apart never do.
    present, same = shown(people, name), np.diff(people.identity) == 0
    within = (present[1:] == present[:-1])[same].mean()
    across = (present[1000:] == present[:-1000]).mean()
    assert 1.0 - within < 0.8 * (1.0 - across)


def test_sex_is_constant_and_smiles_come_and_go(people: People) -> None:
    same = np.diff(people.identity) == 0
    assert (np.diff(people.attributes[:, COLUMN["Male"]])[same] == 0).all()
    assert 0.4 < (np.diff(people.attributes[:, COLUMN["Smiling"]])[same] != 0).mean() < 0.55


def test_faces_have_the_documented_types() -> None:
    people = sample_people(4, seed=0)
    images, landmarks = draw_faces(people, 0, [2, 0, 3])
    assert images.shape == (3, *IMAGE_SIZE, 3) and images.dtype == np.uint8
    assert landmarks.shape == (3, 5, 2) and landmarks.dtype == np.float32


def test_a_face_does_not_depend_on_the_others() -> None:
    people = sample_people(6, seed=1)
    images, landmarks = draw_faces(people, 1, [0, 4, 5])
    image, points = draw_face(people.attributes[4], int(people.identity[4]), 1, 4)
    np.testing.assert_array_equal(image, images[1])
    np.testing.assert_array_equal(points, landmarks[1])
    np.testing.assert_array_equal(draw_faces(people, 1, [5, 0])[0], images[[2, 0]])


def test_global_random_state_is_left_alone() -> None:
    before = np.random.get_state()
    draw_faces(sample_people(1, seed=0), 0, [0])
    assert str(np.random.get_state()) == str(before)


def test_seed_index_and_identity_change_the_face() -> None:
    row = labels("No_Beard", "Young")
    plain = draw_face(row, 0, 0, 0)[0]
    for identity, seed, index in ((1, 0, 0), (0, 1, 0), (0, 0, 1)):
        assert (draw_face(row, identity, seed, index)[0] != plain).any()


def plain_face(name: str) -> NDArray[np.int8]:
    """Return labels of a face on which nothing hides the attribute."""
    if name in ("Bald", *HAIR_COLOURS):
        return labels("No_Beard", "Young")
    if name in ("Goatee", "Mustache", "Sideburns"):
        return labels("Male", "Young", "Brown_Hair", "5_o_Clock_Shadow")
    return labels("No_Beard", "Young", "Brown_Hair")


@pytest.mark.parametrize("name", DRAWN_ATTRIBUTES)
def test_a_drawn_attribute_changes_the_picture(name: str) -> None:
    without = plain_face(name)
    toggled = without.copy()
    toggled[COLUMN[name]] ^= 1
    for index in (0, 1):
        before, after = (draw_face(row, 5, 0, index)[0].astype(int) for row in (without, toggled))
        changed = np.abs(before - after).max(axis=2) > 12
        assert changed[20:198].sum() > 60, "too small a change inside the usual crop to be learned"
        assert name == "Blurry" or not changed[:20, :20].any(), "the background has to stay as it was"


@pytest.mark.parametrize("name", NOT_DRAWN_ATTRIBUTES)
def test_an_attribute_that_is_not_drawn_changes_nothing(name: str) -> None:
    row = labels("No_Beard", "Young", "Brown_Hair")
    with_it = row.copy()
    with_it[COLUMN[name]] = 1
    np.testing.assert_array_equal(draw_face(row, 5, 0, 0)[0], draw_face(with_it, 5, 0, 0)[0])


def test_landmarks_lie_near_celebas_alignment_and_inside() -> None:
    people = sample_people(600, seed=2)
    _, landmarks = draw_faces(people, 2, range(0, 600, 12))
    target = np.array([(69, 111), (109, 111), (88, 135), (73, 152), (107, 152)])
    assert np.abs(landmarks - target).max() < 16
    np.testing.assert_allclose(landmarks.mean(0), target, atol=3)
    assert (landmarks >= 0).all() and (landmarks < (IMAGE_SIZE[1], IMAGE_SIZE[0])).all()


def test_pupils_are_dark_where_the_eye_landmarks_are() -> None:
    row = labels("No_Beard", "Young", "Brown_Hair")
    for index in range(12):
        image, landmarks = draw_face(row, index, 0, index)
        for x, y in np.round(landmarks[:2] - 0.5).astype(int):
            pupil = image[y : y + 2, x : x + 2].mean()
            cheek = image[y + 16 : y + 19, x - 1 : x + 2].mean()
            assert pupil < 0.6 * cheek


def test_mouth_corners_are_where_lipstick_ends() -> None:
    row = labels("No_Beard", "Young", "Brown_Hair", "Pale_Skin", "Big_Lips")
    for index in range(6):
        before, landmarks = draw_face(row, index, 0, index)
        after, _ = draw_face(row | labels("Wearing_Lipstick"), index, 0, index)
        painted = np.argwhere(np.abs(before.astype(int) - after).max(axis=2) > 12)[:, ::-1] + 0.5
        left, right = painted[painted[:, 0].argmin()], painted[painted[:, 0].argmax()]
        np.testing.assert_allclose((left, right), landmarks[3:], atol=2.5)


def test_landmarks_turn_with_the_head() -> None:
    shape = np.array([(-20.0, 111.0), (20.0, 111.0), (0.0, 135.0)])
    pose = synthetic_faces._Pose(angle=0.0, scale=1.0, shift=(0.0, 0.0), yaw=0.0)
    upright, turned = pose.place(shape), replace(pose, angle=0.3).place(shape)
    np.testing.assert_allclose(np.ptp(upright[:2, 1]), 0.0, atol=1e-9)
    across = turned[1] - turned[0]
    assert np.arctan2(across[1], across[0]) == pytest.approx(0.3)
    assert np.hypot(*across) == pytest.approx(40.0)


def test_yaw_moves_the_nose_further_than_the_outline() -> None:
    shape = np.array([(0.0, 118.0), (48.0, 118.0)])
    ahead = synthetic_faces._Pose(angle=0.0, scale=1.0, shift=(0.0, 0.0), yaw=0.0)
    moved = replace(ahead, yaw=5.0).place(shape) - ahead.place(shape)
    assert moved[0, 0] > 2 * moved[1, 0] > 0


def cached(cache: Path) -> list[str]:
    return sorted(path.name for path in (cache / "synthetic").iterdir() if path.name != ".lock")


def test_who_comes_together_draws_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lock holds between threads as between processes, which `test_eight_processes_draw_once` starts."""
    drawn = []

    def draw(self: Synthetic, folder: Path, count: int) -> None:
        time.sleep(0.1)
        drawn.append(count)
        (folder / "images.npy").write_bytes(b"whole")

    monkeypatch.setattr(Synthetic, "_draw", draw)
    # What a killed process left.
    leftover = tmp_path / "synthetic" / "9-seed0-0123456789ab.partial"
    leftover.mkdir(parents=True)
    modules = [Synthetic(40, 30, 30, cache_dir=str(tmp_path)) for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda module: module._fill_cache(), modules))
    assert drawn == [100]
    assert cached(tmp_path) == [modules[0].data_root().name]
    assert (modules[0].data_root() / "images.npy").read_bytes() == b"whole"


def test_drawing_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def draw(self: Synthetic, folder: Path, count: int) -> None:
        (folder / "images.npy").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Synthetic, "_draw", draw)
    with pytest.raises(DataError, match=r"data\.cache_dir: can't write .*: No space left on device\. Free some space"):
        Synthetic(40, 30, 30, cache_dir=str(tmp_path)).setup()
    assert cached(tmp_path) == []


def test_a_disk_that_is_too_small(tmp_path: Path) -> None:
    """A file system of 2 MB for 12 MB of faces: an error, not the signal that a mapped file meets."""
    with small_disk(tmp_path / "disk", "size=2m") as disk:
        with pytest.raises(DataError, match="No space left on device"):
            Synthetic(40, 30, 30, cache_dir=str(disk)).setup()
        assert cached(disk) == []


DRAW = """
import logging, sys
from faceattr_lightning.data.synthetic import Synthetic
if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    cache, train = sys.argv[1:]
    module = Synthetic(int(train), 30, 30, cache_dir=cache)
    module.setup()
    print(int(module.open_store(module.table).read(range(60)).sum()), module.table.landmarks.sum())
"""


def start(script: Path, cache: Path, train: int) -> subprocess.Popen[str]:
    # From a file, which the processes that draw can import.
    if not script.exists():
        script.write_text(DRAW)
    command = [sys.executable, str(script), str(cache), str(train)]
    return subprocess.Popen(
        command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.slow
def test_eight_processes_draw_once(tmp_path: Path) -> None:
    together = [start(tmp_path / "draw.py", tmp_path / "cache", 40) for _ in range(8)]
    said = [process.communicate() for process in together]
    assert len({printed.splitlines()[-1] for printed, _ in said}) == 1
    assert sum(logged.count("synthetic: drawing 100 faces") for _, logged in said) == 1
    (folder,) = cached(tmp_path / "cache")
    assert re.fullmatch(r"100-seed0-\w{12}", folder)


@pytest.mark.slow
def test_killed_drawing_is_done_again_by_who_waits(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    killed = start(tmp_path / "draw.py", cache, 1500)
    deadline = time.monotonic() + 120
    while not list(cache.rglob("*.partial/images.npy")) and time.monotonic() < deadline:
        time.sleep(0.05)
    waiting = [start(tmp_path / "draw.py", cache, 1500) for _ in range(2)]
    seen = [process.stderr.readline() for process in waiting if process.stderr is not None]
    killed.send_signal(signal.SIGKILL)
    # Its pool's processes hold its output open until they have noticed.
    killed.communicate()
    said = [process.communicate() for process in waiting]
    assert all("Another process is preparing synthetic" in line for line in seen)
    assert len({printed.splitlines()[-1] for printed, _ in said}) == 1
    assert sum(logged.count("synthetic: drawing 1560 faces") for _, logged in said) == 1
    assert len(cached(cache)) == 1 and not cached(cache)[0].endswith(".partial")
