"""``task=predict``: a checkpoint, or an ONNX file, on your own photos."""

from __future__ import annotations

import csv
import importlib.util
import itertools
import json
import logging
import os
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from PIL import Image, ImageDraw
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from faceattr_lightning.errors import ConfigError
from faceattr_lightning.export.folder import WEIGHTS
from faceattr_lightning.files import sha256, whole_file, write_text
from faceattr_lightning.inference.detection import DetectedFace
from faceattr_lightning.inference.photo import find_photos
from faceattr_lightning.inference.predictor import Found, Photo, Predictor
from faceattr_lightning.instantiate import build
from faceattr_lightning.landmarks import LANDMARK_COLUMNS
from faceattr_lightning.report.gallery import render_gallery
from faceattr_lightning.report.grid import thumbnail
from faceattr_lightning.strategy import Process
from faceattr_lightning.tasks.checkpoint import newest_checkpoint

log = logging.getLogger(__name__)

Row = dict[str, Any]

JOURNAL = "photos.jsonl"
"""What is known so far, a line for each photo; the first line says of which model, and asked in what way."""
PICTURES = "pictures"
"""The folder of the marked photos."""

_PICTURE_SIDE = 1600
_ROWS_AT_ONCE = 1000
_LISTED = 10
_NO_FACE = "no face was found"
_BOX = ("x1", "y1", "x2", "y2")
_COLUMNS = ("file", "face", "problem", "width", "height", *_BOX, "score", *LANDMARK_COLUMNS[5])
"""Of a table of predictions, before the model's own."""


def predict(
    config: dict[str, Any],
    ranks: list[Process],
    detect: bool = True,
    detector: dict[str, Any] | None = None,
    format: Literal["csv", "json", "parquet"] = "csv",
    batch_size: int = 32,
    thresholds: dict[str, float] | None = None,
    most_pixels: int = 100_000_000,
    pictures: bool = True,
    gallery: int = 200,
    device: str = "cpu",
) -> None:
    """Find the faces of the photos ``images``, and write what the model of ``ckpt_path`` says of each.

    Into the run's folder go ``predictions.csv`` (or .json, .parquet) with a row for each face, and for each photo
    without one, with the reason; ``pictures/``, the photos with their faces marked; and ``gallery.html``. The command
    of an interrupted run goes on in its folder. Memory grows with the names of the photos alone.

    Args:
        config: the job's configuration as plain data; ``images`` is a file, a folder or a glob.
        ranks: not used.
        detect: ``False`` for images that are as the training images were, see `Predictor`.
        detector: node of a `FaceDetector`.
        format: of the predictions.
        batch_size: faces that the network sees at once, at least 1.
        thresholds: attribute name to threshold, in place of the fitted one.
        most_pixels: of the largest photo to decode.
        pictures: write the photos with their faces marked.
        gallery: faces that the gallery shows at most; 0 for no gallery.
        device: of torch.

    Raises:
        ConfigError: no images are given, or the model or detector can't be made.
        PhotoError: there is no photo among the images.
    """
    if config["images"] is None:
        raise ConfigError(["images: task=predict needs a photo, a folder or a pattern, such as images=photos."])
    if format == "parquet" and importlib.util.find_spec("pyarrow") is None:
        raise ConfigError(["task.format: parquet needs pyarrow; run: pip install 'faceattr-lightning[parquet]'."])
    found = find_photos(config["images"])
    model = newest_checkpoint(config["ckpt_path"] or "best", config["paths"]["output_dir"])
    log.info("Model: %s", model)
    predictor = Predictor(
        model,
        build(detector) if detector and detect else None,
        detect=detect,
        thresholds=thresholds,
        device=device,
        most_pixels=most_pixels,
    )
    if detect and predictor.facts.any_size and not predictor.facts.template:
        log.warning(
            "The model's own images had no landmarks, so that faces are cut out by their boxes, which may be another "
            "frame than it knows. Photos that are framed as those are asked about with task.detect=false."
        )
    run_dir = Path(config["paths"]["run_dir"])
    asked = {"images": config["images"], "detect": detect, "detector": detector, "thresholds": thresholds}
    done = open_journal(run_dir / JOURNAL, model, {**asked, "most_pixels": most_pixels})
    if done:
        log.info("%d photos were done before.", len(done))
    # Whose images stand in the journal, for the gallery.
    faces = sum(done.values())
    photos = [str(path) for path in found if not _is_marked(path)]
    left = [photo for photo in photos if photo not in done]
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}")
    with (
        (run_dir / JOURNAL).open("a", encoding="utf-8") as journal,
        Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=Console()) as progress,
        # PIL's, of damaged EXIF, which would stand in the middle of the bar.
        warnings.catch_warnings(action="ignore", category=UserWarning),
    ):
        shown = progress.add_task("Photos", total=len(photos), completed=len(done), rate="")
        # The photo's own name may be too long, or stand in several folders.
        marked = {source: f"{number:06d}.jpg" for number, source in enumerate(left, start=len(done))}

        def mark(photo: Found) -> None:
            if photo.faces:
                _mark(photo, run_dir / PICTURES / marked[str(photo.source)])

        answers = predictor.predict(left, batch_size, mark if pictures else None)
        for photo, source in zip(answers, left, strict=True):
            picture = marked[source] if pictures and detect and photo.faces else ""
            record = _record(source, photo, picture, images=max(0, gallery - faces))
            # After its picture: what stands here is whole.
            # In ASCII, since a name may hold bytes that are no text.
            journal.write(json.dumps(record) + "\n")
            journal.flush()
            faces += len(photo.faces)
            speed = progress.tasks[shown].finished_speed or progress.tasks[shown].speed or 0
            progress.update(shown, advance=1, rate=f"{speed:.1f}/s")
    path = run_dir / f"predictions.{format}"
    names, ages = predictor.facts.attribute_names, predictor.facts.age_groups
    rows = (row for record in _records(run_dir / JOURNAL) for row in face_rows(record, names, ages))
    _write(rows, path, format, list(decision_columns(names).values()))
    _sum_up(run_dir / JOURNAL)
    if gallery:
        page = render_gallery(model, _records(run_dir / JOURNAL), names, gallery)
        write_text(page, run_dir / "gallery.html")
        log.info("Gallery: %s", run_dir / "gallery.html")
    log.info("Predictions: %s", path)


