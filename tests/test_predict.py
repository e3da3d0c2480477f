"""A checkpoint on photos: through the program, through `Predictor`, and through ONNX; the same answers each time."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from faceattr_lightning import Predictor
from faceattr_lightning.errors import ConfigError, DataError
from faceattr_lightning.inference.detection import DetectedFace
from faceattr_lightning.inference.photo import PhotoError
from faceattr_lightning.metrics.saved_predictions import SavedPredictions
from faceattr_lightning.processes import quote
from faceattr_lightning.tasks.run_folder import read_status, write_status
from tests.runs import SMALL, SMALL_DMM, rows, run, run_dirs, run_here

TOLERANCE = 1e-4
"""Of a probability, between ways of asking the same model: rounding in another order."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path) -> Path:
    run_dir = tmp_path_factory.mktemp("outputs") / "train" / "run"
    with pytest.MonkeyPatch.context() as monkeypatch:
        given = [*SMALL, *SMALL_DMM, "trainer.max_epochs=1", "callbacks.progress=null", "trainer.precision=32-true"]
        run_here(*given, data=tiny_data, run_dir=run_dir, monkeypatch=monkeypatch)
    return run_dir


@pytest.fixture(scope="module")
def checkpoint(trained: Path) -> Path:
    return trained / "checkpoints" / "best.ckpt"


