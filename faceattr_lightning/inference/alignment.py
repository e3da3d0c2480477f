"""Bringing a face of a photo to where a trained network expects it. No torch here.

Coordinates are x then y in pixels, 0 at the centre of the first pixel; templates are fractions of the crop, from corner
to corner, as `faceattr_lightning.data.preprocessing.Preprocessing` has them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from faceattr_lightning.errors import FaceAttrError
from faceattr_lightning.landmarks import FIVE_POINTS, five_points

BOX_TO_CROP = 1.18
"""The side of a crop over that of a square as large as MTCNN's box: its median over 363 images of FairFace, half of
which are within 5 % of it."""

# Where the centre of MTCNN's box is, as fractions of the crop; in FairFace, too.
_BOX_CENTRE = (0.49, 0.46)
_LEAST_FIT = 1e-6
_REDUCING_GAP = 3.0


class AlignmentError(FaceAttrError):
    """A face can't be aligned: its points have no size or lie outside of the photo, or an image is of another size."""


def similarity(source: ArrayLike, target: ArrayLike) -> NDArray[np.float64]:
    """Return the rotation, scaling and shift that carry points nearest to others, without a reflection.

    The least-squares solution of Umeyama (1991, "Least-squares estimation of transformation parameters between two
    point patterns", equations 40 to 42), which in the plane is one complex regression: with z and z' the centred points
    as complex numbers, rotation and scale are sum(conj(z) z') / sum(|z|^2). Points on one line determine it, too.

    Args:
        source: (L, 2), L >= 2.
        target: (L, 2), in any unit.

    Returns:
        float64 (2, 3), M with ``target = M @ (x, y, 1)``.

    Raises:
        AlignmentError: a coordinate is not finite, all points of one side coincide, or no rotation is better than
            another.
    """
    points, goals = _complex(source), _complex(target)
    centred, goals_centred = points - points.mean(), goals - goals.mean()
    spread, goals_spread = np.linalg.norm(centred), np.linalg.norm(goals_centred)
    product = np.vdot(centred, goals_centred)
    if spread == 0 or abs(product) <= _LEAST_FIT * spread * goals_spread:
        raise AlignmentError("the landmarks of a face don't have the shape of one: no turn brings them to a template.")
    turn = product / spread**2
    shift = goals.mean() - turn * points.mean()
    return np.array([[turn.real, -turn.imag, shift.real], [turn.imag, turn.real, shift.imag]])


def align(
    image: NDArray[np.uint8],
    landmarks: NDArray[np.floating],
    template: Sequence[Sequence[float]] | NDArray[np.floating],
    crop_size: tuple[int, int],
    image_size: int,
) -> NDArray[np.uint8]:
    """Cut a face out of a photo such that its five landmarks come to the template's, see `similarity`.

    It looks as the network's training images do: the face is sampled in the resolution that the crop has in the data
    set's aligned images, and then resized as they are. So a face of a large photo is as sharp as theirs, also where
    ``image_size`` is larger than the crop.

    All five points count alike, ours. Without the nose, which moves most as a head turns, faces of CelebA come back
    nearer to where they were, but are answered no better: mean accuracy changes by +0.11 ± 0.16 points there, and on
    LFWA by +0.04 ± 0.09 (measured as ``tests.benchmarks.detect_and_align`` does).

    Args:
        image: uint8 (H, W, 3), RGB.
        landmarks: (L, 2) in pixels of the photo, with L one of 5, 68 and 98; reduced to five by `five_points`.
        template: (L, 2) as fractions of the crop, the same for L.
        crop_size: (height, width) of the crop in pixels of the data set's images.
        image_size: height and width of the network's input in pixels.

    Returns:
        uint8 (image_size, image_size, 3). Beyond the photo its edge is continued, see `warp`.

    Raises:
        AlignmentError: see `similarity` and `warp`.
    """
    matrix = similarity(_five(landmarks), _five(template) * np.array(crop_size[::-1]) - 0.5)
    return _resized(Image.fromarray(warp(image, matrix, crop_size)), image_size)


def align_box(
    image: NDArray[np.uint8],
    box: NDArray[np.floating],
    crop_size: tuple[int, int],
    image_size: int,
    box_to_crop: float = BOX_TO_CROP,
) -> NDArray[np.uint8]:
    """Cut a face out of a photo by its box, for a network whose data set has no landmarks and so no template.

    Ours, and a guess: where such a data set has the face in its crop is not known. By default the crop relates to
    MTCNN's box as FairFace's images do. The head is not turned upright.

    Args:
        image: uint8 (H, W, 3), RGB.
        box: (4,) x1, y1, x2, y2 in pixels of the photo.
        crop_size: (height, width) of the crop in pixels of the data set's images.
        image_size: height and width of the network's input in pixels.
        box_to_crop: the crop's shorter side over the side of a square as large as the box.

    Returns:
        uint8 (image_size, image_size, 3), as that of `align`.

    Raises:
        AlignmentError: the box is empty or not finite, or see `warp`.
    """
    x1, y1, x2, y2 = (float(edge) for edge in box)
    if not (np.isfinite(box).all() and x2 > x1 and y2 > y1):
        raise AlignmentError(f"the box {[x1, y1, x2, y2]} of a face has no area; expected x1 < x2 and y1 < y2.")
    scale = min(crop_size) / (box_to_crop * math.sqrt((x2 - x1) * (y2 - y1)))
    centre = np.array([(x1 + x2) / 2, (y1 + y2) / 2])
    shift = np.array(_BOX_CENTRE) * crop_size[::-1] - 0.5 - scale * centre
    matrix = np.column_stack([np.eye(2) * scale, shift])
    return _resized(Image.fromarray(warp(image, matrix, crop_size)), image_size)


