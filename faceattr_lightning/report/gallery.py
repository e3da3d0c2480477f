"""The page of a prediction: the faces of photos and what a model says of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from faceattr_lightning.inference.photo import shown
from faceattr_lightning.report.charts import decimal
from faceattr_lightning.report.html import page, section

_MOST_ATTRIBUTES = 8


def render_gallery(model: Path, records: Iterable[dict[str, Any]], attribute_names: Sequence[str], most: int) -> str:
    """Return the whole page; it fetches nothing but, on a click, the marked photo beside it.

    Args:
        model: the file that answered.
        records: of the photos, see `faceattr_lightning.tasks.predict`.
        attribute_names: of the model.
        most: faces that are shown.
    """
    figures: list[str] = []
    problems: list[str] = []
    photos = faces = faceless = 0
    for record in records:
        photos += 1
        faces += len(record["faces"])
        if record["problem"]:
            faceless += 1
            if len(problems) < most:
                problems.append(f"<li>{escape(shown(record['file']))}: {escape(record['problem'])}</li>")
        for number, face in enumerate(record["faces"]):
            # Without an image: beyond what an interrupted run was to show.
            if len(figures) < most and "image" in face:
                figures.append(_figure(record, number, face, attribute_names))
    more = f" The first {most:,} of {faces:,}." if faces > len(figures) else ""
    lead = (
        "What the model says is present, the surest first; the number is its probability. Choose a face for its photo."
        f"{more}"
    )
    body = f'<div class="faces">{"".join(figures)}</div>' if figures else "<p>No face.</p>"
    sections = [section("Faces", lead, body)]
    if problems:
        first = f" The first {len(problems):,}." if faceless > len(problems) else ""
        items = "".join(problems)
        sections.append(section("Photos without a face", f"{faceless:,} photos.{first}", f"<ul>{items}</ul>"))
    return page("Predictions", f"{photos:,} photos, {faces:,} faces", {"model": str(model)}, "", sections)


def _figure(record: dict[str, Any], number: int, face: dict[str, Any], attribute_names: Sequence[str]) -> str:
    uri, width, height = face["image"]
    present = sorted(
        (
            (probability, name)
            for name, probability, is_present in zip(
                attribute_names, face["probabilities"], face["present"], strict=True
            )
            if is_present
        ),
        reverse=True,
    )
    answers = "".join(
        f"<li><span>{escape(name)}</span> {decimal(value)}</li>" for value, name in present[:_MOST_ATTRIBUTES]
    )
    if len(present) > _MOST_ATTRIBUTES:
        rest = escape(", ".join(f"{name} {decimal(value)}" for value, name in present[_MOST_ATTRIBUTES:]))
        answers += f'<li class="more" title="{rest}">and {len(present) - _MOST_ATTRIBUTES} more</li>'
    file = escape(shown(record["file"]))
    image = f'<img src="{uri}" width="{width}" height="{height}" alt="{file}, face {number}" loading="lazy">'
    if record["picture"]:
        image = f'<a href="pictures/{record["picture"]}">{image}</a>'
    score = f", {decimal(face['score'])} sure" if "score" in face else ""
    name = escape(shown(Path(record["file"]).name))
    return (
        f'<figure class="face">{image}<figcaption><b title="{file}">{name}</b><span>face {number}{score}</span>'
        f"<ul>{answers}</ul></figcaption></figure>"
    )
