"""The parts of the page that gradio has no component for; as HTML, they lie in no file. No gradio here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

from faceattr_lightning.inference.detection import DetectedFace
from faceattr_lightning.report.charts import decimal
from faceattr_lightning.report.grid import thumbnail

NEAR = 0.1
"""How far below its threshold a probability counts as near it."""

_PHOTO_SIDE = 1280
_FACE_SIDE = 320
_TINT = np.array([255, 64, 32], np.float32)

CSS = """
.lead h1 { margin: 0; font-size: 1.4rem; font-weight: 600 }
.lead p { margin: 0; opacity: .75 }
.message { margin: 0; padding: 8px 12px; border-radius: 8px; background: var(--background-fill-secondary);
  overflow-wrap: anywhere }
.message.bad { border: 1px solid var(--error-border-color); color: var(--error-text-color);
  background: var(--error-background-fill) }
.photo { position: relative }
.photo img, .photo svg { display: block; width: 100%; height: auto }
.photo svg { position: absolute; inset: 0; height: 100% }
.photo rect { fill: none; stroke: #ffd60a; stroke-width: 2px; vector-effect: non-scaling-stroke }
.photo text { fill: #ffd60a; font-weight: 700; paint-order: stroke; stroke: #000; stroke-width: .15em }
.answers h4, .answers summary { margin: 14px 0 6px; font-size: 1rem; font-weight: 600 }
.answers summary { cursor: pointer }
.answers ul { list-style: none; margin: 0; padding: 0 }
.answers li { display: grid; grid-template-columns: minmax(0, 1fr) minmax(60px, 1fr) 3.2em; gap: 10px;
  align-items: center; font-variant-numeric: tabular-nums }
.answers li span:first-child { overflow: hidden; text-overflow: ellipsis; white-space: nowrap }
.answers .bar { position: relative; height: 8px; border-radius: 4px; background: var(--border-color-primary) }
.answers .bar i { position: absolute; inset: 0 auto 0 0; border-radius: 4px; background: var(--color-accent) }
.answers .bar b { position: absolute; top: -3px; bottom: -3px; width: 2px; background: var(--body-text-color) }
.answers .soft, .face figcaption { margin: 0; font-size: .9em; opacity: .75 }
.answers data { text-align: right }
.face { margin: 0 }
#thresholds .form { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 260px), 1fr));
  background: none }
.face img { display: block; width: min(100%, 320px); height: auto; border-radius: 8px }
"""


def heading(title: str, lead: str) -> str:
    """Return the head of the page, of plain texts."""
    return f'<div class="lead"><h1>{escape(title)}</h1><p>{escape(lead)}</p></div>'


def message(text: str, bad: bool = False) -> str:
    """Return a line of text."""
    kind = 'class="message bad" role="alert"' if bad else 'class="message" role="status"'
    return f"<p {kind}>{escape(text)}</p>"


def photo(image: NDArray[np.uint8], faces: Sequence[DetectedFace]) -> str:
    """Return a photo, with a numbered box around each face.

    Args:
        image: uint8 (H, W, 3), RGB.
        faces: in the order of their numbers.
    """
    height, width = image.shape[:2]
    uri, shown_width, shown_height = thumbnail(image, _PHOTO_SIDE, quality=88)
    size = max(height, width) / 28
    boxes = []
    for number, face in enumerate(faces):
        # In SVG 0 is the corner of the first pixel.
        x1, y1, x2, y2 = (float(edge) + 0.5 for edge in face.box)
        boxes.append(
            f'<rect x="{x1:.1f}" y="{y1:.1f}" width="{x2 - x1:.1f}" height="{y2 - y1:.1f}"/>'
            f'<text x="{max(x1, 0) + size / 5:.1f}" y="{max(y1, 0) + size:.1f}" font-size="{size:.1f}">{number}</text>'
        )
    # A photo of any shape is seen as a whole.
    widest = 90 * width / height
    return (
        f'<div class="photo" style="max-width:{widest:.0f}vh">'
        f'<img src="{uri}" width="{shown_width}" height="{shown_height}" alt="the photo">'
        f'<svg viewBox="0 0 {width} {height}" preserveAspectRatio="none">{"".join(boxes)}</svg></div>'
    )


def answers(probabilities: Mapping[str, float], thresholds: Mapping[str, float], age_group: Mapping[str, float]) -> str:
    """Return the attributes of a face, the surest first: those at or above their threshold, those near it, the rest.

    Args:
        probabilities: attribute name to probability.
        thresholds: attribute name to threshold.
        age_group: name to probability; empty for a model without age groups.
    """
    present: list[str] = []
    near: list[str] = []
    rest: list[str] = []
    for name, probability in sorted(probabilities.items(), key=lambda item: -item[1]):
        below = thresholds[name] - probability
        (present if below <= 0 else near if below <= NEAR else rest).append(name)

    def rows(names: Sequence[str]) -> str:
        if not names:
            return '<p class="soft">None.</p>'
        return f"<ul>{''.join(_row(name, probabilities[name], thresholds[name]) for name in names)}</ul>"

    parts = []
    if age_group:
        name, share = max(age_group.items(), key=lambda item: item[1])
        parts.append(f'<p class="soft">Age group, the likeliest: <b>{escape(name)}</b> {decimal(share)}</p>')
    parts.append(f'<h4>At or above the threshold</h4><div data-part="present">{rows(present)}</div>')
    parts.append(f'<h4>Below it by at most {NEAR}</h4><div data-part="near">{rows(near)}</div>')
    parts.append(f'<details data-part="rest"><summary>The other {len(rest)}</summary>{rows(rest)}</details>')
    return f'<div class="answers">{"".join(parts)}</div>'


def face(image: NDArray[np.uint8], caption: str, share: NDArray[np.float32] | None = None) -> str:
    """Return a face, where a heat map is given red where it is high and grey where it is low.

    Args:
        image: uint8 (S, S, 3), RGB.
        caption: of the figure, plain text.
        share: float32 (S, S) in [0, 1].
    """
    if share is not None:
        part = share[:, :, None]
        grey = image.mean(axis=2, keepdims=True)
        image = (part * (0.65 * image + 0.35 * _TINT) + (1 - part) * 0.6 * grey).astype(np.uint8)
    uri, width, height = thumbnail(image, _FACE_SIDE, quality=92)
    return (
        f'<figure class="face"><img src="{uri}" width="{width}" height="{height}" alt="{escape(caption)}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def _row(name: str, probability: float, threshold: float) -> str:
    shown = escape(name)
    return (
        f'<li data-attribute="{shown}" title="{shown}: {probability:.6f}, threshold {threshold:.6f}">'
        f'<span>{shown}</span><span class="bar"><i style="width:{100 * probability:.1f}%"></i>'
        f'<b style="left:{100 * threshold:.1f}%"></b></span>'
        f'<data value="{probability:.7f}">{probability:.3f}</data></li>'
    )
