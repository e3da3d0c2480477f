"""Finding every face of a photo: boxes, scores and CelebA's five landmarks. No torch here.

Coordinates are x then y in pixels of the photo, 0 at the centre of the first pixel, as in
`faceattr_lightning.keypoints`.
"""

from __future__ import annotations

import functools
import importlib
import math
import types
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from faceattr_lightning.errors import ConfigError

_MOST_PIXELS = 10_000_000
# What a photo is shrunk to where a face that fills it is looked for, at least a third of it.
_CLOSE_UP = 250


@dataclass(frozen=True)
class DetectedFace:
    """A face of a photo.

    Attributes:
        box: float32 (4,), x1, y1, x2, y2 of its edges; it may reach beyond the photo.
        score: how sure the detector is, in [0, 1].
        landmarks: float32 (5, 2), in the order of `faceattr_lightning.landmarks.LANDMARKS_5`; left is the image's.
    """

    box: NDArray[np.float32]
    score: float
    landmarks: NDArray[np.float32]


class FaceDetector(Protocol):
    """Finds all faces of a photo.

    Any class with this, made from plain arguments, can be the ``_target_`` of ``detector``.
    """

    def __call__(self, image: NDArray[np.uint8]) -> list[DetectedFace]:
        """Return the faces, highest score first; an empty list without any.

        Args:
            image: uint8 (H, W, 3), RGB.
        """


class MTCNNDetector:
    """MTCNN (Zhang et al., arXiv 1604.02878) as the package mtcnn-runtime has it, with its weights, on one thread.

    Ours: a photo is shrunk to a shorter side of ``shorter_side`` first, so that time and memory stay bounded (a very
    long one further, to 10 megapixels), and the smallest face that is looked for grows with the photo. By default it is
    of 60 pixels in a photo of 12 megapixels, which takes a third of a second, and of 20 pixels in 1,000 x 1,000 or
    fewer. To shrink more and look for fewer pixels would take as long and find the same faces, but their landmarks half
    as exactly. Where no face is found, one that fills the photo is looked for by continuing the photo's edge.

    Args:
        min_face_size: of the smallest face looked for, in pixels (of the shrunk photo), at least 12.
        min_face_share: of the smallest face looked for, as a share of the photo's shorter side; the larger one counts.
        shorter_side: what a photo's shorter side is shrunk to, in pixels.
        min_score: of the faces that are kept, in [0, 1]; the network itself keeps those above 0.7.
        most_faces: how many are kept, the highest scores first; ``None`` for all.

    Raises:
        ConfigError: mtcnn-runtime is not installed or can't be loaded, or an argument is out of its range.
    """

    def __init__(
        self,
        min_face_size: int = 20,
        min_face_share: float = 0.02,
        shorter_side: int = 2000,
        min_score: float = 0.9,
        most_faces: int | None = None,
    ) -> None:
        problems = []
        if min_face_size < 12:
            problems.append(f"min_face_size: expected at least 12 pixels, found {min_face_size}.")
        if not 0 <= min_face_share <= 1:
            problems.append(f"min_face_share: expected 0 to 1, found {min_face_share}.")
        if shorter_side < min_face_size:
            problems.append(f"shorter_side: expected at least min_face_size, {min_face_size}, found {shorter_side}.")
        if not 0 <= min_score <= 1:
            problems.append(f"min_score: expected 0 to 1, found {min_score}.")
        if most_faces is not None and most_faces < 1:
            problems.append(f"most_faces: expected at least 1, or null for all, found {most_faces}.")
        if problems:
            raise ConfigError([f"detector.{problem}" for problem in problems])
        self.min_face_size = min_face_size
        self.min_face_share = min_face_share
        self.shorter_side = shorter_side
        self.min_score = min_score
        self.most_faces = most_faces
        self._network = _load()

    def __call__(self, image: NDArray[np.uint8]) -> list[DetectedFace]:
        """Return the faces of a photo, highest score first; see `FaceDetector`."""
        faces = self._faces(self.find(image))
        if not faces:
            faces = self._faces(self._find(image, _CLOSE_UP, _CLOSE_UP / 3, border=_CLOSE_UP // 2))
        return sorted(faces, key=lambda face: -face.score)[: self.most_faces]

    def find(self, image: NDArray[np.uint8]) -> Found:
        """Return what the networks find, in their order, before ``min_score`` and ``most_faces``.

        Args:
            image: uint8 (H, W, 3), RGB.
        """
        shown = min(*image.shape[:2], self.shorter_side)
        return self._find(image, self.shorter_side, max(self.min_face_size, self.min_face_share * shown))

    def _find(self, image: NDArray[np.uint8], shorter_side: int, min_face_size: float, border: int = 0) -> Found:
        height, width = image.shape[:2]
        # The borders of a very long photo have more pixels than the photo itself.
        bounds = math.sqrt(height * width / _MOST_PIXELS), 4 * border * (height + width) / _MOST_PIXELS
        shrink = max(1.0, min(height, width) / shorter_side, *bounds)
        if shrink > 1:
            size = (max(1, round(width / shrink)), max(1, round(height / shrink)))
            image = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX))
        frame = image.shape[:2]
        if border:
            image = np.pad(image, [(border, border), (border, border), (0, 0)], mode="edge")
        # Its channels are OpenCV's; given RGB, it finds fewer faces without a word.
        bgr = np.ascontiguousarray(image[..., ::-1])
        try:
            boxes, landmarks = self._network.detect(bgr, min_face_size=min_face_size)
        except ValueError:  # what it raises if its first network finds nothing
            boxes, landmarks = [], []
        scale = np.array([width / frame[1], height / frame[0]])
        # Of a face: x of all five, then y of all five; left in the image first, like CelebA's.
        points = np.reshape(landmarks, (-1, 2, 5)).swapaxes(1, 2) - border
        in_photo = ((points + 0.5) * scale - 0.5).astype(np.float32)
        in_frame = np.reshape(boxes, (-1, 5)) - np.array([border] * 4 + [0])
        return Found(in_frame, in_photo, frame, scale)

    def _faces(self, found: Found) -> list[DetectedFace]:
        # In mtcnn-runtime the last pixel of a box is x2; here it ends at that pixel's edge.
        edges = (found.boxes[:, :4] + [0, 0, 1, 1]) * np.tile(found.scale, 2) - 0.5
        return [
            DetectedFace(box, float(score), landmarks)
            for box, score, landmarks in zip(edges.astype(np.float32), found.boxes[:, 4], found.landmarks, strict=True)
            if score >= self.min_score
        ]


