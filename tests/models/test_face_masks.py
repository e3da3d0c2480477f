"""Masks of face parts: the template's transform, polygons and areas against independent computations."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from faceattr_lightning.errors import ConfigError
from faceattr_lightning.landmarks import FLIPPED_LANDMARKS
from faceattr_lightning.networks.face_masks import (
    PARTS,
    TEMPLATE_LANDMARKS,
    TEMPLATE_POINTS,
    carry_template,
    draw_masks,
    inside,
    random_masks,
)

SINGLE = [[part] for part in PARTS]
Line = list[tuple[float, float]]


def mirrored(points: Line) -> Line:
    return [(-x, y) for x, y in reversed(points)]


def between(points: Line, shares: list[float]) -> Line:
    """Places along a line, in numbers of its points."""
    places = np.interp(shares, range(len(points)), [x for x, _ in points])
    heights = np.interp(shares, range(len(points)), [y for _, y in points])
    return list(zip(places.tolist(), heights.tolist(), strict=True))


def drawn_face(layout: int) -> Tensor:
    """A drawn face's landmarks (layout, 2), in distances between the eyes from midway between them."""
    five = [(x, y) for x, y, _ in TEMPLATE_POINTS]
    cheek: Line = [(-1.15, -0.1), (-1.14, 0.3), (-1.12, 0.7), (-1.08, 1.0), (-1.0, 1.25)]
    jaw: Line = [*cheek, (-0.85, 1.5), (-0.7, 1.7), (-0.35, 1.95), (0.0, 2.02)]
    jaw += mirrored(jaw[:-1])
    brow: Line = [(-0.95, -0.3), (-0.75, -0.42), (-0.55, -0.45), (-0.35, -0.4), (-0.18, -0.33)]
    bridge: Line = [(0.0, 0.0), (0.0, 0.2), (0.0, 0.42), (0.0, 0.64)]
    base: Line = [(-0.3, 0.75), (-0.15, 0.82), (0.0, 0.86), (0.15, 0.82), (0.3, 0.75)]
    upper_lid: Line = [(-0.75, 0.0), (-0.6, -0.08), (-0.4, -0.08), (-0.25, 0.0)]
    lower_lid: Line = [(-0.25, 0.0), (-0.4, 0.08), (-0.6, 0.08), (-0.75, 0.0)]
    upper_lip: Line = [(-0.43, 1.08), (-0.28, 0.98), (-0.12, 0.93), (0.0, 0.95)]
    lower_lip: Line = [(0.28, 1.2), (0.12, 1.26), (0.0, 1.27), (-0.12, 1.26), (-0.28, 1.2)]
    lips = upper_lip + mirrored(upper_lip[:-1]) + lower_lip
    inner: Line = [(-0.3, 1.08), (-0.15, 1.05), (0.0, 1.06), (0.15, 1.05), (0.3, 1.08)]
    inner += [(0.15, 1.12), (0.0, 1.13), (-0.15, 1.12)]
    if layout == 5:
        return torch.tensor(five)
    if layout == 98:
        jaw = between(jaw, [index / 2 for index in range(33)])
        upper_lid, lower_lid = ([line[0], line[1], *between(line, [1.5]), *line[2:]] for line in (upper_lid, lower_lid))
        under: Line = [(x, y + 0.08) for x, y in between(brow, [3.9, 3, 2, 1])]
        brows = brow + under + mirrored(brow) + mirrored(under)
    else:
        brows = brow + mirrored(brow)
    eyes = upper_lid + lower_lid[1:-1] + mirrored(upper_lid) + mirrored(lower_lid)[1:-1]
    pupils = five[:2] if layout == 98 else []
    return torch.tensor(jaw + brows + bridge + base + eyes + lips + inner + pupils)


def placed(points: Tensor, scale: float = 0.21, angle: float = 0.0, x: float = 0.5, y: float = 0.5) -> Tensor:
    cos, sin = scale * math.cos(angle), scale * math.sin(angle)
    return points[..., :2] @ torch.tensor([[cos, sin], [-sin, cos]]) + torch.tensor([x, y])


def iou(first: Tensor, second: Tensor) -> float:
    return float((first & second).sum() / (first | second).sum())


def test_the_template_is_carried_exactly_by_a_similarity_transform() -> None:
    five, points = torch.tensor(TEMPLATE_POINTS), torch.randn(20, 3)
    transforms = [{"scale": 1.0, "x": 0.0, "y": 0.0}, {"scale": 0.3, "angle": 2.1, "x": 0.7, "y": -0.2}]
    faces = torch.stack([placed(five, **transform) for transform in transforms])
    expected = torch.stack([placed(points, **transform) for transform in transforms])
    torch.testing.assert_close(carry_template(points, faces), expected, atol=1e-5, rtol=0)