def _is_marked(path: Path) -> bool:
    """Return whether a file was left by a run, this one or an earlier one, whose folder lies among the photos."""
    return path.parent.name == PICTURES and (path.parent.parent / JOURNAL).exists()


def open_journal(path: Path, model: Path, asked: Mapping[str, Any]) -> dict[str, int]:
    """Return the photos that stand in a journal, with the number of faces of each; begin one where there is none.

    Args:
        path: of the journal.
        model: whose answers it holds.
        asked: by key what else the answers depend on, plain data.

    Raises:
        ConfigError: the answers are those of other weights or another question, or it is damaged.
    """
    weights = model / WEIGHTS if model.is_dir() else model
    head = {"model": str(model), "sha256": sha256(weights), **asked}
    done: dict[str, int] = {}
    number = end = 0
    try:
        with path.open("rb") as file:
            # One by one: with the faces of the gallery in them, the lines are long.
            for number, line in enumerate(file, start=1):
                # One that a killed process has not finished.
                if not line.endswith(b"\n"):
                    break
                record = json.loads(line)
                if number == 1 and record != head:
                    other = ", ".join(key for key in head if record.get(key) != head[key]) or "keys"
                    raise ConfigError(
                        [f"hydra.run.dir: {path} was begun with another {other}: {record}. Choose another folder."]
                    )
                if number > 1:
                    done[record["file"]] = len(record["faces"])
                end += len(line)
    except FileNotFoundError:
        pass
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            [
                f"hydra.run.dir: {path} is damaged in line {number}. Cut it off there to go on with what stands before "
                "it, or choose another folder."
            ]
        ) from error
    if not end:
        write_text(json.dumps(head) + "\n", path)
    else:
        os.truncate(path, end)
    return done


