"""A checkpoint on photos: through the program, through `Predictor`, and through ONNX; the same answers each time."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from faceattr_lightning import Predictor
from faceattr_lightning.checkpoint import CHECKPOINT_KEY
from faceattr_lightning.errors import ConfigError, DataError, FaceAttrError
from faceattr_lightning.export.onnx import export_onnx
from faceattr_lightning.inference.detection import DetectedFace
from faceattr_lightning.inference.photo import PhotoError, shown
from faceattr_lightning.metrics.saved_predictions import SavedPredictions
from faceattr_lightning.networks.load import load_network
from faceattr_lightning.processes import quote
from faceattr_lightning.tasks.predict import face_rows, open_journal
from faceattr_lightning.tasks.run_folder import read_status, write_status
from tests.data.writers import smooth_image
from tests.inference.test_photo import BAD, DAMAGED_EXIF
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


class Tiles:
    """A detector that takes each 20 x 20 pixels of a photo for a face."""

    def __init__(self, min_score: float = 0.0) -> None:
        pass

    def __call__(self, image: np.ndarray[Any, np.dtype[np.uint8]]) -> list[DetectedFace]:
        corners = [(x, y) for y in range(0, image.shape[0] - 19, 20) for x in range(0, image.shape[1] - 19, 20)]
        points = 20 * np.array([[0.35, 0.4], [0.65, 0.4], [0.5, 0.6], [0.38, 0.75], [0.62, 0.75]], np.float32)
        return [
            DetectedFace(np.array([x, y, x + 20, y + 20], np.float32), 0.9, points + np.float32([x, y]))
            for x, y in corners
        ]


class Removing(Corners):
    """Removes a file while it looks at the first photo.

    Args:
        file: to remove.
    """

    def __init__(self, file: str, min_score: float = 0.0) -> None:
        super().__init__(1)
        self.file = Path(file)

    def __call__(self, image: np.ndarray[Any, np.dtype[np.uint8]]) -> list[DetectedFace]:
        self.file.unlink(missing_ok=True)
        return super().__call__(image)


class Titles(HTMLParser):
    """The files that stand under the faces of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str | None] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "b":
            self.found += [value for name, value in attrs if name == "title"]


def predict(model: Path, images: Path | str, *more: str, detector: str = "Corners") -> list[str]:
    """Return the overrides of a prediction."""
    given = ["task=predict", f"images={quote(str(images))}", f"ckpt_path={quote(str(model))}"]
    return [*given, f"task.detector._target_=tests.test_predict.{detector}", *more]


def table(run_dir: Path) -> list[dict[str, Any]]:
    """Return the predictions, of whatever format."""
    (path,) = run_dir.glob("predictions.*")
    if path.suffix == ".csv":
        return list(rows(path))
    if path.suffix == ".json":
        return list(json.loads(path.read_text()))
    from pyarrow import parquet

    return list(parquet.read_table(path).to_pylist())


@pytest.mark.slow
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
    # What an earlier run has left.
    left = photos / "predict" / "earlier"
    (left / "pictures").mkdir(parents=True)
    (left / "photos.jsonl").touch()
    shutil.copy(images[0], left / "pictures" / "000000.jpg")
    for path in images:
        shutil.copy(path, photos)
    given = predict(checkpoint, photos, "task.batch_size=4", "task.gallery=7")
    # Among the photos, where its own pictures must not become some of them.
    run_dir = photos / "predict" / "run"
    run_here(*given, data=tiny_data, run_dir=run_dir, monkeypatch=monkeypatch)
    whole = rows(run_dir / "predictions.csv")
    assert len(whole) == 24 and len(list((run_dir / "pictures").iterdir())) == 12
    # The journal holds the images that the gallery shows, and no others.
    assert (run_dir / "photos.jsonl").read_text().count("data:image") == 7

    # Killed while it wrote the sixth line.
    lines = (run_dir / "photos.jsonl").read_text().splitlines(keepends=True)
    (run_dir / "photos.jsonl").write_text("".join(lines[:6]) + lines[6][:50])
    (run_dir / "predictions.csv").unlink()
    status = read_status(run_dir)
    assert status is not None
    write_status(replace(status, state="running"), run_dir)
    for path in images[:5]:
        (photos / path.name).write_bytes(b"not looked at again")
    for other, key in (("task.thresholds={Smiling:0.9}", "thresholds"), ("task.detect=false", "detect")):
        with pytest.raises(ConfigError, match=rf"photos\.jsonl was begun with another {key}:"):
            run_here(*given, other, data=tiny_data, run_dir=run_dir, monkeypatch=monkeypatch)
    run_here(*given, data=tiny_data, run_dir=run_dir, monkeypatch=monkeypatch)
    # Not to the last digit: the network has seen the faces in other batches.
    assert (run_dir / "photos.jsonl").read_text().count("data:image") == 7
    assert (run_dir / "gallery.html").read_text().count("<figure") == 7
    for now, before in zip(rows(run_dir / "predictions.csv"), whole, strict=True):
        assert now["file"] == before["file"] and now["face"] == before["face"] and now["x1"] == before["x1"]
        for key in (key for key in before if key.endswith("_probability")):
            assert float(now[key]) == pytest.approx(float(before[key]), abs=TOLERANCE)


