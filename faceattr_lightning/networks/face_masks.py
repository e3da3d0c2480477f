"""Binary masks of the parts of a face, drawn from its landmarks.

Published (MGMTN, Gao et al., arXiv 2601.01408): a keypoint model's 98 points yield mask annotations of eight parts,
`PARTS`, of which the object is the union of all. Ours: every polygon here; that 68 points do too; that five points
carry a template face; and the random masks of the ablation.

Coordinates are fractions of the crop, x to the right, y down, from corner to corner: the centre of pixel i is at
(i + 0.5) / size. Left and right are the image's.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from faceattr_lightning.errors import ConfigError, did_you_mean
from faceattr_lightning.landmarks import FIVE_POINTS

Points = tuple[tuple[float, float], ...]

PARTS = ("mouth", "ear", "lower_face", "cheeks", "nose", "eyes", "hair", "object")
"""The parts that a mask may unite. Published; object is the union of the others."""


def _mirrored(points: Points) -> Points:
    return tuple((-x, y) for x, y in points)


def _both(left: Points) -> tuple[Points, Points]:
    return left, _mirrored(left)


def _symmetric(left: Points) -> Points:
    """Return the polygon whose left half runs along these points."""
    return left + _mirrored(left)[::-1]


def _ellipse(x: float, y: float, rx: float, ry: float, corners: int = 24) -> Points:
    angles = [2 * math.pi * corner / corners for corner in range(corners)]
    return tuple((x + rx * math.cos(angle), y + ry * math.sin(angle)) for angle in angles)


TEMPLATE_POINTS = (
    (-0.5, 0.0, -0.03),
    (0.5, 0.0, -0.03),
    (0.0, 0.64, 0.65),
    (-0.43, 1.08, 0.19),
    (0.43, 1.08, 0.19),
)
"""The template face's five points, in CelebA's order: x, y and depth towards the viewer. Their unit is the distance
between the eyes, their origin lies midway between them. x and y are the mean of CelebA's aligned faces, made symmetric.
"""

_EYE_DISTANCE, _CENTRE = 38 / 178, (0.5, 91.7 / 178)
TEMPLATE_LANDMARKS: Points = tuple(
    (_CENTRE[0] + _EYE_DISTANCE * x, _CENTRE[1] + _EYE_DISTANCE * y) for x, y, _ in TEMPLATE_POINTS
)
"""(5, 2) fractions of the crop: where CelebA's aligned faces have the five points on average, in the crop
[0, 20, 178, 198]; for data without landmarks.
"""

# The outline is drawn once, for whatever it bounds or hides.
_JAWLINE: Points = ((-1.12, 0.7), (-1.0, 1.25), (-0.7, 1.7), (-0.35, 1.95), (0.0, 2.02))
_HAIRLINE: Points = ((0.0, -0.85), (-0.7, -0.75), (-1.0, -0.5), (-1.15, -0.1))

# Looked at over CelebA's faces. Generous where an attribute of a part lies beside it: brows and glasses around the
# eyes, earrings below the ears, necktie and necklace below the chin, hats and long hair around the head.
_TEMPLATE: dict[str, tuple[Points, ...]] = {
    "mouth": (_ellipse(0.0, 1.1, 0.6, 0.32),),
    "ear": _both(((-1.0, -0.15), (-1.3, -0.25), (-1.48, 0.1), (-1.4, 0.6), (-1.35, 1.35), (-1.0, 1.35), (-1.02, 0.6))),
    "jaw": (
        _symmetric(
            ((0.0, 0.78), (-0.4, 0.8), (-0.72, 1.0), (-0.9, 0.6), (-0.98, -0.1), (-1.15, -0.1), *_JAWLINE),
        ),
    ),
    "neck": (_symmetric(((0.0, 1.6), (-0.8, 1.2), (-0.85, 2.0), (-1.1, 2.6), (0.0, 2.8))),),
    "cheeks": _both(_ellipse(-0.68, 0.62, 0.34, 0.38)),
    "nose": (_symmetric(((0.0, -0.05), (-0.14, 0.0), (-0.22, 0.4), (-0.38, 0.66), (-0.3, 0.84), (0.0, 0.9))),),
    "eyes": _both(_ellipse(-0.53, -0.06, 0.46, 0.38)),
    "hair": (
        _symmetric(
            (
                (0.0, -2.05),
                (-0.6, -1.95),
                (-1.15, -1.55),
                (-1.5, -0.9),
                (-1.65, 0.0),
                (-1.7, 1.7),
                (-1.15, 1.7),
                *_HAIRLINE[::-1],
            )
        ),
    ),
    "face": (_symmetric(_HAIRLINE + _JAWLINE),),
}

# How far a piece, where it crosses the middle, stands out towards the viewer. The head recedes from there as x squared.
_PROTRUSION = {
    "mouth": 0.2,
    "ear": -0.7,
    "jaw": 0.0,
    "neck": -0.7,
    "cheeks": 0.05,
    "nose": 0.35,
    "eyes": 0.05,
    "hair": -0.6,
    "face": 0.0,
}
_BEND = 0.3

_HIDDEN_BY_THE_FACE = ("ear", "hair")

_PIECES: dict[str, tuple[str, ...]] = {part: (part,) for part in PARTS} | {
    "lower_face": ("jaw", "neck"),
    "object": tuple(piece for piece in _TEMPLATE if piece != "face"),
}


# For each layout of `faceattr_lightning.landmarks` and each piece the indices of its polygons' corners; a piece without
# polygons is taken from the template.
_POLYGONS: dict[int, dict[str, tuple[tuple[int, ...], ...]]] = {
    5: {},
    # iBUG's order: along the jaw, brows and bridge, around the eyes and lips from their left corner.
    68: {
        "mouth": (tuple(range(48, 60)),),
        "jaw": ((*range(17), 54, 35, 34, 33, 32, 31, 48),),
        "cheeks": ((1, 2, 3, 48, 31, 40, 41), (15, 14, 13, 54, 35, 47, 46)),
        "nose": ((27, 39, 31, 32, 33, 34, 35, 42),),
        "eyes": ((17, 18, 19, 20, 21, 39, 40, 41, 36), (26, 25, 24, 23, 22, 42, 47, 46, 45)),
    },
    # WFLW's order: twice as many points along the jaw; brows by their upper edge first.
    98: {
        "mouth": (tuple(range(76, 88)),),
        "jaw": ((*range(33), 82, 59, 58, 57, 56, 55, 76),),
        "cheeks": ((2, 3, 4, 5, 6, 76, 55, 65, 66), (30, 29, 28, 27, 26, 82, 59, 75, 74)),
        "nose": ((51, 64, 55, 56, 57, 58, 59, 68),),
        "eyes": ((33, 34, 35, 36, 37, 64, 65, 66, 67, 60), (46, 45, 44, 43, 42, 68, 75, 74, 73, 72)),
    },
}

# Landmarks lie on the edge of a part; what belongs to it, as bags under the eyes do, lies a little beyond.
_GROWTH = {"mouth": 1.25, "nose": 1.2, "eyes": 1.45}


def check_parts(parts: Sequence[Sequence[str]]) -> None:
    """Raise a ConfigError that names every mask without a part and every name that is not one of `PARTS`."""
    problems = [
        f"masks: mask {mask} unites no part; name some of {', '.join(PARTS)}."
        for mask, names in enumerate(parts)
        if not names
    ]
    problems += [
        f"masks: '{name}' is no part of a face; expected some of {', '.join(PARTS)}.{did_you_mean(name, PARTS)}"
        for names in parts
        for name in names
        if name not in PARTS
    ]
    if problems:
        raise ConfigError(problems)


def check_layout(landmarks: int) -> None:
    """Raise a ConfigError unless masks can be drawn from so many landmarks."""
    if landmarks not in _POLYGONS:
        known = ", ".join(str(count) for count in _POLYGONS)
        raise ConfigError(
            [
                f"data: {landmarks} landmarks are a landmark layout that a mask drawer does not know; "
                f"it knows {known} (CelebA, iBUG, WFLW)."
            ]
        )


def draw_masks(landmarks: Tensor, parts: Sequence[Sequence[str]], size: int) -> Tensor:
    """Draw masks of unions of parts for each face.

    Five landmarks carry the template, see `carry_template`. More of them are the corners of the parts' polygons
    (even-odd rule); hair, ears and neck, which have no points, are still the template's. Parts may overlap.

    Args:
        landmarks: float (B, L, 2), fractions of the crop; L is 5 (CelebA's order), 68 (iBUG) or 98 (WFLW). All of a
            face's have to be known: what is drawn from zeros means nothing.
        parts: for each of K masks the `PARTS` that it unites.
        size: height and width of the masks in pixels.

    Returns:
        bool (B, K, size, size), whether a pixel's centre lies inside.

    Raises:
        ConfigError: see `check_parts` and `check_layout`.
    """
    check_parts(parts)
    check_layout(landmarks.shape[1])
    points = landmarks.float()
    corners = _POLYGONS[points.shape[1]]
    five = torch.stack([points[:, list(indices)].mean(dim=1) for indices in FIVE_POINTS[points.shape[1]]], dim=1)

    def draw(piece: str) -> Tensor:
        if piece in corners:
            growth = _GROWTH.get(piece, 1.0)
            polygons = [_grown(points[:, list(indices)], growth) for indices in corners[piece]]
        else:
            depth = _PROTRUSION[piece]
            solids = [[(x, y, depth - _BEND * x**2) for x, y in polygon] for polygon in _TEMPLATE[piece]]
            polygons = [carry_template(five.new_tensor(solid), five) for solid in solids]
        return _union(inside(polygon, size) for polygon in polygons)

    pieces = [{piece for part in names for piece in _PIECES[part]} for names in parts]
    drawn = {piece: draw(piece) for piece in sorted(set().union(*pieces))}
    hidden = [piece for piece in _HIDDEN_BY_THE_FACE if piece in drawn]
    if hidden:
        not_face = ~draw("face")
        drawn |= {piece: drawn[piece] & not_face for piece in hidden}
    return torch.stack([_union(drawn[piece] for piece in sorted(names)) for names in pieces], dim=1)


def carry_template(points: Tensor, five: Tensor) -> Tensor:
    """Move points of the template face to faces, by what carries its five points nearest to theirs.

    That is a similarity transform and, for a head that is turned, a shift in proportion to depth (ours; by a similarity
    transform alone ears and hair lie far beside a turned head). With places as complex numbers p and depth d it is
    p -> a p + w d + b; a, w and b are the least squares solution over the five points.

    Args:
        points: float (V, 3), x, y and depth as `TEMPLATE_POINTS` have them.
        five: float (B, 5, 2), fractions of the crop, in CelebA's order.

    Returns:
        float (B, V, 2), fractions of the crop.
    """
    target = torch.view_as_complex(five.contiguous())[..., None]
    coefficients = torch.linalg.pinv(_basis(five.new_tensor(TEMPLATE_POINTS))) @ target
    return torch.view_as_real((_basis(points) @ coefficients).squeeze(dim=-1))


def _basis(points: Tensor) -> Tensor:
    """Return complex (V, 3): what the coefficients a, w and b of `carry_template` multiply."""
    place = torch.view_as_complex(points[:, :2].contiguous())
    return torch.stack([place, points[:, 2].to(place.dtype), torch.ones_like(place)], dim=1)


def inside(polygons: Tensor, size: int) -> Tensor:
    """Return which pixels' centres lie inside each polygon by the even-odd rule.

    Args:
        polygons: float (B, V, 2), corners in order, fractions of the image; they may lie outside of it.
        size: height and width of the image in pixels.

    Returns:
        bool (B, size, size).
    """
    centres = (torch.arange(size, device=polygons.device, dtype=polygons.dtype) + 0.5) / size
    (x, y), (next_x, next_y) = (corners[..., None].unbind(dim=2) for corners in (polygons, polygons.roll(-1, dims=1)))
    crosses = (y <= centres) != (next_y <= centres)
    crossing = torch.where(crosses, x + (centres - y) * (next_x - x) / (next_y - y), torch.inf)
    # With the crossings of each row in order, a search counts those to the left of each pixel; that needs no
    # (B, V, size, size) tensor.
    in_order = crossing.transpose(1, 2).sort(dim=-1).values
    pixels = centres.expand(len(polygons), size, size).contiguous()
    return torch.searchsorted(in_order.contiguous(), pixels, right=True, out_int32=True) % 2 == 1


def random_masks(masks: Tensor, seed: int) -> Tensor:
    """Draw a smooth blob at a random place for each mask, of just as many pixels; for the ablation.

    Args:
        masks: bool or float (K, size, size), 0 or 1.
        seed: the same seed and masks give the same blobs, on every device.

    Returns:
        (K, size, size), of the dtype and on the device of ``masks``.
    """
    count, size = len(masks), masks.shape[-1]
    generator = torch.Generator().manual_seed(seed)
    place = 0.25 + 0.5 * torch.rand(count, 2, 1, 1, generator=generator)
    noise = torch.randn(count, 1, 5, 5, generator=generator)
    areas = masks.flatten(1).bool().sum(dim=1).cpu()
    centres = (torch.arange(size) + 0.5) / size
    x, y = centres[None, None, :] - place[:, 0], centres[None, :, None] - place[:, 1]
    # A disc of the area, whose edge the noise moves in and out.
    squared_radius = (areas / size**2 / math.pi).clamp(min=1e-6).view(-1, 1, 1)
    bumps = functional.interpolate(noise, size=(size, size), mode="bicubic", align_corners=True)[:, 0]
    height = 0.4 * bumps - (x.square() + y.square()) / squared_radius
    ranks = height.flatten(1).argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return (ranks < areas[:, None]).view_as(masks).to(masks)


def _union(masks: Iterable[Tensor]) -> Tensor:
    return functools.reduce(torch.logical_or, masks)


def _grown(polygons: Tensor, factor: float) -> Tensor:
    centre = polygons.mean(dim=1, keepdim=True)
    return centre + factor * (polygons - centre)