def _records(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8") as file:
        next(file)
        for line in file:
            yield json.loads(line)


def _record(source: str, photo: Photo, picture: str, images: int) -> Row:
    """Return a line of the journal, with the images of the first so many faces."""
    faces = []
    for face in photo.faces:
        record: Row = {
            "probabilities": [round(answer.probability, 6) for answer in face.attributes.values()],
            "present": [answer.present for answer in face.attributes.values()],
        }
        if face.age_group:
            record["age_group"] = face.age_group
        if face.detected is not None:
            record["score"] = round(face.detected.score, 4)
            record["box"] = [round(float(edge), 1) for edge in face.detected.box]
            record["landmarks"] = [[round(float(value), 1) for value in point] for point in face.detected.landmarks]
        if face.number < images:
            record["image"] = thumbnail(face.image, side=112)
        faces.append(record)
    problem = photo.error or ("" if photo.faces else _NO_FACE)
    return {"file": source, "size": photo.size, "picture": picture, "problem": problem, "faces": faces}


def face_rows(record: Row, attribute_names: list[str], age_groups: Sequence[str] = ()) -> Iterator[Row]:
    """Yield the rows of a photo in the table: one for each face, or one that says why there is none.

    Args:
        record: a line of the journal.
        attribute_names: of the model.
        age_groups: of the model.
    """
    height, width = record["size"] or (None, None)
    decisions = decision_columns(attribute_names)
    empty: Row = dict.fromkeys(_COLUMNS)
    empty |= {"file": legible(record["file"]), "problem": record["problem"], "width": width, "height": height}
    empty |= dict.fromkeys(column for name in attribute_names for column in (decisions[name], f"{name}_probability"))
    empty |= dict.fromkeys(f"age_{name}_probability" for name in age_groups)
    if not record["faces"]:
        yield empty
    for number, face in enumerate(record["faces"]):
        row = {**empty, "face": number}
        if "box" in face:
            row |= dict(zip(_BOX, face["box"], strict=True))
            row["score"] = face["score"]
            row |= dict(zip(LANDMARK_COLUMNS[5], itertools.chain.from_iterable(face["landmarks"]), strict=True))
        for name, probability, present in zip(attribute_names, face["probabilities"], face["present"], strict=True):
            row |= {decisions[name]: int(present), f"{name}_probability": probability}
        row |= {f"age_{name}_probability": share for name, share in face.get("age_group", {}).items()}
        yield row


def decision_columns(attribute_names: Sequence[str]) -> dict[str, str]:
    """Return the column of each attribute's decision: its name, or ``<name>_present`` where the table has that one."""
    return {name: f"{name}_present" if name in _COLUMNS else name for name in attribute_names}


def legible(name: str) -> str:
    """Return a file's name as it can be written: bytes that are no text are escaped."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def _write(rows: Iterator[Row], path: Path, format: str, decisions: Sequence[str]) -> None:
    with whole_file(path) as partial:
        if format == "parquet":
            _write_parquet(rows, partial, decisions)
            return
        with partial.open("w", encoding="utf-8", newline="") as file:
            if format == "csv":
                first = next(rows)
                writer = csv.DictWriter(file, list(first), lineterminator="\n")
                writer.writeheader()
                writer.writerows(itertools.chain([first], rows))
            else:
                lines = (json.dumps(row, ensure_ascii=False) for row in rows)
                file.write(f"[\n{next(lines)}")
                file.writelines(f",\n{line}" for line in lines)
                file.write("\n]\n")


def _write_parquet(rows: Iterator[Row], path: Path, decisions: Sequence[str]) -> None:
    import pyarrow
    from pyarrow import parquet

    first = next(rows)
    # Of a first photo without a face nothing could be told.
    kinds = {"file": pyarrow.string(), "problem": pyarrow.string(), "face": pyarrow.int32()}
    kinds |= dict.fromkeys(("width", "height"), pyarrow.int32())
    kinds |= dict.fromkeys(decisions, pyarrow.int8())
    schema = pyarrow.schema([(name, kinds.get(name, pyarrow.float64())) for name in first])
    everything = itertools.chain([first], rows)
    with parquet.ParquetWriter(path, schema) as writer:
        while part := list(itertools.islice(everything, _ROWS_AT_ONCE)):
            writer.write_table(pyarrow.Table.from_pylist(part, schema))


def _sum_up(journal: Path) -> None:
    photos = faces = 0
    problems: Counter[str] = Counter()
    for record in _records(journal):
        photos, faces = photos + 1, faces + len(record["faces"])
        problems[_NO_FACE if record["problem"] == _NO_FACE else "could not be read" if record["problem"] else ""] += 1
        if record["problem"] not in ("", _NO_FACE) and problems["could not be read"] <= _LISTED:
            log.warning("%s", record["problem"])
    log.info(
        "%d photos, %d faces; without a face: %d; not readable: %d.",
        photos,
        faces,
        problems[_NO_FACE],
        problems["could not be read"],
    )


def _mark(photo: Found, path: Path) -> None:
    """Write a photo with its faces marked."""
    image = Image.fromarray(photo.image)
    scale = min(1.0, _PICTURE_SIDE / max(image.size))
    if scale < 1:
        image = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
    draw = ImageDraw.Draw(image)
    line = max(2, round(max(image.size) / 400))
    for number, face in enumerate(photo.faces):
        _draw(draw, number, face, scale, line)
    path.parent.mkdir(exist_ok=True)
    image.save(path, quality=88)


def _draw(draw: ImageDraw.ImageDraw, number: int, face: DetectedFace, scale: float, line: int) -> None:
    x1, y1, x2, y2 = (float(edge) * scale for edge in face.box)
    draw.rectangle((x1, y1, x2, y2), outline=(255, 214, 10), width=line)
    for x, y in face.landmarks * scale:
        draw.ellipse((x - line, y - line, x + line, y + line), fill=(64, 220, 255))
    draw.text((x1 + 2 * line, y1 + line), str(number), fill=(255, 214, 10), font_size=12 + 4 * line)
