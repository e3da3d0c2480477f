"""A face of a photo comes to the template, as exact and as sharp as a training image is."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from faceattr_lightning.data.celeba import read_celeba
from faceattr_lightning.data.preprocessing import Preprocessing
from faceattr_lightning.data.synthetic_faces import draw_face, sample_people
from faceattr_lightning.errors import FaceAttrError
from faceattr_lightning.inference.alignment import AlignmentError, align, align_box, crop_aligned, similarity, warp
from faceattr_lightning.landmarks import FIVE_POINTS

SIZE, CROP = (218, 178), (0, 20, 178, 198)
CROP_SIZE = (178, 178)
TEMPLATE = np.array([[0.39, 0.52], [0.61, 0.52], [0.5, 0.66], [0.41, 0.75], [0.6, 0.75]])


@pytest.fixture(scope="module")
def face() -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    return draw_face(sample_people(1, 0).attributes[0], 0, 0, 0)


def turned(scale: float, degrees: float, shift: tuple[float, float] = (0, 0)) -> NDArray[np.float64]:
    angle = np.radians(degrees)
    rotation = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return np.column_stack([rotation, shift])


def carried(points: NDArray[np.floating], matrix: NDArray[np.float64]) -> NDArray[np.floating]:
    return points @ matrix[:, :2].T + matrix[:, 2]


def umeyama(source: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float64]:
    """Umeyama 1991, equations 34 to 42, with the singular value decomposition as it is written there."""
    mean_x, mean_y = source.mean(axis=0), target.mean(axis=0)
    x, y = source - mean_x, target - mean_y
    u, d, v = np.linalg.svd(y.T @ x / len(x))
    signs = np.diag([1.0, np.sign(np.linalg.det(u) * np.linalg.det(v))])
    rotation = u @ signs @ v
    scale = np.trace(np.diag(d) @ signs) / (x**2).sum(axis=1).mean()
    return np.column_stack([scale * rotation, mean_y - scale * rotation @ mean_x])


# ---------------------------------------------------------------------------------------------------------------------
# The transform
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("points", [2, 5, 68])
def test_similarity_is_umeyamas(points: int) -> None:
    rng = np.random.default_rng(points)
    for _ in range(50):
        source, target = rng.normal(size=(points, 2)) * 40 + 300, rng.normal(size=(points, 2)) + rng.normal(size=2)
        np.testing.assert_allclose(similarity(source, target), umeyama(source, target), rtol=1e-9, atol=1e-9)


def test_an_exact_similarity_is_given_back() -> None:
    matrix = turned(0.13, 77, (5, -800))
    source = np.random.default_rng(0).normal(size=(5, 2)) * 100
    np.testing.assert_allclose(similarity(source, carried(source, matrix)), matrix, atol=1e-9)


def test_no_reflection() -> None:
    source = np.random.default_rng(1).normal(size=(5, 2))
    matrix = similarity(source, source * [-1, 1] + [0.3, 0])
    assert np.linalg.det(matrix[:, :2]) > 0


def test_points_on_a_line_are_enough() -> None:
    line = np.arange(5)[:, None] * np.array([[1.0, 2.0]])
    matrix = turned(2, 30, (1, 1))
    np.testing.assert_allclose(similarity(line, carried(line, matrix)), matrix, atol=1e-9)


@pytest.mark.parametrize(
    "source",
    [np.full((5, 2), 7.0), np.full((5, 2), np.nan), np.array([[0, 0], [1, 0], [np.inf, 1], [0, 2], [1, 2]])],
    ids=["one place", "nan", "infinite"],
)
def test_points_without_a_shape(source: NDArray[np.float64]) -> None:
    for ends in ((source, TEMPLATE), (TEMPLATE, source)):
        with pytest.raises(AlignmentError, match=r"(don't have the shape of one|are not all finite)"):
            similarity(*ends)
    square = np.array([[0, 0], [1, 0], [1, 1], [0, 1]])
    with pytest.raises(AlignmentError):  # its mirror image fits as well in any turn
        similarity(square, square[[1, 0, 3, 2]])
    assert issubclass(AlignmentError, FaceAttrError)


# ---------------------------------------------------------------------------------------------------------------------
# The warp
# ---------------------------------------------------------------------------------------------------------------------


def wave(x: NDArray[np.float64], y: NDArray[np.float64], period: float) -> NDArray[np.float64]:
    """Return a picture without detail finer than ``period`` pixels at any places, (..., 3)."""
    x, y = x * 2 * np.pi / period, y * 2 * np.pi / period
    channels = [np.sin(x) * np.cos(0.7 * y), np.cos(0.8 * x + 0.6 * y), np.sin(0.5 * x - 0.9 * y)]
    return 127.5 + 100 * np.stack(channels, axis=-1)


def waves(size: tuple[int, int], period: float) -> NDArray[np.uint8]:
    y, x = np.indices(size).astype(np.float64)
    return np.rint(wave(x, y, period)).astype(np.uint8)


@pytest.mark.parametrize("scale", [0.11, 0.37, 0.8, 1.0, 1.9, 6.3])
@pytest.mark.parametrize("degrees", [0, 25, 90, -160])
def test_each_pixel_comes_from_its_place(scale: float, degrees: float) -> None:
    period = max(12, 20 / scale)
    photo = waves((500, 700), period)
    matrix = turned(scale, degrees)
    matrix[:, 2] = [24.5, 19.5] - matrix[:, :2] @ [350, 240]
    found = warp(photo, matrix, (40, 50))
    y, x = np.indices((40, 50))
    places = np.linalg.solve(matrix[:, :2], np.stack([x.ravel(), y.ravel()]) - matrix[:, 2:])
    error = found - wave(*places, period).reshape(40, 50, 3)
    # Off the edge, at which a filter sees less. PIL's bicubic filter overshoots by 7 % of waves of 12 pixels.
    inside = ((places >= 12 / scale) & (places <= np.array([[699], [499]]) - 12 / scale)).all(axis=0).reshape(40, 50)
    assert inside.sum() > 100 and np.abs(error[inside]).max() < 8 and abs(error[inside].mean()) < 0.3
    # A shift by a fifth of a pixel would be seen.
    for shift in ([0.2, 0], [-0.2, 0], [0, 0.2], [0, -0.2]):
        beside = places + np.linalg.solve(matrix[:, :2], np.array(shift))[:, None]
        shifted = found - wave(*beside, period).reshape(40, 50, 3)
        assert np.abs(shifted[inside]).mean() > np.abs(error[inside]).mean()


def test_the_same_grid_changes_nothing() -> None:
    photo = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    np.testing.assert_array_equal(warp(photo, np.eye(2, 3), (30, 40)), photo)
    moved = warp(photo, np.array([[1.0, 0, -5], [0, 1, -7]]), (20, 30))
    np.testing.assert_array_equal(moved, photo[7:27, 5:35])


@pytest.mark.parametrize("scale", [0.05, 0.2, 0.45])
def test_nothing_aliases(scale: float) -> None:
    y, x = np.indices((1200, 1200))
    board = np.repeat((255 * ((x + y) % 2)).astype(np.uint8)[..., None], 3, axis=2)
    matrix = turned(scale, 13)
    matrix[:, 2] = [19.5, 19.5] - matrix[:, :2] @ [600, 600]
    assert np.abs(warp(board, matrix, (40, 40)).astype(int) - 127.5).max() < 6


@pytest.mark.parametrize("scale", [0.3, 1.0, 2.5])
def test_beyond_the_photo_its_edge_is_continued(scale: float) -> None:
    photo = np.zeros((60, 60, 3), dtype=np.uint8)
    photo[:, :] = [200, 100, 50]
    matrix = turned(scale, 20, (40, 30))
    assert (warp(photo, matrix, (100, 100)) == [200, 100, 50]).all()
    streaks = np.repeat(waves((1, 200), 30), 200, axis=0)
    above = warp(streaks, np.array([[1.0, 0, 0], [0, 1, 50]]), (100, 200))
    np.testing.assert_array_equal(above[:50], above[60:61].repeat(50, axis=0))


def test_outside_of_the_photo() -> None:
    photo = np.zeros((60, 80, 3), dtype=np.uint8)
    for shift in ((200, 0), (-200, 0), (0, 1e6), (0, -200)):
        with pytest.raises(AlignmentError, match=r"outside of its photo of 80 x 60 pixels"):
            warp(photo, turned(1, 0, shift), (50, 50))


def test_sizes_out_of_the_ordinary() -> None:
    photo = waves((60, 80), 20)
    for scale in (1 / 50, 1e4):
        assert warp(photo, turned(scale, 10, (20, 20)), (50, 50)).shape == (50, 50, 3)
    assert warp(waves((20, 5_000), 20), turned(0.1, 0, (0, 20)), (50, 50)).shape == (50, 50, 3)
    # A corner of the photo in a corner of the result, which must not cost more than others.
    tracemalloc.start()
    try:
        assert warp(photo, turned(1 / 50, 0, (49.5, 49.5)), (200, 200)).shape == (200, 200, 3)
        assert warp(photo, turned(1 / 50, 0, (-1.5, -1)), (200, 200)).shape == (200, 200, 3)
        assert tracemalloc.get_traced_memory()[1] < 2e6
    finally:
        tracemalloc.stop()
    with pytest.raises(AlignmentError, match=r"outside of its photo"):
        warp(photo, turned(1e-4, 10, (20, 20)), (50, 50))


# ---------------------------------------------------------------------------------------------------------------------
# Faces
# ---------------------------------------------------------------------------------------------------------------------


def in_crop(landmarks: NDArray[np.floating]) -> NDArray[np.floating]:
    left, top, right, bottom = CROP
    return (landmarks + 0.5 - [left, top]) / [right - left, bottom - top]


def training_image(source: NDArray[np.uint8], image_size: int) -> NDArray[np.uint8]:
    preprocessing = Preprocessing(SIZE, CROP, image_size, (0.0,), (1.0,))
    return preprocessing.images(source[None])[0].permute(1, 2, 0).contiguous().numpy()


@pytest.mark.parametrize("image_size", [64, 128, 178, 224])
def test_an_aligned_image_is_left_as_training_has_it(
    face: tuple[NDArray[np.uint8], NDArray[np.float32]], image_size: int
) -> None:
    image, landmarks = face
    expected = training_image(image, image_size).astype(int)
    found = align(image, landmarks, in_crop(landmarks), CROP_SIZE, image_size)
    assert found.shape == (image_size, image_size, 3) and found.dtype == np.uint8
    # Rounded once more than in training.
    assert np.abs(found - expected).max() <= 2 and np.abs(found - expected).mean() < 0.1
    assert np.abs(crop_aligned(image, SIZE, CROP, image_size) - expected).max() <= 1


@pytest.mark.parametrize("image_size", [128, 224])
@pytest.mark.parametrize("scale", [1.7, 4, 11])
def test_a_large_photo_of_the_face_looks_like_the_training_image(
    face: tuple[NDArray[np.uint8], NDArray[np.float32]], scale: float, image_size: int
) -> None:
    image, landmarks = face
    side = round(260 * scale)
    to_photo = turned(scale, 35)
    to_photo[:, 2] = [side / 2, side / 2] - to_photo[:, :2] @ [89, 109]
    photo = warp(image, to_photo, (side, side))
    found = align(photo, carried(landmarks, to_photo), in_crop(landmarks), CROP_SIZE, image_size).astype(int)
    expected = training_image(image, image_size).astype(int)
    assert np.abs(found - expected).mean() < 2.5
    # As sharp: neither blurred nor finer than what the network knows.
    sharpness = [np.abs(np.diff(pixels, axis=1)).mean() for pixels in (found, expected)]
    assert sharpness[0] == pytest.approx(sharpness[1], rel=0.1)


def test_landmarks_come_to_the_template(face: tuple[NDArray[np.uint8], NDArray[np.float32]]) -> None:
    rng = np.random.default_rng(2)
    # Where a blob was in the photo, and where it is in the crop, of another height than width.
    crop_size = (120, 90)
    for _ in range(10):
        matrix = turned(rng.uniform(2, 5), rng.uniform(-50, 50), (300, 300))
        points = carried(TEMPLATE * crop_size[::-1] - 0.5 - [45, 60], matrix)
        y, x = np.indices((600, 600))
        for point, goal in zip(points, TEMPLATE, strict=True):
            blob = 255 * np.exp(-((x - point[0]) ** 2 + (y - point[1]) ** 2) / (2 * 12**2))
            photo = np.repeat(blob.astype(np.uint8)[..., None], 3, axis=2)
            found = align(photo, points, TEMPLATE, crop_size, 100)[..., 0].astype(float)
            rows, columns = np.indices(found.shape) + 0.5
            centre = np.array([(found * columns).sum(), (found * rows).sum()]) / found.sum() / 100
            assert np.abs(centre - goal).max() < 0.005  # half a pixel


@pytest.mark.parametrize("count", [68, 98])
def test_layouts_of_more_points(face: tuple[NDArray[np.uint8], NDArray[np.float32]], count: int) -> None:
    image, landmarks = face
    template = np.random.default_rng(0).uniform(0, 1, (count, 2))
    for points, goal in zip(FIVE_POINTS[count], in_crop(landmarks), strict=True):
        template[list(points)] += goal - template[list(points)].mean(axis=0)
    found = align(image, landmarks, template.tolist(), CROP_SIZE, 128)
    expected = align(image, landmarks, in_crop(landmarks), CROP_SIZE, 128).astype(int)
    assert np.abs(found - expected).max() <= 1
    with pytest.raises(AlignmentError, match=r"L one of 5, 68, 98, found \(7, 2\)"):
        align(image, template[:7], template, CROP_SIZE, 128)


def test_a_box() -> None:
    photo = waves((400, 500), 80)
    box = np.array([149.5, 119.5, 249.5, 219.5])  # of 100 x 100 pixels
    found = align_box(photo, box, (100, 100), 100, box_to_crop=2.0).astype(int)
    # The crop is of 200 x 200 pixels, and has the box's centre, (200, 170) from the corner, at (0.49, 0.46).
    left, top = 200 - 0.49 * 200, 170 - 0.46 * 200
    expected = Image.fromarray(photo).resize(
        (100, 100), Image.Resampling.LANCZOS, box=(left, top, left + 200, top + 200)
    )
    assert np.abs(found - np.asarray(expected))[3:-3, 3:-3].max() <= 3
    assert align_box(photo, box - 200, (120, 90), 64).shape == (64, 64, 3)  # in a corner
    for bad in ([10, 10, 10, 20], [10, 10, 20, 5], [np.nan, 0, 5, 5], [0, 0, np.inf, 5]):
        with pytest.raises(AlignmentError, match=r"has no area"):
            align_box(photo, np.array(bad), (100, 100), 100)


def test_an_aligned_image_of_another_size() -> None:
    with pytest.raises(AlignmentError, match=r"expected an aligned image of 178 x 218 pixels.*found 218 x 178"):
        crop_aligned(np.zeros((178, 218, 3), dtype=np.uint8), SIZE, CROP, 64)


def test_crops_of_noise_are_those_of_training() -> None:
    rng = np.random.default_rng(4)
    noise = rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    for crop in ((0, 20, 178, 198), (13, 7, 100, 217), (0, 0, 178, 218)):
        for image_size in (32, 87, 224):
            preprocessing = Preprocessing(SIZE, crop, image_size, (0.0,), (1.0,))
            expected = preprocessing.images(noise[None])[0].permute(1, 2, 0).to(torch.int16).numpy()
            assert np.abs(crop_aligned(noise, SIZE, crop, image_size) - expected).max() <= 1


def test_real_faces_are_left_as_training_has_them(real_data: Path) -> None:
    table = read_celeba(real_data / "celeba")
    for row in range(0, len(table), 600):
        image = np.array(Image.open(table.root / table.files[row]).convert("RGB"))
        expected = training_image(image, 128).astype(int)
        assert np.abs(crop_aligned(image, SIZE, CROP, 128) - expected).max() <= 1
        landmarks = table.landmarks[row].reshape(-1, 2)
        assert np.abs(align(image, landmarks, in_crop(landmarks), CROP_SIZE, 128) - expected).max() <= 2