NAMES = [
    *(
        "two\nlines.jpg",
        "'quoted', \"twice\".jpg",
        " .jpg",
        "a, b;c\td.jpg",
        "лицо.jpg",
        "顔.jpg",
        "<b>.jpg",
        "&amp;.jpg",
    ),
    # The same to the eye, one as two characters; a right-to-left override; bytes that are no text.
    *("\u00e9.jpg", "e\u0301.jpg", "\u202egpj.exe.jpg", os.fsdecode(b"no text \xe9.jpg")),
]


@pytest.mark.parametrize("format", ["csv", "json", "parquet"])
def test_names_of_any_kind(
    format: str, checkpoint: Path, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in NAMES:
        Image.new("RGB", (200, 240)).save(photos / name)
        # Of one that can't be read the name stands in what is said of it, too.
        (photos / f"bad {name}").touch()
    given = predict(checkpoint, photos, f"task.format={format}")
    run_here(*given, data=tiny_data, run_dir=tmp_path / "run", monkeypatch=monkeypatch)
    found = table(tmp_path / "run")
    expected = [*NAMES[:-1], "no text \\udce9.jpg"]
    names = {row["file"].removeprefix(f"{photos}/") for row in found}
    assert names == {*expected, *(f"bad {name}" for name in expected)} and len(found) == 3 * len(NAMES)
    assert all(row["problem"].isprintable() for row in found if row["problem"])
    page = (tmp_path / "run" / "gallery.html").read_text()
    assert "лицо.jpg" in page and "&lt;b&gt;.jpg" in page and "no text" in page and "&amp;amp;.jpg" in page
    assert "<b>.jpg" not in page and "\u202e" not in page
    titles = Titles()
    titles.feed(page)
    # Parsed, the names are themselves again: none has ended its attribute or become a tag.
    assert sorted(titles.found) == sorted(shown(photos / name) for name in NAMES for _ in range(2))


@pytest.mark.parametrize("format", ["json", "parquet"])
def test_other_formats(
    format: str, checkpoint: Path, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    # The first has no face, so that what a column holds can't be told from it.
    (photos / "0.jpg").write_text("no image")
    Image.new("RGB", (200, 240), (120, 90, 60)).save(photos / "1.png")
    given = predict(checkpoint, photos, f"task.format={format}")
    run_here(*given, data=tiny_data, run_dir=tmp_path / "run", monkeypatch=monkeypatch)
    found = table(tmp_path / "run")
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


def test_a_folder_of_bad_files(
    checkpoint: Path, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every way to be bad, in one folder; each is told in its row, and the rest goes on."""
    photos = tmp_path / "photos"
    (photos / "a folder.jpg").mkdir(parents=True)
    for name in ("a folder.jpg/good.jpg", "vanishes.jpg"):
        Image.new("RGB", (200, 240)).save(photos / name)
    expected = {"a folder.jpg/good.jpg": "", "vanishes.jpg": "the file is missing"}
    for number, (kind, (make, problem)) in enumerate(BAD.items()):
        if kind not in ("missing", "in no folder", "folder"):
            (photos / str(number)).mkdir()
            make(photos / str(number) / "photo.jpg")
            expected[f"{number}/photo.jpg"] = problem
    removed = f"+task.detector.file={quote(str(photos / 'vanishes.jpg'))}"
    run_here(
        *predict(checkpoint, photos, removed, detector="Removing"),
        data=tiny_data,
        run_dir=tmp_path / "run",
        monkeypatch=monkeypatch,
    )
    found = {row["file"].removeprefix(f"{photos}/"): row for row in table(tmp_path / "run")}
    assert found.keys() == expected.keys()
    for name, problem in expected.items():
        row = found[name]
        assert problem in row["problem"] and (row["face"] == "") == (name != "a folder.jpg/good.jpg"), row
        assert row["problem"].startswith(str(photos / name)) or not problem


def test_no_face_many_faces_and_tiny_ones(
    checkpoint: Path, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for name, size in (("none", (300, 15)), ("one", (20, 20)), ("many", (200, 160))):
        smooth_image(np.random.default_rng(0), size[::-1]).save(photos / f"{name}.png")
    given = predict(checkpoint, photos, "task.batch_size=7", detector="Tiles")
    run_here(*given, data=tiny_data, run_dir=tmp_path / "run", monkeypatch=monkeypatch)
    found = [(Path(row["file"]).stem, row["face"], row["problem"]) for row in table(tmp_path / "run")]
    many = [("many", str(number), "") for number in range(80)]
    assert found == [*many, ("none", "", "no face was found"), ("one", "0", "")]


def test_damaged_exif_is_not_worth_a_word(
    checkpoint: Path, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    for kind in ("jpeg", "png", "webp"):
        Image.new("RGB", (200, 240)).save(tmp_path / f"photo.{kind}", exif=DAMAGED_EXIF["garbage"])
    run_here(*predict(checkpoint, tmp_path), data=tiny_data, run_dir=tmp_path / "run", monkeypatch=monkeypatch)
    assert {row["problem"] for row in table(tmp_path / "run")} == {""}
    assert not [warning for warning in recwarn if "PIL" in warning.filename]


def test_models_that_are_none(tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told before the first photo is read, and without a traceback."""
    onnx = pytest.importorskip("onnx")
    Image.new("RGB", (200, 240)).save(tmp_path / "photo.png")
    images = onnx.helper.make_tensor_value_info("image", onnx.TensorProto.UINT8, ["batch", 3, 64, 64])
    node = onnx.helper.make_node("Identity", ["image"], ["probabilities"])
    answers = onnx.helper.make_tensor_value_info("probabilities", onnx.TensorProto.UINT8, ["batch", 3, 64, 64])
    other = onnx.helper.make_model(onnx.helper.make_graph([node], "other", [images], [answers]), ir_version=8)
    other.opset_import[0].version = 17
    onnx.save(other, tmp_path / "other.onnx")
    torch.save({"state_dict": {"weight": torch.zeros(3)}, "epoch": 3}, tmp_path / "other.ckpt")
    (tmp_path / "empty.ckpt").touch()
    (tmp_path / "text.onnx").write_text("no model")
    for name, problem in (
        ("other.onnx", "not made by faceattr-lightning"),
        ("other.ckpt", "not made by faceattr-lightning"),
        ("empty.ckpt", "empty.ckpt"),
        ("text.onnx", "onnxruntime can't open it"),
        ("gone.ckpt", "there is no file"),
    ):
        with pytest.raises(FaceAttrError, match=problem):
            run_here(
                *predict(tmp_path / name, tmp_path / "photo.png"),
                data=tiny_data,
                run_dir=tmp_path / name.replace(".", "_"),
                monkeypatch=monkeypatch,
            )
        assert not (tmp_path / name.replace(".", "_") / "photos.jsonl").exists()


def test_a_damaged_journal(checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "photos.jsonl"
    asked = {"images": "photos"}
    assert open_journal(path, checkpoint, asked) == {}
    head = path.read_bytes()
    path.write_bytes(head + b'{"file": "a.jpg", "faces": [{}, {}]}\n' + bytes(100))
    assert open_journal(path, checkpoint, asked) == {"a.jpg": 2}
    for damage in (bytes(100) + b"\n", b"\xff\xfe\n", b"{}\n", b"[1]\n"):
        path.write_bytes(head + damage)
        with pytest.raises(ConfigError, match=r"photos\.jsonl is damaged in line 2"):
            open_journal(path, checkpoint, asked)
    for damage in (b"no journal\n", b"[]\n"):
        path.write_bytes(damage)
        with pytest.raises(ConfigError, match="damaged in line 1"):
            open_journal(path, checkpoint, asked)
    path.write_bytes(head)
    with pytest.raises(ConfigError, match="begun with another model, sha256: "):
        open_journal(path, path, asked)
    with pytest.raises(ConfigError, match="begun with another images: "):
        open_journal(path, checkpoint, {"images": "elsewhere"})


def test_other_weights_at_the_same_place(tmp_path: Path) -> None:
    """Of the same size, as those of a network that was trained again are."""
    path, model = tmp_path / "photos.jsonl", tmp_path / "model.ckpt"
    model.write_bytes(b"weights 1")
    open_journal(path, model, {})
    model.write_bytes(b"weights 2")
    with pytest.raises(ConfigError, match="begun with another sha256: "):
        open_journal(path, model, {})


def test_attributes_that_are_called_like_columns() -> None:
    record = {"file": "a.jpg", "size": [40, 30], "picture": "", "problem": ""}
    face = {"probabilities": [0.9, 0.2, 0.1], "present": [True, False, False], "score": 0.99, "box": [1, 2, 3, 4]}
    face["landmarks"] = [[0, 0]] * 5
    (row,) = face_rows({**record, "faces": [face]}, ["score", "face", "Smiling"])
    assert (row["score"], row["face"], row["Smiling"]) == (0.99, 0, 0)
    assert (row["score_present"], row["face_present"]) == (1, 0)
    assert (row["score_probability"], row["face_probability"]) == (0.9, 0.2)


def test_numbers_are_checked_before_the_model_is_read(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = predict(tmp_path / "gone.ckpt", tmp_path, "task.batch_size=0", "task.most_pixels=0", "task.gallery=-1")
    with pytest.raises(ConfigError) as error:
        run_here(*given, data=tiny_data, run_dir=tmp_path / "run", monkeypatch=monkeypatch)
    for key, least in (("batch_size", 1), ("most_pixels", 1), ("gallery", 0)):
        assert f"task.{key}: expected a number of at least {least}, found" in str(error.value)


def test_a_model_of_drawn_faces_says_so(checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Predictor(checkpoint)
    assert "drawn faces" not in caplog.text
    stored = torch.load(checkpoint, weights_only=True)
    stored[CHECKPOINT_KEY]["config"]["data"]["_target_"] = "faceattr_lightning.data.synthetic.Synthetic"
    model = tmp_path / "model.ckpt"
    torch.save(stored, model)
    export_onnx(load_network(model), tmp_path / "model.onnx")
    for file in (model, tmp_path / "model.onnx"):
        caplog.clear()
        Predictor(file)
        assert f"{file} was trained on drawn faces" in caplog.text


def test_a_model_of_images_of_any_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An image without detection is framed as in training: the answers are those of the test."""
    root = tmp_path / "folder"
    root.mkdir()
    rng = np.random.default_rng(0)
    lines = ["image,split,A,B"]
    for number in range(24):
        size = (int(rng.integers(60, 200)), int(rng.integers(60, 200)))
        smooth_image(rng, size).save(root / f"{number}.png")
        split = ("train", "validation", "test")[number % 3]
        lines.append(f"{number}.png,{split},{number // 3 % 2},{rng.integers(2)}")
    (root / "faces.csv").write_text("\n".join(lines) + "\n")
    given = [*SMALL, "data=folder", f"data.root={root}", "data.frame=[80, 72]", "trainer.max_epochs=1"]
    given += ["callbacks.progress=null", "trainer.precision=32-true"]
    run_here(*given, data=root, run_dir=tmp_path / "run", monkeypatch=monkeypatch)
    saved = SavedPredictions.read(tmp_path / "run" / "report" / "predictions.npz")
    predictor = Predictor(tmp_path / "run" / "checkpoints" / "best.ckpt", detect=False)
    for file, expected in zip(saved.files, saved.predictions.probabilities, strict=True):
        photo = predictor(root / file)
        assert not photo.error
        found = [answer.probability for answer in photo.faces[0].attributes.values()]
        assert found == pytest.approx(expected.tolist(), abs=0.02), file


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
