"""Every face of a photo is found, the small ones and those that fill it, and none where there is none."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from faceattr_lightning.data.annotations import read_landmarks
from faceattr_lightning.errors import ConfigError
from faceattr_lightning.inference.detection import DetectedFace, FaceDetector, MTCNNDetector
from faceattr_lightning.keypoints.mtcnn import MTCNN, main_face

Networks = list[tuple[NDArray[np.float64], NDArray[np.float32]]]


@pytest.fixture(scope="module")
def detector() -> MTCNNDetector:
    return MTCNNDetector()


def real_face(real_data: Path, file: str) -> tuple[Image.Image, NDArray[np.float32]]:
    """Return an image of CelebA and its landmarks."""
    celeba = real_data / "celeba"
    image = Image.open(celeba / "img_align_celeba" / file).convert("RGB")
    return image, read_landmarks(celeba / "list_landmarks_align_celeba.txt", [file], (218, 178), [])[0]


def is_at(face: DetectedFace, points: NDArray[np.floating], tolerance: float) -> bool:
    """Return whether a face's landmarks are where they should be, as a share of the distance between the eyes."""
    error = np.linalg.norm(face.landmarks - points, axis=1).mean()
    inside = (points >= face.box[:2]).all() and (points <= face.box[2:]).all()
    return bool(inside and error < tolerance * np.linalg.norm(points[1] - points[0]))


def test_several_faces_of_different_sizes(real_data: Path, detector: FaceDetector) -> None:
    photo = Image.new("RGB", (1500, 1100), (110, 115, 120))
    expected = []
    for file, scale, corner in (
        ("000002.jpg", 4.0, (20, 30)),
        ("000058.jpg", 1.0, (900, 100)),
        ("000086.jpg", 0.35, (1300, 900)),
    ):
        image, landmarks = real_face(real_data, file)
        size = (round(178 * scale), round(218 * scale))
        photo.paste(image.resize(size, Image.Resampling.BICUBIC), corner)
        expected.append((landmarks + 0.5) * np.array(size) / (178, 218) - 0.5 + corner)
    faces = detector(np.asarray(photo))
    assert len(faces) == 3
    assert all(any(is_at(face, points, 0.12) for face in faces) for points in expected)
    scores = [face.score for face in faces]
    assert scores == sorted(scores, reverse=True) and all(0.9 <= score <= 1 for score in scores)
    for face in faces:
        assert face.box.dtype == face.landmarks.dtype == np.float32
        assert face.box.shape == (4,) and face.landmarks.shape == (5, 2) and type(face.score) is float


def test_a_small_face_of_a_large_photo(real_data: Path, detector: FaceDetector) -> None:
    image, landmarks = real_face(real_data, "000058.jpg")
    photo = Image.new("RGB", (4032, 3024), (90, 100, 90))
    size = (125, 153)  # the face itself is 80 pixels high
    photo.paste(image.resize(size, Image.Resampling.LANCZOS), (3500, 2500))
    expected = (landmarks + 0.5) * np.array(size) / (178, 218) - 0.5 + (3500, 2500)
    (face,) = detector(np.asarray(photo))
    assert is_at(face, expected, 0.1)


def test_a_face_that_fills_the_photo(real_data: Path, detector: MTCNNDetector) -> None:
    found = found_at_once = 0
    for file in sorted((real_data / "fairface" / "val").iterdir())[:60]:
        photo = np.asarray(Image.open(file).convert("RGB"))
        found_at_once += any(box[4] >= detector.min_score for box in detector.find(photo).boxes)
        found += len(detector(photo)) > 0
    assert found_at_once < found >= 57


def test_the_landmarks_are_those_of_the_keypoint_model(real_data: Path) -> None:
    detector, model = MTCNNDetector(shorter_side=500, min_score=0), MTCNN()
    for file in sorted((real_data / "celeba" / "img_align_celeba").iterdir())[:20]:
        photo = np.asarray(Image.open(file).convert("RGB"))
        faces = detector(photo)
        face = faces[main_face(np.array([face.box for face in faces]), photo.shape[:2])]
        np.testing.assert_array_equal(face.landmarks, model(photo))


@pytest.mark.parametrize("size", [(300, 400), (12, 12), (1, 1), (13, 3_000), (2_500, 20)])
@pytest.mark.parametrize("content", ["grey", "noise"])
def test_no_face(detector: FaceDetector, size: tuple[int, int], content: str) -> None:
    photo = np.full((*size, 3), 120, dtype=np.uint8)
    if content == "noise":
        photo = np.random.default_rng(0).integers(0, 256, photo.shape, dtype=np.uint8)
    assert detector(photo) == []


class Played:
    """What mtcnn-runtime would find, and what it was asked."""

    def __init__(self, *answers: tuple[Any, Any]) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[tuple[int, ...], float]] = []

    def detect(self, bgr: NDArray[np.uint8], min_face_size: float) -> tuple[Any, Any]:
        self.asked.append((bgr.shape, min_face_size))
        return self.answers.pop(0)


def played(monkeypatch: pytest.MonkeyPatch, detector: MTCNNDetector, *answers: tuple[Any, Any]) -> Played:
    network = Played(*answers)
    monkeypatch.setattr(detector, "_network", network)
    return network


def some_faces(scores: list[float]) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    boxes = np.array([[10 + i, 20, 59 + i, 79, score] for i, score in enumerate(scores)])
    landmarks = np.array([[20, 40, 30, 22, 38, 40, 40, 50, 60, 61]] * len(scores), dtype=np.float32)
    return boxes, landmarks


