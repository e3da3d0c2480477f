"""The landmark layouts, checked against a face that is drawn by the rules of their annotation."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from faceattr_lightning.landmarks import (
    FIVE_POINTS,
    FLIPPED_LANDMARKS,
    LANDMARK_COLUMNS,
    LANDMARK_PARTS,
    five_points,
)

Points = list[tuple[float, float]]


def line(start: tuple[float, float], end: tuple[float, float], count: int) -> Points:
    return [(float(x), float(y)) for x, y in np.linspace(start, end, count)]


def arc(start: float, end: float, count: int, rx: float, ry: float) -> Points:
    """Points below the line between the ears, by angle in degrees from the right over the chin to the left."""
    angles = np.radians(np.linspace(start, end, count))
    return [(float(rx * np.cos(angle)), float(ry * np.sin(angle))) for angle in angles]


def ring(x: float, y: float, rx: float, ry: float, above: int, below: int) -> Points:
    """An eye or a mouth: from its left corner over the top to the right corner and back below, y down."""
    upper = np.radians(np.linspace(180, 360, above + 2))
    lower = np.radians(np.linspace(360, 540, below + 2))[1:-1]
    return [(x + float(rx * np.cos(a)), y + float(ry * np.sin(a))) for a in (*upper, *lower)]


def face(count: int) -> NDArray[np.float32]:
    """A symmetric face around x = 0 whose points stand where the layout has them; left is left in the image."""
    nose = [*line((0, 0), (0, 3), 4), *line((-1, 4), (1, 4), 5)]
    if count == 68:
        points = [
            *arc(180, 0, 17, 8, 10),
            *line((-6, -3), (-2, -2.5), 3), *line((-1.5, -2.4), (-1, -2.2), 2),
            *line((1, -2.2), (1.5, -2.4), 2), *line((2, -2.5), (6, -3), 3),
            *nose,
            *ring(-3, 0, 1, 0.5, 2, 2), *ring(3, 0, 1, 0.5, 2, 2),
            *ring(0, 6, 2, 1, 5, 5), *ring(0, 6, 1.6, 0.4, 3, 3),
        ]  # fmt: skip
    else:
        points = [
            *arc(180, 0, 33, 8, 10),
            *line((-6, -3), (-1, -2.2), 5), *line((-1, -1.9), (-4.5, -2.2), 4),
            *line((1, -2.2), (6, -3), 5), *line((4.5, -2.2), (1, -1.9), 4),
            *nose,
            *ring(-3, 0, 1, 0.5, 3, 3), *ring(3, 0, 1, 0.5, 3, 3),
            *ring(0, 6, 2, 1, 5, 5), *ring(0, 6, 1.6, 0.4, 3, 3),
            (-3, 0.1), (3, 0.1),
        ]  # fmt: skip
    return np.array(points, dtype=np.float32)


@pytest.mark.parametrize("count", [68, 98])
def test_a_mirror_image_has_each_point_where_its_partner_was(count: int) -> None:
    points = face(count)
    assert points.shape == (count, 2)
    mirrored = points * (-1, 1)
    distances = np.linalg.norm(mirrored[:, None] - points, axis=2)
    # The table says which point of the unmirrored face comes to stand where point i was.
    assert tuple(distances.argmin(axis=1).tolist()) == FLIPPED_LANDMARKS[count]
    assert distances.min(axis=1).max() < 1e-5


@pytest.mark.parametrize("count", [5, 68, 98])
def test_flipping_twice_changes_nothing(count: int) -> None:
    flipped = FLIPPED_LANDMARKS[count]
    assert sorted(flipped) == list(range(count))
    assert [flipped[index] for index in flipped] == list(range(count))


@pytest.mark.parametrize("count", [68, 98])
def test_left_and_right_parts_change_places(count: int) -> None:
    parts, points = LANDMARK_PARTS[count], face(count)
    assert sorted(index for indices in parts.values() for index in indices) == list(range(count))
    for name, indices in parts.items():
        other = name.replace("left", "RIGHT").replace("right", "left").replace("RIGHT", "right")
        assert {FLIPPED_LANDMARKS[count][index] for index in indices} == set(parts[other]), name
        if name.startswith("left"):
            assert (points[list(indices), 0] < 0).all(), name


@pytest.mark.parametrize("count", [68, 98])
def test_five_points_of_a_drawn_face(count: int) -> None:
    expected = [(-3, 0), (3, 0), (0, 3), (-2, 6), (2, 6)]
    reduced = five_points(np.stack([face(count), 2 * face(count)]))
    assert reduced.shape == (2, 5, 2) and reduced.dtype == np.float32
    np.testing.assert_allclose(reduced[0], expected, atol=1e-5)
    np.testing.assert_allclose(reduced[1], 2 * np.array(expected), atol=1e-5)


def test_five_points_keep_five_and_know_what_is_missing() -> None:
    five = np.arange(10, dtype=np.float32).reshape(5, 2)
    np.testing.assert_array_equal(five_points(five), five)
    points = face(68)
    points[37] = np.nan
    assert np.isnan(five_points(points)).all(axis=1).tolist() == [True, False, False, False, False]


def test_reducing_and_mirroring_commute() -> None:
    for count in (68, 98):
        points = np.random.default_rng(count).random((count, 2), dtype=np.float32)
        one = five_points(points[list(FLIPPED_LANDMARKS[count])])
        other = five_points(points)[list(FLIPPED_LANDMARKS[5])]
        np.testing.assert_allclose(one, other, atol=1e-6)
        assert len(FIVE_POINTS[count]) == 5


def test_columns() -> None:
    assert LANDMARK_COLUMNS[5][:3] == ("lefteye_x", "lefteye_y", "righteye_x")
    assert LANDMARK_COLUMNS[98][-2:] == ("point_97_x", "point_97_y")
    assert [len(columns) for columns in LANDMARK_COLUMNS.values()] == [10, 136, 196]
