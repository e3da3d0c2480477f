"""Drawn photos whose landmarks are blobs of five colours, and the keypoint model that finds them. Light to import."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

COLOURS = np.array([(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (255, 0, 255)], dtype=np.uint8)
BROKEN = 7
"""A photo of this grey makes the keypoint model fail."""


class BlobFinder:
    """A `KeypointModel`: the centre of each colour's pixels."""

    points = 5

    def __init__(self, min_face_size: int = 20) -> None:
        self.min_face_size = min_face_size

    def __call__(self, image: NDArray[np.uint8]) -> NDArray[np.float32] | None:
        if (image == BROKEN).all():
            raise RuntimeError("a keypoint model that fails")
        found = [np.argwhere((image == colour).all(axis=2)) for colour in COLOURS]
        if not all(map(len, found)):
            return None
        return np.array([pixels.mean(axis=0)[::-1] for pixels in found], dtype=np.float32)


def draw_blobs(
    path: Path, size: tuple[int, int], landmarks: NDArray[np.int64] | None, grey: int = 90, kind: str = "PNG"
) -> None:
    """Write a grey photo of (height, width) with a blob of 3 x 3 pixels around each of ``landmarks`` (5, 2)."""
    image = np.full((*size, 3), grey, dtype=np.uint8)
    for (x, y), colour in zip(landmarks if landmarks is not None else (), COLOURS, strict=landmarks is not None):
        image[y - 1 : y + 2, x - 1 : x + 2] = colour
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, kind)


def some_landmarks(rng: np.random.Generator, size: tuple[int, int]) -> NDArray[np.int64]:
    """Return five landmarks (5, 2) in an image of (height, width), no two of them near each other."""
    height, width = size
    cells = rng.permutation(9)[:5]
    cell = np.array([width // 3, height // 3])
    return np.stack([cells % 3, cells // 3], axis=1) * cell + rng.integers(2, cell - 2, (5, 2))