def test_choice_of_faces(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = [0.75, 0.99, 0.92, 0.9, 0.97]
    photo = np.zeros((200, 300, 3), dtype=np.uint8)
    for arguments, expected in (
        ({}, [0.99, 0.97, 0.92, 0.9]),
        ({"min_score": 0.0}, [0.99, 0.97, 0.92, 0.9, 0.75]),
        ({"min_score": 0.95}, [0.99, 0.97]),
        ({"most_faces": 1}, [0.99]),
        ({"most_faces": 9}, [0.99, 0.97, 0.92, 0.9]),
    ):
        detector = MTCNNDetector(**arguments)  # type: ignore[arg-type]
        played(monkeypatch, detector, some_faces(scores))
        assert [face.score for face in detector(photo)] == pytest.approx(expected)


def test_coordinates_are_those_of_the_photo(monkeypatch: pytest.MonkeyPatch, detector: MTCNNDetector) -> None:
    network = played(monkeypatch, detector, some_faces([0.99]), some_faces([0.99]))
    (small,) = detector(np.zeros((200, 300, 3), dtype=np.uint8))
    # The edges of the first and the last pixel.
    np.testing.assert_allclose(small.box, [9.5, 19.5, 59.5, 79.5])
    np.testing.assert_allclose(small.landmarks, [[20, 40], [40, 40], [30, 50], [22, 60], [38, 61]])
    (large,) = detector(np.zeros((6000, 4000, 3), dtype=np.uint8))
    assert network.asked == [((200, 300, 3), 20), ((3000, 2000, 3), 40)]
    np.testing.assert_allclose((large.box + 0.5) / 2, small.box + 0.5)
    np.testing.assert_allclose((large.landmarks + 0.5) / 2, small.landmarks + 0.5)


def test_the_smallest_face(monkeypatch: pytest.MonkeyPatch) -> None:
    for arguments, size, expected in (
        ({}, (250, 250), 20),
        ({}, (1600, 1200), 24),
        ({}, (4032, 3024), 40),
        ({"min_face_share": 0.1}, (1000, 1000), 100),
        ({"min_face_share": 0.0}, (4032, 3024), 20),
        ({"min_face_size": 32}, (250, 250), 32),
    ):
        detector = MTCNNDetector(**arguments)  # type: ignore[arg-type]
        network = played(monkeypatch, detector, some_faces([0.99]))
        detector(np.zeros((*size, 3), dtype=np.uint8))
        assert network.asked[0][1] == pytest.approx(expected)


def test_a_second_look_for_a_face_that_fills_the_photo(
    monkeypatch: pytest.MonkeyPatch, detector: MTCNNDetector
) -> None:
    network = played(monkeypatch, detector, ([], []), some_faces([0.99]))
    (face,) = detector(np.zeros((500, 1000, 3), dtype=np.uint8))
    # Shrunk to half, with 125 pixels around it.
    assert network.asked[1][0] == (500, 750, 3) and network.asked[1][1] == pytest.approx(250 / 3)
    np.testing.assert_allclose(face.landmarks[0], [(20 - 125 + 0.5) * 2 - 0.5, (40 - 125 + 0.5) * 2 - 0.5])
    np.testing.assert_allclose(face.box[:2], [(10 - 125) * 2 - 0.5, (20 - 125) * 2 - 0.5])


def test_a_very_long_photo_is_shrunk_further(monkeypatch: pytest.MonkeyPatch, detector: MTCNNDetector) -> None:
    network = played(monkeypatch, detector, some_faces([0.99]))
    detector(np.zeros((1_000, 40_000, 3), dtype=np.uint8))
    height, width, _ = network.asked[0][0]
    assert height * width <= 10_010_000 and width / height == pytest.approx(40, rel=0.01)


def test_the_second_look_at_a_very_long_photo_is_bounded_too(
    monkeypatch: pytest.MonkeyPatch, detector: MTCNNDetector
) -> None:
    """Continued by 125 pixels on each side, a strip of 12 pixels grows twentyfold: with 3,000,000 it took 6 GB."""
    network = played(monkeypatch, detector, ([], []), ([], []))
    assert detector(np.zeros((12, 400_000, 3), dtype=np.uint8)) == []
    height, width, _ = network.asked[1][0]
    assert height * width <= 15_000_000


def test_what_the_package_prints_is_kept_quiet(
    real_data: Path, detector: FaceDetector, capfd: pytest.CaptureFixture[str]
) -> None:
    photos = [np.asarray(Image.open(file)) for file in sorted((real_data / "fairface" / "val").iterdir())[:8]]
    # It must not take the output of other threads with it, either.
    threads = [threading.Thread(target=lambda: [detector(photo) for photo in photos]) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print("still here")
    assert capfd.readouterr().out == "still here\n"


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"min_face_size": 5}, r"detector.min_face_size: expected at least 12"),
        ({"min_face_share": 2}, r"detector.min_face_share: expected 0 to 1"),
        ({"shorter_side": 10}, r"detector.shorter_side: expected at least min_face_size"),
        ({"min_score": 90}, r"detector.min_score: expected 0 to 1"),
        ({"most_faces": 0}, r"detector.most_faces: expected at least 1"),
    ],
)
def test_arguments_out_of_range(arguments: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        MTCNNDetector(**arguments)
