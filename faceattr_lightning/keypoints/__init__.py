"""Keypoint models: what finds the landmarks of a face that has none yet."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class KeypointModel(Protocol):
    """Finds the landmarks of the one face that an image is about.

    Any class with these two, made from plain arguments, can be the ``_target_`` of ``keypoints``.
    """

    points: int
    """How many landmarks it gives, one of the layouts of `faceattr_lightning.landmarks`."""

    def __call__(self, image: NDArray[np.uint8]) -> NDArray[np.float32] | None:
        """Return the landmarks of the face.

        Args:
            image: uint8 (H, W, 3), RGB.

        Returns:
            float32 (`points`, 2), x then y in pixels, 0 at the centre of the first pixel; ``None`` without a face.
        """
