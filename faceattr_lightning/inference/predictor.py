"""A trained model on photos, in a few lines of Python."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from faceattr_lightning.data.images import fit_image
from faceattr_lightning.errors import ConfigError, did_you_mean
from faceattr_lightning.inference.alignment import AlignmentError, align, align_box, crop_aligned
from faceattr_lightning.inference.detection import DetectedFace, FaceDetector, MTCNNDetector
from faceattr_lightning.inference.engine import Engine, ModelFacts, open_engine
from faceattr_lightning.inference.photo import PhotoError, read_photo, shown

log = logging.getLogger(__name__)

_DRAWN = "faceattr_lightning.data.synthetic.Synthetic"

Source = str | Path | Image.Image | NDArray[np.uint8]

_Cuts = list[tuple[DetectedFace | None, NDArray[np.uint8]]]
"""The faces of a photo as the network is to see them."""


@dataclass(frozen=True)
class Answer:
    """What the model says of one attribute of one face.

    Attributes:
        probability: in [0, 1].
        present: whether it is at or above the attribute's threshold.
    """

    probability: float
    present: bool


@dataclass(frozen=True, eq=False)
class Face:
    """What the model says of one face.

    Attributes:
        number: of the face in its photo, from 0, the surest detection first.
        attributes: name to answer, in the model's order.
        age_group: name to probability, of sum 1; empty for a model without age groups.
        detected: where the face is; ``None`` for an image that was aligned already.
        image: uint8 (S, S, 3), what the network saw.
    """

    number: int
    attributes: dict[str, Answer]
    age_group: dict[str, float]
    detected: DetectedFace | None
    image: NDArray[np.uint8]

    def __getitem__(self, name: str) -> Answer:
        return self.attributes[name]


@dataclass(frozen=True, eq=False)
class Photo:
    """A photo and its faces.

    Attributes:
        source: the file's name, or what else it was.
        size: (height, width) in pixels; ``None`` if it could not be read.
        faces: the surest detection first; empty without any.
        error: why it could not be read, else empty.
    """

    source: str
    size: tuple[int, int] | None
    faces: list[Face]
    error: str = ""


@dataclass(frozen=True, eq=False)
class Found:
    """A photo while its pixels are in memory.

    Attributes:
        source: as it was given.
        image: uint8 (H, W, 3), RGB, upright.
        faces: in the order of `Photo.faces`; empty with ``detect=False``, too.
    """

    source: Source
    image: NDArray[np.uint8]
    faces: list[DetectedFace]


class Predictor:
    """Finds the faces of photos, aligns them as the model's training images are, and asks the model.

    ::

        from faceattr_lightning import Predictor
        predictor = Predictor("outputs/train/<date_time>/checkpoints/best.ckpt")
        for face in predictor("photo.jpg").faces:
            print(face.number, face["Smiling"].probability, face["Smiling"].present)

    Neither Lightning nor Hydra is imported, and for an ONNX file no torch.

    Args:
        model: a checkpoint, or an ONNX file of ``task=export``.
        detector: finds the faces; ``None`` takes MTCNN. Only made when the first photo comes.
        detect: ``False`` for images that are as the training images were, one face each: aligned, of the same size;
            or of any size, for a model of a user's own images.
        thresholds: attribute name to a threshold in [0, 1], in place of the fitted one.
        device: of torch, for a checkpoint.
        most_pixels: of the largest photo to decode.

    Raises:
        ConfigError: there is no such model or device, it is damaged or not ours, or a threshold is none.
        DataError: an ONNX file is damaged or not ours.
    """

    def __init__(
        self,
        model: str | Path,
        detector: FaceDetector | None = None,
        detect: bool = True,
        thresholds: Mapping[str, float] | None = None,
        device: str = "cpu",
        most_pixels: int = 100_000_000,
    ) -> None:
        self.engine: Engine = open_engine(model, device)
        """What answers."""
        self._detector, self._detect, self._most_pixels = detector, detect, most_pixels
        self.facts: ModelFacts = self.engine.facts
        """What the model says of itself."""
        if self.facts.data == _DRAWN:
            log.warning("%s was trained on drawn faces; what it says of real ones means nothing.", model)
        self.thresholds = _changed(self.facts, thresholds or {})
        """float32 (A,), those that decide."""

    def __call__(self, source: Source) -> Photo:
        """Return the faces of one photo.

        Args:
            source: a file, an image of PIL, or an array, uint8 (H, W, 3) RGB or (H, W) grey.

        Raises:
            PhotoError: it can't be read; see `read_photo`.
            AlignmentError: with ``detect=False``, an image of another size than in training.
        """
        photo = next(self.predict([source]))
        if photo.error:
            raise PhotoError(photo.error)
        return photo

    def predict(
        self, sources: Iterable[Source], batch_size: int = 32, found: Callable[[Found], None] | None = None
    ) -> Iterator[Photo]:
        """Yield the faces of photos in their order; one that can't be read has an ``error``, and the rest goes on.

        Memory does not grow with their number: photos are read while the result is consumed.

        Args:
            sources: see `__call__`.
            batch_size: faces that the network sees at once.
            found: called for each photo that was read, before the network sees its faces.
        """
        waiting: list[tuple[Photo, _Cuts]] = []
        for source in sources:
            waiting.append(self._read(source, found))
            if sum(len(cuts) for _, cuts in waiting) >= batch_size or len(waiting) >= 4 * batch_size:
                yield from self._answer(waiting, batch_size)
                waiting = []
        yield from self._answer(waiting, batch_size)

    def _read(self, source: Source, found: Callable[[Found], None] | None) -> tuple[Photo, _Cuts]:
        name = _name(source)
        try:
            image = read_photo(source, self._most_pixels)
            cuts = self._cut(image)
        except (PhotoError, AlignmentError) as error:
            text = str(error) if isinstance(error, PhotoError) else f"{name}: {error}"
            return Photo(name, None, [], text), []
        if found is not None:
            found(Found(source, image, [face for face, _ in cuts if face is not None]))
        return Photo(name, (image.shape[0], image.shape[1]), []), cuts

    def _cut(self, image: NDArray[np.uint8]) -> _Cuts:
        facts = self.facts
        if not self._detect:
            if facts.any_size:
                image = fit_image(image, facts.source_size)
            return [(None, crop_aligned(image, facts.source_size, facts.crop, facts.image_size))]
        if self._detector is None:
            self._detector = MTCNNDetector()
        cuts: _Cuts = []
        for face in self._detector(image):
            try:
                if facts.template:
                    cut = align(image, face.landmarks, facts.template, facts.crop_size, facts.image_size)
                else:
                    cut = align_box(image, face.box, facts.crop_size, facts.image_size)
            except AlignmentError:
                # What the detector took for a face has not the shape of one.
                continue
            cuts.append((face, cut))
        return cuts

    def _answer(self, waiting: list[tuple[Photo, _Cuts]], batch_size: int) -> Iterator[Photo]:
        images = [image for _, cuts in waiting for _, image in cuts]
        answers: Iterator[tuple[NDArray[np.float32], NDArray[np.float32] | None]] = itertools.chain.from_iterable(
            self._rows(np.stack(images[start : start + batch_size])) for start in range(0, len(images), batch_size)
        )
        for photo, cuts in waiting:
            photo.faces.extend(
                self._face(number, detected, image, *next(answers)) for number, (detected, image) in enumerate(cuts)
            )
            yield photo

    def _rows(self, images: NDArray[np.uint8]) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32] | None]]:
        probabilities, ages = self.engine(images)
        yield from zip(probabilities, itertools.repeat(None) if ages is None else ages, strict=False)

    def _face(
        self,
        number: int,
        detected: DetectedFace | None,
        image: NDArray[np.uint8],
        probabilities: NDArray[np.float32],
        ages: NDArray[np.float32] | None,
    ) -> Face:
        decisions = probabilities >= self.thresholds
        attributes = {
            name: Answer(probability, present)
            for name, probability, present in zip(
                self.facts.attribute_names, probabilities.tolist(), decisions.tolist(), strict=True
            )
        }
        age_group: dict[str, Any] = {} if ages is None else dict(zip(self.facts.age_groups, ages.tolist(), strict=True))
        return Face(number, attributes, age_group, detected, image)


def _changed(facts: ModelFacts, thresholds: Mapping[str, float]) -> NDArray[np.float32]:
    problems = [
        f"thresholds.{name}: the model has no such attribute.{did_you_mean(name, facts.attribute_names)}"
        for name in thresholds
        if name not in facts.attribute_names
    ]
    problems += [
        f"thresholds.{name}: expected a number in [0, 1], found {value!r}."
        for name, value in thresholds.items()
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1
    ]
    if problems:
        raise ConfigError(problems)
    changed = facts.thresholds.copy()
    for name, value in thresholds.items():
        changed[facts.attribute_names.index(name)] = value
    return changed


def _name(source: Source) -> str:
    if isinstance(source, (str, Path)):
        return shown(source)
    return shown(getattr(source, "filename", "") or ("the array" if isinstance(source, np.ndarray) else "the image"))
