"""MTCNN (Zhang et al., arXiv 1604.02878) as the package mtcnn-runtime has it: boxes and CelebA's five landmarks."""

from __future__ import annotations

import contextlib
import functools
import importlib
import types
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from faceattr_lightning.errors import ConfigError

_SHORTER_SIDE = 500


class MTCNN:
    """A `KeypointModel` of 5 points, on one thread.

    Ours: a photo is shrunk to a shorter side of 500 pixels, so that time and memory stay bounded; and which of several
    faces counts, see `main_face`.

    Args:
        min_face_size: of the smallest face looked for, in pixels (of the shrunk photo), at least 12.

    Raises:
        ConfigError: mtcnn-runtime is not installed or can't be loaded, or ``min_face_size`` is too small.
    """

    points = 5

    def __init__(self, min_face_size: int = 20) -> None:
        if min_face_size < 12:
            raise ConfigError([f"keypoints.min_face_size: expected at least 12 pixels, found {min_face_size}."])
        self.min_face_size = min_face_size
        try:
            runtime: Any = importlib.import_module("mtcnnruntime.detector")
        except ModuleNotFoundError as error:
            raise ConfigError(
                [
                    f"keypoints: the package mtcnn-runtime, or one that it needs, is not installed ({error}); run: "
                    "pip install 'faceattr-lightning[keypoints]'."
                ]
            ) from error
        except ImportError as error:  # as a rule OpenCV lacks a system library, such as libGL.so.1
            raise ConfigError(
                [
                    f"keypoints: mtcnn-runtime can't be loaded ({error}). Install that library (libGL.so.1: Debian's "
                    "libgl1), or opencv-python-headless in the place of opencv-python."
                ]
            ) from error
        onnxruntime = runtime.onnxruntime
        options = onnxruntime.SessionOptions()
        # Faces are found by several processes; in each, more threads would only be in the others' way.
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        runtime.cv2.setNumThreads(1)
        session = functools.partial(onnxruntime.InferenceSession, sess_options=options)
        try:
            # It takes no options, but makes its sessions through this one name.
            runtime.onnxruntime = types.SimpleNamespace(InferenceSession=session)
            self._detector = runtime.MTCNN()
        finally:
            runtime.onnxruntime = onnxruntime

    def __call__(self, image: NDArray[np.uint8]) -> NDArray[np.float32] | None:
        """Return the five landmarks of `main_face`, float32 (5, 2); ``None`` without a face. See `KeypointModel`."""
        height, width = image.shape[:2]
        shrink = max(1.0, min(height, width) / _SHORTER_SIDE)
        if shrink > 1:
            size = (round(width / shrink), round(height / shrink))
            image = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX))
        # Its channels are OpenCV's; given RGB, it finds fewer faces without a word.
        bgr = np.ascontiguousarray(image[..., ::-1])
        try:
            # It prints "error" where a box reaches far beyond the image.
            with contextlib.redirect_stdout(None):
                boxes, landmarks = self._detector.detect(bgr, min_face_size=self.min_face_size)
        except ValueError:  # what it raises if its first network finds nothing
            return None
        if len(boxes) == 0:
            return None
        # Of a face: x of all five, then y of all five; left in the image first, like CelebA's.
        points = landmarks[main_face(boxes, image.shape[:2])].reshape(2, 5).T
        scale = np.array([width / image.shape[1], height / image.shape[0]])
        in_photo: NDArray[np.float32] = ((points + 0.5) * scale - 0.5).astype(np.float32)
        return in_photo


def main_face(boxes: NDArray[np.float64], size: tuple[int, ...]) -> int:
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
