"""Landmark layouts: how many points, what they are called, which change places in a mirror image. No torch here.

A layout is known by its number of points: 5 (CelebA), 68 (iBUG 300-W, in the order of Multi-PIE) and 98 (WFLW). Left
and right are the image's, not the person's.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

LANDMARKS_5: tuple[str, ...] = ("lefteye", "righteye", "nose", "leftmouth", "rightmouth")
"""CelebA's five landmarks in the official order; left means left in the image."""

_POINTS: dict[int, tuple[str, ...]] = {
    5: LANDMARKS_5,
    68: tuple(f"point_{index}" for index in range(68)),
    98: tuple(f"point_{index}" for index in range(98)),
}

LANDMARK_COLUMNS: dict[int, tuple[str, ...]] = {
    count: tuple(f"{name}_{axis}" for name in names for axis in "xy") for count, names in _POINTS.items()
}
"""For each layout the column names of a landmark file. Official for 5; ours for 68 and 98, which have no such file."""

LANDMARK_PARTS: dict[int, dict[str, tuple[int, ...]]] = {
    68: {
        "jaw": tuple(range(17)),
        "left_brow": tuple(range(17, 22)),
        "right_brow": tuple(range(22, 27)),
        "nose": tuple(range(27, 36)),
        "left_eye": tuple(range(36, 42)),
        "right_eye": tuple(range(42, 48)),
        "mouth": tuple(range(48, 68)),
    },
    98: {
        "jaw": tuple(range(33)),
        "left_brow": tuple(range(33, 42)),
        "right_brow": tuple(range(42, 51)),
        "nose": tuple(range(51, 60)),
        "left_eye": tuple(range(60, 68)),
        "right_eye": tuple(range(68, 76)),
        "mouth": tuple(range(76, 96)),
        "left_pupil": (96,),
        "right_pupil": (97,),
    },
}
"""For 68 and 98 points: the indices of the points on each part of the face."""

FIVE_POINTS: dict[int, tuple[tuple[int, ...], ...]] = {
    5: ((0,), (1,), (2,), (3,), (4,)),
    68: (LANDMARK_PARTS[68]["left_eye"], LANDMARK_PARTS[68]["right_eye"], (30,), (48,), (54,)),
    98: (LANDMARK_PARTS[98]["left_eye"], LANDMARK_PARTS[98]["right_eye"], (54,), (76,), (82,)),
}
"""For each layout the indices of the points whose mean is each of `LANDMARKS_5`. Ours: an eye is the mean of the points
around it, in WFLW too, whose pupils follow the gaze.
"""

_MIRROR_PAIRS: dict[int, str] = {
    5: "0-1 3-4",
    68: "0-16 1-15 2-14 3-13 4-12 5-11 6-10 7-9 17-26 18-25 19-24 20-23 21-22 31-35 32-34 36-45 37-44 38-43 39-42 "
    "40-47 41-46 48-54 49-53 50-52 55-59 56-58 60-64 61-63 65-67",
    98: "0-32 1-31 2-30 3-29 4-28 5-27 6-26 7-25 8-24 9-23 10-22 11-21 12-20 13-19 14-18 15-17 33-46 34-45 35-44 36-43 "
    "37-42 38-50 39-49 40-48 41-47 55-59 56-58 60-72 61-71 62-70 63-69 64-68 65-75 66-74 67-73 76-82 77-81 78-80 83-87 "
    "84-86 88-92 89-91 93-95 96-97",
}


def _flipped(count: int) -> tuple[int, ...]:
    flipped = list(range(count))
    for pair in _MIRROR_PAIRS[count].split():
        one, other = map(int, pair.split("-"))
        flipped[one], flipped[other] = other, one
    return tuple(flipped)


FLIPPED_LANDMARKS: dict[int, tuple[int, ...]] = {count: _flipped(count) for count in _POINTS}
"""For a layout of so many landmarks: the index of the landmark that takes each one's place in a mirror image."""


def five_points(landmarks: NDArray[np.float32]) -> NDArray[np.float32]:
    """Reduce landmarks to CelebA's five; see `FIVE_POINTS`.

    Args:
        landmarks: float32 (..., L, 2) with L one of 5, 68 and 98, in any unit.

    Returns:
        float32 (..., 5, 2) in the same unit, in the order of `LANDMARKS_5`; NaN where a point that is needed is NaN.
    """
    means = [landmarks[..., list(points), :].mean(axis=-2) for points in FIVE_POINTS[landmarks.shape[-2]]]
    return np.stack(means, axis=-2)