def crop_aligned(
    image: NDArray[np.uint8], source_size: tuple[int, int], crop: tuple[int, int, int, int], image_size: int
) -> NDArray[np.uint8]:
    """Crop and resize an image that is aligned already, as `Preprocessing.images` does, to within a grey level.

    Args:
        image: uint8 (height, width, 3), RGB, of ``source_size``.
        source_size: (height, width) in pixels.
        crop: (left, top, right, bottom) in pixels.
        image_size: height and width of the network's input in pixels.

    Returns:
        uint8 (image_size, image_size, 3).

    Raises:
        AlignmentError: the image is of another size.
    """
    if image.shape[:2] != tuple(source_size):
        (height, width), found = source_size, f"{image.shape[1]} x {image.shape[0]}"
        raise AlignmentError(
            f"expected an aligned image of {width} x {height} pixels, as in training, found {found}; if it is a photo, "
            "its faces have to be detected."
        )
    left, top, right, bottom = crop
    return _resized(Image.fromarray(image[top:bottom, left:right]), image_size)


def warp(image: NDArray[np.uint8], matrix: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Sample a photo on another grid of pixels.

    Where the photo is finer than the grid, it is first shrunk to the grid's scale by Lanczos' filter, so that nothing
    aliases; the rest is bicubic. Of PIL's filters this one gives enlarged and turned images of CelebA back best, and
    as sharp as they were. Beyond the photo its edge is continued, as it is in CelebA's aligned images, of which a
    quarter have the streaks.

    Args:
        image: uint8 (H, W, 3).
        matrix: (2, 3) of a similarity, from pixels of the photo to pixels of the result.
        size: (height, width) of the result in pixels.

    Returns:
        uint8 (height, width, 3).

    Raises:
        AlignmentError: nothing of the result lies in the photo.
    """
    height, width = image.shape[:2]
    # From here on 0 is the corner of the first pixel, as it is for PIL.
    inverse = np.linalg.inv(matrix[:, :2])
    offset = 0.5 - inverse @ (matrix[:, 2] + 0.5)
    scale = math.sqrt(abs(np.linalg.det(inverse)))
    rows, columns = size
    corners = np.array([[0, 0], [columns, 0], [0, rows], [columns, rows]]) @ inverse.T + offset
    # What the filters look at beyond the result.
    margin = 3 * max(scale, 1)
    low, high = corners.min(axis=0) - margin, corners.max(axis=0) + margin
    extent = np.array([width, height])
    # No pixel of the result may cover all of the photo, either.
    if not ((high > 0) & (low < extent) & (extent > scale)).all():
        raise AlignmentError(f"a face lies outside of its photo of {width} x {height} pixels.")
    last = np.minimum(np.ceil(high), extent).astype(int)
    # Of a face that all but lies outside, what remains is at least a pixel of the result.
    first = np.clip(np.floor(low), 0, np.maximum(last - math.ceil(scale), 0)).astype(int)
    last = np.maximum(last, np.minimum(first + math.ceil(scale), extent)).astype(int)
    region = image[first[1] : last[1], first[0] : last[0]]
    shrunk = np.maximum(np.rint((last - first) / max(scale, 1)), 1).astype(int)
    if scale > 1:
        resized = Image.fromarray(region).resize(
            (int(shrunk[0]), int(shrunk[1])), Image.Resampling.LANCZOS, reducing_gap=_REDUCING_GAP
        )
        region = np.asarray(resized)
    step = (last - first) / shrunk
    before = np.maximum(np.ceil((first - low) / step), 0).astype(int)
    after = np.maximum(np.ceil((high - last) / step), 0).astype(int)
    padded = np.pad(region, [(before[1], after[1]), (before[0], after[0]), (0, 0)], mode="edge")
    turned = inverse / step[:, None]
    shift = (offset - first) / step + before
    coefficients = (turned[0, 0], turned[0, 1], shift[0], turned[1, 0], turned[1, 1], shift[1])
    # Of 8 bits PIL would cut the fractions off instead of rounding, which darkens.
    channels = [Image.fromarray(padded[..., channel].astype(np.float32)) for channel in range(3)]
    affine, bicubic = Image.Transform.AFFINE, Image.Resampling.BICUBIC
    sampled = [np.asarray(channel.transform((columns, rows), affine, coefficients, bicubic)) for channel in channels]
    result: NDArray[np.uint8] = np.rint(np.stack(sampled, axis=2).clip(0, 255)).astype(np.uint8)
    return result


def _resized(image: Image.Image, size: int) -> NDArray[np.uint8]:
    # PIL's bilinear filter is antialiased, as torch's is in training; the same size is left as it is.
    return np.array(image.resize((size, size), Image.Resampling.BILINEAR))


def _five(points: Sequence[Sequence[float]] | NDArray[np.floating]) -> NDArray[np.float64]:
    array = np.asarray(points, dtype=np.float64)
    if array.ndim != 2 or array.shape[1:] != (2,) or len(array) not in FIVE_POINTS:
        known = ", ".join(map(str, FIVE_POINTS))
        raise AlignmentError(f"expected landmarks (L, 2) with L one of {known}, found {array.shape}.")
    return five_points(array)  # type: ignore[arg-type,return-value]


def _complex(points: ArrayLike) -> NDArray[np.complex128]:
    array = np.asarray(points, dtype=np.float64)
    if not np.isfinite(array).all():
        raise AlignmentError("the landmarks of a face are not all finite numbers.")
    return array[:, 0] + 1j * array[:, 1]