def test_a_turned_head_shifts_the_template_by_depth() -> None:
    five, points = torch.tensor(TEMPLATE_POINTS), torch.randn(20, 3)
    turn = torch.tensor([0.08, -0.03])
    expected = placed(points, angle=0.4) + points[:, 2:] * turn
    found = carry_template(points, (placed(five, angle=0.4) + five[:, 2:] * turn)[None])
    torch.testing.assert_close(found[0], expected, atol=1e-5, rtol=0)


def test_the_template_of_any_five_points_against_real_least_squares() -> None:
    template, points = np.array(TEMPLATE_POINTS), np.random.default_rng(0).normal(size=(7, 3))
    faces = np.random.default_rng(1).random((3, 5, 2))

    def design(places: NDArray[np.float64]) -> NDArray[np.float64]:
        """Rows of x, then rows of y; columns: cos, sin, shift by depth in x and y, shift in x and y."""
        (x, y, depth), one, zero = places.T, np.ones(len(places)), np.zeros(len(places))
        right = np.stack([x, -y, depth, zero, one, zero], axis=1)
        down = np.stack([y, x, zero, depth, zero, one], axis=1)
        return np.concatenate([right, down])

    for face, found in zip(faces, carry_template(torch.tensor(points), torch.tensor(faces)), strict=True):
        solution = np.linalg.lstsq(design(template), np.concatenate([face[:, 0], face[:, 1]]), rcond=None)[0]
        expected = (design(points) @ solution).reshape(2, -1).T
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-9)


def test_inside_against_counting_crossings_of_each_pixel() -> None:
    generator, size = torch.Generator().manual_seed(0), 17
    polygons = 1.6 * torch.rand(6, 7, 2, generator=generator, dtype=torch.float64) - 0.3
    found = inside(polygons, size)
    for polygon, mask in zip(polygons.tolist(), found, strict=True):
        for row in range(size):
            for column in range(size):
                x, y = (column + 0.5) / size, (row + 0.5) / size
                # A ray downwards, where the drawer looks to the left.
                crossings = sum(
                    (x1 > x) != (x2 > x) and y1 + (x - x1) / (x2 - x1) * (y2 - y1) > y
                    for (x1, y1), (x2, y2) in zip(polygon, polygon[1:] + polygon[:1], strict=True)
                )
                assert bool(mask[row, column]) == (crossings % 2 == 1)


def test_a_square_by_hand() -> None:
    square = torch.tensor([[[0.25, 0.25], [0.75, 0.25], [0.75, 0.5], [0.25, 0.5]]])
    assert inside(square, 4)[0].tolist() == [[False] * 4, [False, True, True, False], [False] * 4, [False] * 4]


@pytest.mark.parametrize("layout", [5, 68, 98])
def test_the_landmarks_of_a_part_lie_in_its_mask(layout: int) -> None:
    size = 100
    masks = dict(zip(PARTS, draw_masks(placed(drawn_face(layout))[None], SINGLE, size)[0], strict=True))
    places = {
        "mouth": [(0.0, 1.1), (-0.4, 1.08), (0.4, 1.08)],
        "nose": [(0.0, 0.3), (0.0, 0.64)],
        "eyes": [(-0.5, 0.0), (0.5, 0.0), (-0.5, -0.35), (0.5, 0.17)],
        "cheeks": [(-0.75, 0.6), (0.75, 0.6)],
        "lower_face": [(0.0, 0.9), (0.0, 1.8), (-0.8, 1.3), (0.0, 2.3)],
        "ear": [(-1.25, 0.4), (1.25, 1.2)],
        "hair": [(0.0, -1.5), (-1.5, 1.0), (1.3, -0.8)],
    }
    for part, points in places.items():
        columns, rows = (placed(torch.tensor(points)) * size).long().unbind(dim=1)
        assert masks[part][rows, columns].all(), part
        assert masks["object"][rows, columns].all()
    assert not masks["hair"][52, 50] and not masks["lower_face"][50, 50] and not masks["eyes"][74, 50]
    union = torch.stack([masks[part] for part in PARTS if part != "object"]).any(dim=0)
    assert masks["object"].equal(union)


@pytest.mark.parametrize("layout", [68, 98])
def test_many_landmarks_and_five_draw_much_the_same(layout: int) -> None:
    many = draw_masks(placed(drawn_face(layout))[None], SINGLE, 100)[0]
    few = draw_masks(placed(drawn_face(5))[None], SINGLE, 100)[0]
    agreement = {part: iou(first, second) for part, first, second in zip(PARTS, many, few, strict=True)}
    assert min(agreement.values()) > 0.5, agreement


def test_98_points_and_68_of_one_face_draw_the_same() -> None:
    faces = [draw_masks(placed(drawn_face(layout))[None], SINGLE, 100)[0] for layout in (68, 98)]
    assert min(iou(first, second) for first, second in zip(*faces, strict=True)) > 0.85