@dataclass(frozen=True)
class Found:
    """What MTCNN's networks find in a photo, of n faces.

    Attributes:
        boxes: float (n, 5), x1, y1, x2, y2 in pixels of the shrunk photo, and the score.
        landmarks: float32 (n, 5, 2), in pixels of the photo.
        frame: (height, width) of the shrunk photo.
        scale: (2,), pixels of the photo along x and y for one of the shrunk photo.
    """

    boxes: NDArray[np.floating]
    landmarks: NDArray[np.float32]
    frame: tuple[int, ...]
    scale: NDArray[np.float64]


def _load() -> Any:
    """Return mtcnn-runtime's detector."""
    try:
        runtime: Any = importlib.import_module("mtcnnruntime.detector")
    except ModuleNotFoundError as error:
        raise ConfigError(
            [
                f"MTCNN: the package mtcnn-runtime, or one that it needs, is not installed ({error}); run: "
                "pip install 'faceattr-lightning[keypoints]'."
            ]
        ) from error
    except ImportError as error:  # as a rule OpenCV lacks a system library, such as libGL.so.1
        raise ConfigError(
            [
                f"MTCNN: mtcnn-runtime can't be loaded ({error}). Install that library (libGL.so.1: Debian's "
                "libgl1), or opencv-python-headless in the place of opencv-python."
            ]
        ) from error
    # It prints "error" where a box reaches far beyond the image.
    runtime.print = _say_nothing
    onnxruntime = runtime.onnxruntime
    options = onnxruntime.SessionOptions()
    # Faces are found by several processes; in each, more threads would only be in the others' way.
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    runtime.cv2.setNumThreads(1)
    session = functools.partial(onnxruntime.InferenceSession, sess_options=options)
    try:
        # It takes no options, but makes its sessions through this one name.
        runtime.onnxruntime = types.SimpleNamespace(InferenceSession=session)
        return runtime.MTCNN()
    finally:
        runtime.onnxruntime = onnxruntime


def _say_nothing(*_: object) -> None:
    pass
