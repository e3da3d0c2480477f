"""MTCNN (Zhang et al., arXiv 1604.02878) as the package mtcnn-runtime has it: CelebA's five landmarks of one face."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from faceattr_lightning.errors import ConfigError
from faceattr_lightning.inference.detection import MTCNNDetector

_SHORTER_SIDE = 500


class MTCNN:
    """A `KeypointModel` of 5 points, on one thread.

    Ours: a photo is shrunk to a shorter side of 500 pixels, so that time and memory stay bounded; and which of several
    faces counts, see `main_face`.

    Args:
        min_face_size: of the smallest face looked for, in pixels (of the shrunk photo), 12 to 500.

    Raises:
        ConfigError: mtcnn-runtime is not installed or can't be loaded, or ``min_face_size`` is out of its range.
    """

    points = 5

    def __init__(self, min_face_size: int = 20) -> None:
        if not 12 <= min_face_size <= _SHORTER_SIDE:
            expected = f"at least 12 pixels and at most {_SHORTER_SIDE}"
            raise ConfigError([f"keypoints.min_face_size: expected {expected}, found {min_face_size}."])
        self.detector = MTCNNDetector(min_face_size, min_face_share=0, shorter_side=_SHORTER_SIDE)

    def __call__(self, image: NDArray[np.uint8]) -> NDArray[np.float32] | None:
        """Return the five landmarks of `main_face`, float32 (5, 2); ``None`` without a face. See `KeypointModel`."""
        found = self.detector.find(image)
        if len(found.boxes) == 0:
            return None
        landmarks: NDArray[np.float32] = found.landmarks[main_face(found.boxes, found.frame)]
        return landmarks


def main_face(boxes: NDArray[np.floating], size: tuple[int, ...]) -> int:
    """Return the index of the face that a photo is about.

    Ours: the largest box, weighted by nearness to the centre, since data sets of faces are cropped around theirs:
    area * exp(-(d / 0.25)^2) with d the distance of the centres as a share of the image's diagonal.

    Args:
        boxes: (n, 4 or more), x1, y1, x2, y2 in pixels; n >= 1.
        size: (height, width) of the image in pixels.
    """
    corners, opposite = boxes[:, :2], boxes[:, 2:4]
    areas = np.prod(np.maximum(opposite - corners, 0), axis=1)
    centre = np.array([size[1], size[0]]) / 2
    distances = np.linalg.norm((corners + opposite) / 2 - centre, axis=1) / np.linalg.norm(centre * 2)
    return int(np.argmax(areas * np.exp(-((distances / 0.25) ** 2))))
