"""``task=annotate`` with a keypoint model that finds drawn blobs, in real worker processes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from faceattr_lightning.data.annotations import read_landmarks
from faceattr_lightning.errors import ConfigError, DataError
from faceattr_lightning.tasks import annotate as annotate_module
from faceattr_lightning.tasks.annotate import annotate
from tests.data.writers import write_celeba
from tests.keypoints.blobs import BROKEN, draw_blobs, some_landmarks
from tests.runs import run, run_dirs

FINDER = "tests.keypoints.blobs.BlobFinder"
CELEBA = (218, 178)


@pytest.fixture
def folder(tmp_path: Path) -> tuple[Path, dict[str, NDArray[np.int64] | None]]:
    """A folder of forty photos of various sizes, of which each seventh has no blobs, and the landmarks by name."""
    rng = np.random.default_rng(5)
    root = tmp_path / "my photos"
    truth: dict[str, NDArray[np.int64] | None] = {}
    for number in range(40):
        name = f"{'abc'[number % 3]}/deep/{number:02d}{('.png', '.PNG', '.jpg')[number % 3]}"
        size = (40 + 7 * number, 200 - 3 * number)
        truth[name] = some_landmarks(rng, size) if number % 7 else None
        draw_blobs(root / name, size, truth[name])
    (root / "notes.txt").write_text("no image")
    (root / "._00.png").write_bytes(b"\x00\x05\x16\x07")
    return root, truth


def job(tmp_path: Path, **keys: Any) -> dict[str, Any]:
    (tmp_path / "run").mkdir(exist_ok=True)
    data = {"_target_": "faceattr_lightning.data.celeba.CelebA", "root": str(tmp_path / "celeba")}
    return {
        "keypoints": {"_target_": FINDER},
        "paths": {"run_dir": str(tmp_path / "run")},
        "images": None,
        "data": data,
        **keys,
    }


def assert_found(path: Path, truth: dict[str, NDArray[np.int64] | None], size: tuple[int, int]) -> None:
    notes: list[str] = []
    read = read_landmarks(path, list(truth), size, notes)
    for points, expected in zip(read, truth.values(), strict=True):
        np.testing.assert_array_equal(points, np.full((5, 2), np.nan) if expected is None else expected)


def test_a_data_set_through_the_program(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    table = write_celeba(tmp_path / "celeba", n=24)
    truth = {file: some_landmarks(rng, CELEBA) if row % 5 else None for row, file in enumerate(table.files)}
    for file, landmarks in truth.items():
        draw_blobs(table.root / file, CELEBA, landmarks)
    overrides = ["task=annotate", "data=celeba", f"keypoints._target_={FINDER}"]
    finished = run(*overrides, data=tmp_path, output=tmp_path / "out")
    (run_dir,) = run_dirs(tmp_path / "out", "annotate")
    path = run_dir / "list_landmarks_celeba.txt"
    assert_found(path, truth, CELEBA)
    without = [file for file, landmarks in truth.items() if landmarks is None]
    assert (run_dir / "without_face.txt").read_text().split() == without
    assert "19 of 24 images have a face" in finished.stdout and without[4] in finished.stdout
    assert finished.stdout.rstrip().endswith(f"data.landmark_file={path}")
    assert f"Without: {', '.join(without)}" in (run_dir / "run.log").read_text()
    assert "Warning" not in finished.stderr and "Traceback" not in finished.stderr


@pytest.mark.parametrize("workers", [1, 3])
def test_a_folder_of_any_sizes(
    tmp_path: Path,
    folder: tuple[Path, dict[str, NDArray[np.int64] | None]],
    workers: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    root, truth = folder
    monkeypatch.setattr("os.cpu_count", lambda: workers)
    caplog.set_level("INFO")
    annotate(job(tmp_path, images=str(root)), [])
    path = tmp_path / "run" / "list_landmarks_my photos.txt"
    assert_found(path, truth, (400, 200))
    # The same names in the same order, whatever the number of workers.
    names = sorted(truth)
    assert [line.split()[0] for line in path.read_text().splitlines()[2:]] == [n for n in names if truth[n] is not None]
    assert (tmp_path / "run" / "without_face.txt").read_text().split() == [n for n in names if truth[n] is None]
    # A path with a space can be copied to the command line.
    assert f"data.landmark_file=\"'{path}'\"" in caplog.text
    assert {entry.name for entry in path.parent.iterdir()} == {path.name, "without_face.txt"}


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_interrupted_run_keeps_what_it_found(
    tmp_path: Path,
    folder: tuple[Path, dict[str, NDArray[np.int64] | None]],
    error: type[BaseException],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def until_twenty(found: Iterator[Any], *_: Any, **__: Any) -> Iterator[Any]:
        for _ in range(20):
            yield next(found)
        raise error("stop")

    monkeypatch.setattr(annotate_module, "track", until_twenty)
    root, truth = folder
    with pytest.raises(SystemExit if error is KeyboardInterrupt else error) as caught:
        annotate(job(tmp_path, images=str(root)), [])
    if error is KeyboardInterrupt:
        assert isinstance(caught.value, SystemExit) and caught.value.code == 130
    partial = tmp_path / "run" / "list_landmarks_my photos.txt.partial"
    names = sorted(truth)
    assert_found(partial, {name: truth[name] if row < 20 else None for row, name in enumerate(names)}, (400, 200))
    assert [entry.name for entry in partial.parent.iterdir()] == [partial.name]
    assert f"Stopped after 20 of 40 images; found until then: {partial}" in caplog.text


def test_a_keypoint_model_that_fails(tmp_path: Path, folder: tuple[Path, dict[str, NDArray[np.int64] | None]]) -> None:
    root, truth = folder
    draw_blobs(root / sorted(truth)[-1], (30, 30), None, grey=BROKEN)
    with pytest.raises(RuntimeError, match="a keypoint model that fails"):
        annotate(job(tmp_path, images=str(root)), [])
    (partial,) = (tmp_path / "run").iterdir()
    # Whole chunks before the bad one are kept.
    assert int(partial.read_text().split("\n")[0]) == sum(truth[name] is not None for name in sorted(truth)[:32])


def test_without_any_face(tmp_path: Path) -> None:
    for number in range(3):
        draw_blobs(tmp_path / "empty" / f"{number}.png", (30, 30), None)
    with pytest.raises(DataError, match="no image has a face"):
        annotate(job(tmp_path, images=str(tmp_path / "empty")), [])
    assert [entry.name for entry in (tmp_path / "run").iterdir()] == ["without_face.txt"]


def test_bad_images_are_named_before_the_work(
    tmp_path: Path, folder: tuple[Path, dict[str, NDArray[np.int64] | None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(annotate_module, "process_pool", None)
    root, truth = folder
    broken = root / sorted(truth)[3]
    broken.write_bytes(broken.read_bytes()[:150])
    (root / "text.jpg").write_text("no image")
    with pytest.raises(DataError) as caught:
        annotate(job(tmp_path, images=str(root)), [])
    text = str(caught.value)
    assert "2 of 41 images can't be used" in text and str(broken) in text and f"{root / 'text.jpg'}: " in text
    broken.unlink()
    (root / "text.jpg").unlink()
    draw_blobs(root / "two words.png", (30, 30), None)
    with pytest.raises(DataError, match=r"two words.png.*Rename the file"):
        annotate(job(tmp_path, images=str(root)), [])


@pytest.mark.parametrize("place", ["nowhere", "empty", "file.png"])
def test_images_that_is_no_folder_of_images(tmp_path: Path, place: str) -> None:
    (tmp_path / "empty").mkdir()
    draw_blobs(tmp_path / "file.png", (30, 30), None)
    with pytest.raises(ConfigError, match=f"images: there is no .*{place}"):
        annotate(job(tmp_path, images=str(tmp_path / place)), [])


def test_drawn_and_fused_data(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    synthetic = {"_target_": "faceattr_lightning.data.synthetic.Synthetic", "cache_dir": str(cache)}
    with pytest.raises(ConfigError, match="'synthetic' are drawn and have their landmarks already"):
        annotate(job(tmp_path, data=synthetic), [])
    assert not cache.exists()
    fused = {"_target_": "faceattr_lightning.data.fused.Fused", "sets": ["one"], "members": {"one": synthetic}}
    with pytest.raises(ConfigError, match="'fused' is made of other data sets"):
        annotate(job(tmp_path, data=fused), [])


def test_a_keypoint_model_that_cannot_be_made(tmp_path: Path) -> None:
    draw_blobs(tmp_path / "images" / "1.png", (30, 30), None)
    node = {"_target_": "faceattr_lightning.keypoints.mtcnn.MTCNN", "min_face_size": 1}
    with pytest.raises(ConfigError, match=r"keypoints.min_face_size"):
        annotate(job(tmp_path, images=str(tmp_path / "images"), keypoints=node), [])
    assert not list((tmp_path / "run").iterdir())