@pytest.mark.parametrize("layout", [5, 68, 98])
def test_mirrored_landmarks_draw_mirrored_masks(layout: int) -> None:
    noise = 0.02 * torch.randn(layout, 2, generator=torch.Generator().manual_seed(layout))
    face = placed(drawn_face(layout), angle=0.2) + noise
    flipped = face[list(FLIPPED_LANDMARKS[layout])] * torch.tensor([-1, 1]) + torch.tensor([1, 0])
    masks = draw_masks(torch.stack([face, flipped]), SINGLE, 90)
    # Up to rounding where an edge runs through a pixel's centre.
    assert (masks[0].flip(-1) != masks[1]).sum() <= 10


@pytest.mark.parametrize("layout", [5, 68, 98])
def test_turned_landmarks_draw_turned_masks(layout: int) -> None:
    face = placed(drawn_face(layout), scale=0.15)
    turned = torch.stack([face[:, 1], 1 - face[:, 0]], dim=1)
    masks = draw_masks(torch.stack([face, turned]), SINGLE, 90)
    assert (masks[0].rot90(1, (-2, -1)) != masks[1]).sum() <= 20


def test_the_far_ear_of_a_turned_head_is_hidden() -> None:
    five = torch.tensor(TEMPLATE_POINTS)
    ear = draw_masks((placed(five) + five[:, 2:] * torch.tensor([-0.08, 0.0]))[None], [["ear"]], 100)[0, 0]
    assert ear[:, :50].sum() < 0.2 * ear[:, 50:].sum()


def test_masks_unite_parts_and_faces_do_not_depend_on_each_other() -> None:
    faces = placed(drawn_face(68)) + 0.02 * torch.randn(3, 68, 2, generator=torch.Generator().manual_seed(0))
    united = draw_masks(faces, [["mouth", "nose"], ["hair"], ["object", "eyes"]], 50)
    assert united.dtype == torch.bool and united.shape == (3, 3, 50, 50)
    for face, masks in zip(faces, united, strict=True):
        single = dict(zip(PARTS, draw_masks(face[None], SINGLE, 50)[0], strict=True))
        assert masks[0].equal(single["mouth"] | single["nose"])
        assert masks[1].equal(single["hair"])
        assert masks[2].equal(single["object"])


def test_unknown_landmarks_draw_nothing_and_do_no_harm() -> None:
    assert not draw_masks(torch.zeros(1, 5, 2), SINGLE, 20).any()
    draw_masks(torch.full((1, 98, 2), 7.0), SINGLE, 20)


def test_default_landmarks_are_where_celeba_has_them() -> None:
    pixels = torch.tensor(TEMPLATE_LANDMARKS) * 178 + torch.tensor([0, 20]) - 0.5
    mean = torch.tensor([[69.6, 111.2], [107.6, 111.2], [88.0, 135.5], [72.5, 152.2], [105.2, 152.2]])
    assert (pixels - mean).abs().max() < 1


@pytest.mark.parametrize(
    ("landmarks", "parts", "message"),
    [
        (7, SINGLE, "7 landmarks are a landmark layout that a mask drawer does not know; it knows 5, 68, 98"),
        (5, [["moth"], ["hair"]], "'moth' is no part of a face; .* Did you mean 'mouth'"),
        (5, [["hair"], []], "mask 1 unites no part"),
    ],
)
def test_what_can_not_be_drawn(landmarks: int, parts: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        draw_masks(torch.zeros(1, landmarks, 2), parts, 8)


def test_random_masks_have_the_same_areas() -> None:
    masks = draw_masks(torch.tensor(TEMPLATE_LANDMARKS)[None], SINGLE, 64)[0]
    masks = torch.cat([masks, torch.zeros(1, 64, 64, dtype=torch.bool), torch.ones(1, 64, 64, dtype=torch.bool)])
    blobs = random_masks(masks, seed=3)
    assert blobs.dtype == torch.bool
    assert blobs.sum(dim=(1, 2)).equal(masks.sum(dim=(1, 2)))
    assert blobs.equal(random_masks(masks, seed=3)) and not blobs.equal(random_masks(masks, seed=4))
    assert random_masks(masks.float(), seed=3).equal(blobs.float())
    # A blob has few edges: of pixels thrown at random, almost each would have some.
    edges = (blobs[:8, 1:] != blobs[:8, :-1]).sum(dim=(1, 2)) + (blobs[:8, :, 1:] != blobs[:8, :, :-1]).sum(dim=(1, 2))
    circumference = 4 * 2 * (blobs[:8].sum(dim=(1, 2)) / math.pi).sqrt()
    assert (edges < 2.5 * circumference).all()
