"""The image grid: faces as JPEG thumbnails inside the page, each with the mistakes made on it."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from faceattr_lightning.report.charts import decimal

_MOST_MISTAKES = 4


@dataclass(frozen=True)
class GridImage:
    """One face in the grid.

    Args:
        image: (H, W, 3) uint8, RGB.
        caption: what the face is known by: a file name or a row of the data set.
        wrong: (attribute, probability, label) of each mistake, most confident first.
        correct: how many attributes were right.
        labelled: how many attributes have a label.
        note: a further remark, such as ``"Bald 0.51"`` for an uncertain face; may be empty.
    """

    image: NDArray[np.uint8]
    caption: str
    wrong: list[tuple[str, float, int]]
    correct: int
    labelled: int
    note: str = ""


def thumbnail(image: NDArray[np.uint8], side: int = 176, quality: int = 82) -> tuple[str, int, int]:
    """Return an (H, W, 3) image as a JPEG data URI of at most ``side`` pixels a side, with its width and height."""
    picture = Image.fromarray(np.ascontiguousarray(image))
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, "JPEG", quality=quality, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}", picture.width, picture.height


def face(image: GridImage) -> str:
    """Return the HTML of one face."""
    uri, width, height = thumbnail(image.image)
    mistakes = "".join(
        f'<li class="{"claimed" if label == 0 else "missed"}"><span title="{escape(name)}">{escape(name)}</span> '
        f"{decimal(probability)}</li>"
        for name, probability, label in image.wrong[:_MOST_MISTAKES]
    )
    rest = image.wrong[_MOST_MISTAKES:]
    if rest:
        names = escape(", ".join(f"{name} {decimal(probability)}" for name, probability, _ in rest))
        mistakes += f'<li class="more" title="{names}">and {len(rest)} more</li>'
    return (
        f'<figure class="face"><img src="{uri}" width="{width}" height="{height}" alt="{escape(image.caption)}" '
        f'loading="lazy" decoding="async"><figcaption><b title="{escape(image.caption)}">{escape(image.caption)}</b>'
        f"<span>{image.correct} of {image.labelled} right</span>"
        + (f'<span class="note">{escape(image.note)}</span>' if image.note else "")
        + (f"<ul>{mistakes}</ul>" if mistakes else "")
        + "</figcaption></figure>"
    )


def grid(title: str, images: Sequence[GridImage]) -> str:
    """Return one titled row of faces, which wraps on narrow screens."""
    faces = "".join(map(face, images)) or '<p class="note">No face to show.</p>'
    return f'<h3>{escape(title)}</h3><div class="faces">{faces}</div>'


_TINT = np.array([255, 64, 32], dtype=np.float32)


@dataclass(frozen=True)
class MaskImage:
    """A face and where each group of attributes looks.

    Args:
        image: (H, W, 3) uint8, RGB.
        caption: what the face is known by.
        masks: group to (H, W) uint8, 255 where it looks.
    """

    image: NDArray[np.uint8]
    caption: str
    masks: dict[str, NDArray[np.uint8]]


def mask_row(group: str, images: Sequence[MaskImage]) -> str:
    """Return a titled row of faces, on which a group's mask is red and the rest is darker."""
    figures = []
    for one in images:
        share = one.masks[group][:, :, None].astype(np.float32) / 255
        grey = one.image.mean(axis=2, keepdims=True)
        shown = share * (0.65 * one.image + 0.35 * _TINT) + (1 - share) * 0.6 * grey
        uri, width, height = thumbnail(shown.astype(np.uint8), side=96)
        label = escape(f"{one.caption}, {group}")
        figures.append(
            f'<figure class="face"><img src="{uri}" width="{width}" height="{height}" alt="{label}" title="{label}" '
            'loading="lazy" decoding="async"></figure>'
        )
    return f'<h3>{escape(group.replace("_", " "))}</h3><div class="faces">{"".join(figures)}</div>'
