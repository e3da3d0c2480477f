"""MTCNN on real faces, and the ways in which its package is handled."""

from __future__ import annotations

import builtins
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from faceattr_lightning.data.annotations import read_landmarks
from faceattr_lightning.errors import ConfigError
from faceattr_lightning.keypoints.mtcnn import MTCNN, main_face


@pytest.fixture(scope="module")
def mtcnn() -> MTCNN:
    return MTCNN()


def face_of(points: NDArray[np.float32]) -> list[float]:
    return [*points[:, 0].tolist(), *points[:, 1].tolist()]


def test_real_faces(real_data: Path, mtcnn: MTCNN) -> None:
    path = real_data / "celeba" / "list_landmarks_align_celeba.txt"
    files = [line.split()[0] for line in path.read_text().splitlines()[2:]][::300]
    expected = read_landmarks(path, files, (218, 178), [])
    errors = []
    for file, points in zip(files, expected, strict=True):
        image = np.asarray(Image.open(real_data / "celeba" / "img_align_celeba" / file).convert("RGB"))
        found = mtcnn(image)
        if found is not None:
            assert found.shape == (5, 2) and found.dtype == np.float32
            errors.append(np.linalg.norm(found - points, axis=1).mean())
    # In whole pixels, and by another MTCNN; the distance between the eyes is about 38 pixels.
    assert len(errors) >= len(files) - 1 and np.mean(errors) < 3 and np.median(errors) < 2


def test_a_large_photo_of_the_same_face(real_data: Path, mtcnn: MTCNN) -> None:
    photo = Image.open(real_data / "celeba" / "img_align_celeba" / "000002.jpg").convert("RGB")
    small = mtcnn(np.asarray(photo))
    large = mtcnn(np.asarray(photo.resize((178 * 8, 218 * 8), Image.Resampling.BICUBIC)))
    assert small is not None and large is not None
    assert np.linalg.norm((large + 0.5) / 8 - 0.5 - small, axis=1).max() < 3


@pytest.mark.parametrize("size", [(218, 178), (10, 10), (1, 300), (2000, 30)])
def test_no_face(mtcnn: MTCNN, size: tuple[int, int]) -> None:
    assert mtcnn(np.full((*size, 3), 120, dtype=np.uint8)) is None


def test_channels_order_and_choice(mtcnn: MTCNN, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (1200, 1000, 3), dtype=np.uint8)
    points = np.array([[200, 250], [300, 250], [250, 300], [210, 350], [290, 350]], dtype=np.float32)
    seen: dict[str, Any] = {}

    def detect(bgr: NDArray[np.uint8], min_face_size: int) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
        seen.update(shape=bgr.shape, mean=bgr.reshape(-1, 3).mean(axis=0))
        # The first face is better, but small and in a corner.
        boxes = np.array([[0, 0, 60, 60, 0.99], [150, 200, 350, 400, 0.9]])
        return boxes, np.array([face_of(points / 9), face_of(points)], dtype=np.float32)

    monkeypatch.setattr(mtcnn.detector, "_network", type("Network", (), {"detect": staticmethod(detect)}))
    tinted = image // np.array([1, 2, 4], dtype=np.uint8)
    found = mtcnn(tinted)
    assert seen["shape"] == (600, 500, 3)
    assert (np.diff(seen["mean"]) > 20).all()  # blue, the darkest here, comes first
    np.testing.assert_allclose(found, (points + 0.5) * 2 - 0.5)


def test_the_main_face() -> None:
    size = (250, 250)
    centre, corner = [75.0, 75, 175, 175, 0.8], [0.0, 0, 100, 100, 0.99]
    large, tiny = [0.0, 0, 240, 240, 0.7], [120.0, 120, 130, 130, 1.0]
    for boxes, expected in (([corner, centre], 1), ([tiny, corner], 1), ([centre, large, tiny], 1), ([corner], 0)):
        assert main_face(np.array(boxes), size) == expected


def test_one_thread(mtcnn: MTCNN) -> None:
    import onnxruntime
    from mtcnnruntime import detector

    for network in ("pnet", "rnet", "onet"):
        options = getattr(mtcnn.detector._network, f"_MTCNN__{network}")[0].get_session_options()
        assert options.intra_op_num_threads == options.inter_op_num_threads == 1
    assert detector.onnxruntime is onnxruntime


def test_a_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "mtcnnruntime.detector", raising=False)
    monkeypatch.setitem(sys.modules, "mtcnnruntime", None)
    with pytest.raises(ConfigError, match=r"mtcnn-runtime.*not installed.*pip install 'faceattr-lightning\[keypoints"):
        MTCNN()


def test_a_package_that_does_not_load(monkeypatch: pytest.MonkeyPatch) -> None:
    real_import = builtins.__import__

    def without_display(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "cv2":
            raise ImportError("libGL.so.1: cannot open shared object file")
        return real_import(name, *args, **kwargs)

    monkeypatch.delitem(sys.modules, "mtcnnruntime.detector", raising=False)
    monkeypatch.delitem(sys.modules, "mtcnnruntime", raising=False)
    monkeypatch.setattr(builtins, "__import__", without_display)
    with pytest.raises(ConfigError, match=r"libGL.so.1.*opencv-python-headless"):
        MTCNN()


def test_a_face_size_that_is_too_small() -> None:
    with pytest.raises(ConfigError, match=r"keypoints.min_face_size: expected at least 12"):
        MTCNN(min_face_size=5)