class Corners:
    """A detector that takes the quarters of a photo for faces, the first of them the surest."""

    def __init__(self, faces: int = 2, min_score: float = 0.0) -> None:
        self.faces = faces

    def __call__(self, image: np.ndarray[Any, np.dtype[np.uint8]]) -> list[DetectedFace]:
        height, width = image.shape[:2]
        found = []
        for number in range(self.faces):
            left, top = (width // 2) * (number % 2), (height // 2) * (number // 2)
            points = np.array([[0.35, 0.4], [0.65, 0.4], [0.5, 0.6], [0.38, 0.75], [0.62, 0.75]])
            landmarks = points * [width / 2, height / 2] + [left, top]
            box = np.array([left, top, left + width / 2, top + height / 2], np.float32)
            found.append(DetectedFace(box, 0.99 - 0.1 * number, landmarks.astype(np.float32)))
        return found


def test_aligned_images_are_answered_as_in_the_test(trained: Path, tiny_data: Path, tmp_path: Path) -> None:
    """Whole photos through the program, against the predictions that ``task=train`` left of the same images."""
    saved = SavedPredictions.read(trained / "report" / "predictions.npz")
    images = tmp_path / "a folder, with = and 'quotes'"
    images.mkdir()
    for file in saved.files:
        shutil.copy(tiny_data / "celeba/img_align_celeba" / file, images / file)
    (images / "text.jpg").write_text("no image")
    (images / "empty.png").touch()
    ckpt = f"ckpt_path={quote(str(trained / 'checkpoints/best.ckpt'))}"
    said = run(
        "task=predict", "task.detect=false", f"images={quote(str(images))}", ckpt, data=tiny_data, output=tmp_path
    )
    assert "not readable: 2" in said.stdout and "text.jpg: this is not an image" in said.stdout
    (run_dir,) = run_dirs(tmp_path, "predict")
    table = {Path(row["file"]).name: row for row in rows(run_dir / "predictions.csv")}
    assert set(table) == {*saved.files, "text.jpg", "empty.png"} and table["empty.png"]["face"] == ""
    for index, file in enumerate(saved.files):
        row = table[file]
        for column, name in enumerate(saved.attribute_names):
            probability = float(saved.predictions.probabilities[index, column])
            # To a grey level of the resized image, which PIL and torch round differently.
            assert float(row[f"{name}_probability"]) == pytest.approx(probability, abs=0.02), (file, name)
    page = (run_dir / "gallery.html").read_text()
    assert page.count("<figure") == len(saved.files) and "no image" not in page and "http" not in page.split("<body")[1]


def test_a_second_call_goes_on_where_the_first_stopped(
    checkpoint: Path, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = sorted((tiny_data / "celeba/img_align_celeba").iterdir())[:12]
    photos = tmp_path / "photos"
    photos.mkdir()
    for path in images:
        shutil.copy(path, photos)
    given = ["task=predict", f"images={quote(str(photos))}", f"ckpt_path={quote(str(checkpoint))}"]
    given += ["task.detector._target_=tests.test_predict.Corners"]
    given += ["task.batch_size=4"]
    run_here(*given, data=tiny_data, run_dir=tmp_path / "predict/run", monkeypatch=monkeypatch)
    run_dir = tmp_path / "predict/run"
    whole = rows(run_dir / "predictions.csv")
    assert len(whole) == 24 and len(list((run_dir / "pictures").iterdir())) == 12

    # Killed while it wrote the sixth line.
    lines = (run_dir / "photos.jsonl").read_text().splitlines(keepends=True)
    (run_dir / "photos.jsonl").write_text("".join(lines[:6]) + lines[6][:50])
    (run_dir / "predictions.csv").unlink()
    status = read_status(run_dir)
    assert status is not None
    write_status(replace(status, state="running"), run_dir)
    for path in images[:5]:
        (photos / path.name).write_bytes(b"not looked at again")
    run_here(*given, data=tiny_data, run_dir=run_dir, monkeypatch=monkeypatch)
    # Not to the last digit: the network has seen the faces in other batches.
    for now, before in zip(rows(run_dir / "predictions.csv"), whole, strict=True):
        assert now["file"] == before["file"] and now["face"] == before["face"] and now["x1"] == before["x1"]
        for key in (key for key in before if key.endswith("_probability")):
            assert float(now[key]) == pytest.approx(float(before[key]), abs=TOLERANCE)


def test_names_of_any_kind(checkpoint: Path, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["two\nlines.jpg", "'quoted', \"twice\".jpg", "лицо.jpg", "<b>.jpg", os.fsdecode(b"no text \xe9.jpg")]
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in names:
        Image.new("RGB", (200, 240)).save(photos / name)
    given = ["task=predict", f"images={quote(str(photos))}", f"ckpt_path={quote(str(checkpoint))}"]
    given += ["task.detector._target_=tests.test_predict.Corners"]
    run_here(*given, data=tiny_data, run_dir=tmp_path / "run", monkeypatch=monkeypatch)
    found = {row["file"].removeprefix(f"{photos}/") for row in rows(tmp_path / "run" / "predictions.csv")}
    assert found == {*names[:-1], "no text \\udce9.jpg"}
    page = (tmp_path / "run" / "gallery.html").read_text()
    assert "лицо.jpg" in page and "&lt;b&gt;.jpg" in page and "no text" in page


@pytest.mark.parametrize("format", ["json", "parquet"])
def test_other_formats(
    format: str, checkpoint: Path, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    # The first has no face, so that what a column holds can't be told from it.
    (photos / "0.jpg").write_text("no image")
    Image.new("RGB", (200, 240), (120, 90, 60)).save(photos / "1.png")
    given = [
        "task=predict",
        f"images={quote(str(photos))}",
        f"ckpt_path={quote(str(checkpoint))}",
        f"task.format={format}",
    ]
    given += ["task.detector._target_=tests.test_predict.Corners"]
    run_here(*given, data=tiny_data, run_dir=tmp_path / "run", monkeypatch=monkeypatch)
    path = tmp_path / "run" / f"predictions.{format}"
    if format == "json":
        found = json.loads(path.read_text())
    else:
        from pyarrow import parquet

        found = parquet.read_table(path).to_pylist()
    assert [row["face"] for row in found] == [None, 0, 1] and "not an image" in found[0]["problem"]
    assert found[1]["Smiling"] in (0, 1) and 0 <= found[1]["Smiling_probability"] <= 1
    assert found[2]["x1"] == 100 and found[2]["score"] == pytest.approx(0.89)


def test_every_way_gives_the_same_answers(checkpoint: Path, tiny_data: Path, tmp_path: Path) -> None:
    """The checkpoint and its ONNX file, of one photo, of several at once, and of an array."""
    run("task=export", f"ckpt_path={quote(str(checkpoint))}", "task.check=false", data=tiny_data, output=tmp_path)
    (exported,) = run_dirs(tmp_path, "export")[0].glob("*.onnx")
    photo = Image.open(sorted((tiny_data / "celeba/img_align_celeba").iterdir())[0]).convert("RGB").resize((900, 1100))
    photo.save(tmp_path / "photo.png")
    eager, onnx = (Predictor(path, detector=Corners(4)) for path in (checkpoint, exported))
    one = eager(tmp_path / "photo.png")
    assert [face.number for face in one.faces] == [0, 1, 2, 3] and one.size == (1100, 900)
    several = list(eager.predict([photo, np.asarray(photo), tmp_path / "gone.png", photo], batch_size=3))
    assert [len(found.faces) for found in several] == [4, 4, 0, 4] and "missing" in several[2].error
    for other in (onnx(photo), several[0], several[1], several[3]):
        for face, expected in zip(other.faces, one.faces, strict=True):
            for name, answer in expected.attributes.items():
                assert face[name].probability == pytest.approx(answer.probability, abs=TOLERANCE)
                assert face[name].present == (
                    face[name].probability >= eager.thresholds[list(face.attributes).index(name)]
                )


def test_thresholds_of_ones_own(checkpoint: Path) -> None:
    photo = np.full((300, 300, 3), 128, np.uint8)
    certain = Predictor(checkpoint, detector=Corners(1), thresholds={"Smiling": 0.0, "Bald": 1.0})(photo).faces[0]
    assert certain["Smiling"].present and not certain["Bald"].present
    with pytest.raises(
        ConfigError, match=r"thresholds\.Smilling: the model has no such attribute\. Did you mean 'Smiling'"
    ):
        Predictor(checkpoint, thresholds={"Smilling": 0.5})
    with pytest.raises(ConfigError, match=r"thresholds\.Bald: expected a number in \[0, 1\], found 2"):
        Predictor(checkpoint, thresholds={"Bald": 2})


def test_bad_input(checkpoint: Path, tmp_path: Path) -> None:
    predictor = Predictor(checkpoint, detect=False)
    with pytest.raises(
        PhotoError, match="expected an aligned image of 178 x 218 pixels, as in training, found 20 x 30"
    ):
        predictor(np.zeros((30, 20, 3), np.uint8))
    with pytest.raises(PhotoError, match=r"gone\.jpg: the file is missing"):
        predictor("gone.jpg")
    with pytest.raises(ConfigError, match="model: there is no file"):
        Predictor(tmp_path / "gone.ckpt")
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(DataError, match="onnxruntime can't open it"):
        Predictor(tmp_path / "text.onnx")
    with pytest.raises(ConfigError, match="device: torch has no 'tpu' here"):
        Predictor(checkpoint, device="tpu")


def test_real_photos(checkpoint: Path, real_data: Path) -> None:
    """MTCNN and the alignment on photos of LFW: a face in each, upright where the template has it."""
    predictor = Predictor(checkpoint)
    found = list(predictor.predict(sorted((real_data / "lfwa/lfw/George_W_Bush").iterdir())[:8]))
    assert all(photo.faces and not photo.error for photo in found)
    assert all(face.image.shape == (64, 64, 3) for photo in found for face in photo.faces)
