"""Drawn faces: portraits made by our own code from a seed, for a first training run without any download.

`sample_people` draws labels whose frequencies and correlations are like CelebA's; `draw_face` paints the portrait that
a row describes. Only aggregate figures of CelebA are used (how often, how correlated); no row and no picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from math import cos, pi, sin
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from faceattr_lightning.attributes import CELEBA_ATTRIBUTES

IMAGE_SIZE = (218, 178)
"""Height and width in pixels, those of CelebA's aligned images."""

NOT_DRAWN_ATTRIBUTES: tuple[str, ...] = ("Attractive",)
"""Attributes with labels but without a picture of their own; they are guessed from the others."""

DRAWN_ATTRIBUTES: tuple[str, ...] = tuple(name for name in CELEBA_ATTRIBUTES if name not in NOT_DRAWN_ATTRIBUTES)
"""Attributes whose presence changes the picture."""

# ---------------------------------------------------------------------------------------------------------------------
# Labels
# ---------------------------------------------------------------------------------------------------------------------

_MALE_SHARE = 0.419

# Share of CelebA's training images that show the attribute: (of women, of men). `Male` splits the table because so many
# attributes depend on it that one Gaussian copula over all forty can't reach the correlations with it.
_PREVALENCE: dict[str, tuple[float, float]] = {
    "5_o_Clock_Shadow": (0.000, 0.266),
    "Arched_Eyebrows": (0.419, 0.054),
    "Attractive": (0.683, 0.279),
    "Bags_Under_Eyes": (0.101, 0.348),
    "Bald": (0.000, 0.054),
    "Bangs": (0.200, 0.085),
    "Big_Lips": (0.302, 0.156),
    "Big_Nose": (0.101, 0.422),
    "Black_Hair": (0.199, 0.295),
    "Blond_Hair": (0.242, 0.020),
    "Blurry": (0.047, 0.058),
    "Brown_Hair": (0.241, 0.152),
    "Bushy_Eyebrows": (0.071, 0.244),
    "Chubby": (0.012, 0.121),
    "Double_Chin": (0.009, 0.098),
    "Eyeglasses": (0.023, 0.123),
    "Goatee": (0.000, 0.151),
    "Gray_Hair": (0.010, 0.087),
    "Heavy_Makeup": (0.660, 0.003),
    "High_Cheekbones": (0.557, 0.307),
    "Male": (0.000, 1.000),
    "Mouth_Slightly_Open": (0.525, 0.424),
    "Mustache": (0.000, 0.097),
    "Narrow_Eyes": (0.112, 0.121),
    "No_Beard": (0.999, 0.606),
    "Oval_Face": (0.330, 0.219),
    "Pale_Skin": (0.056, 0.025),
    "Pointy_Nose": (0.357, 0.163),
    "Receding_Hairline": (0.053, 0.118),
    "Rosy_Cheeks": (0.109, 0.003),
    "Sideburns": (0.000, 0.134),
    "Smiling": (0.538, 0.399),
    "Straight_Hair": (0.187, 0.239),
    "Wavy_Hair": (0.447, 0.143),
    "Wearing_Earrings": (0.310, 0.016),
    "Wearing_Hat": (0.025, 0.083),
    "Wearing_Lipstick": (0.804, 0.007),
    "Wearing_Necklace": (0.196, 0.018),
    "Wearing_Necktie": (0.000, 0.174),
    "Young": (0.882, 0.636),
}

# Correlations of the latent normals within a sex, fitted so that the labels' correlations come out like CelebA's
# after the exclusions below; pairs that are not listed are left at zero.
_LATENT_CORRELATION: dict[tuple[str, str], float] = {
    ("5_o_Clock_Shadow", "No_Beard"): -0.67,
    ("5_o_Clock_Shadow", "Young"): 0.43,
    ("Arched_Eyebrows", "Attractive"): 0.22,
    ("Arched_Eyebrows", "Big_Lips"): 0.35,
    ("Arched_Eyebrows", "Heavy_Makeup"): 0.50,
    ("Arched_Eyebrows", "Rosy_Cheeks"): 0.35,
    ("Arched_Eyebrows", "Wearing_Earrings"): 0.30,
    ("Arched_Eyebrows", "Wearing_Lipstick"): 0.56,
    ("Attractive", "Big_Nose"): -0.37,
    ("Attractive", "Blurry"): -0.73,
    ("Attractive", "Bushy_Eyebrows"): 0.40,
    ("Attractive", "Chubby"): -0.62,
    ("Attractive", "Eyeglasses"): -0.55,
    ("Attractive", "Gray_Hair"): -0.56,
    ("Attractive", "Heavy_Makeup"): 0.76,
    ("Attractive", "Oval_Face"): 0.37,
    ("Attractive", "Pointy_Nose"): 0.31,
    ("Attractive", "Receding_Hairline"): -0.41,
    ("Attractive", "Wearing_Lipstick"): 0.81,
    ("Attractive", "Young"): 0.74,
    ("Bags_Under_Eyes", "Big_Nose"): 0.53,
    ("Bags_Under_Eyes", "Double_Chin"): 0.40,
    ("Bags_Under_Eyes", "Heavy_Makeup"): -0.43,
    ("Bags_Under_Eyes", "High_Cheekbones"): 0.41,
    ("Bags_Under_Eyes", "Smiling"): 0.35,
    ("Bags_Under_Eyes", "Wearing_Lipstick"): -0.28,
    ("Bags_Under_Eyes", "Young"): -0.38,
    ("Bald", "Chubby"): 0.50,
    ("Bald", "Double_Chin"): 0.48,
    ("Bald", "Young"): -0.55,
    ("Big_Lips", "Big_Nose"): 0.34,
    ("Big_Nose", "Chubby"): 0.61,
    ("Big_Nose", "Double_Chin"): 0.66,
    ("Big_Nose", "High_Cheekbones"): 0.50,
    ("Big_Nose", "No_Beard"): -0.16,
    ("Big_Nose", "Receding_Hairline"): 0.40,
    ("Big_Nose", "Smiling"): 0.52,
    ("Big_Nose", "Young"): -0.45,
    ("Black_Hair", "Bushy_Eyebrows"): 0.47,
    ("Black_Hair", "Young"): 0.28,
    ("Blond_Hair", "Heavy_Makeup"): 0.15,
    ("Blond_Hair", "Wearing_Lipstick"): 0.19,
    ("Blurry", "Heavy_Makeup"): -0.61,
    ("Blurry", "Wearing_Lipstick"): -0.59,
    ("Bushy_Eyebrows", "Young"): 0.44,
    ("Chubby", "Double_Chin"): 0.97,
    ("Chubby", "Gray_Hair"): 0.46,
    ("Chubby", "Receding_Hairline"): 0.40,
    ("Chubby", "Young"): -0.58,
    ("Double_Chin", "Gray_Hair"): 0.64,
    ("Double_Chin", "Receding_Hairline"): 0.44,
    ("Double_Chin", "Wearing_Necktie"): 0.41,
    ("Double_Chin", "Young"): -0.71,
    ("Eyeglasses", "Young"): -0.47,
    ("Goatee", "Mustache"): 0.39,
    ("Goatee", "Sideburns"): 0.43,
    ("Gray_Hair", "Receding_Hairline"): 0.59,
    ("Gray_Hair", "Wearing_Necktie"): 0.49,
    ("Gray_Hair", "Young"): -0.97,
    ("Heavy_Makeup", "High_Cheekbones"): 0.36,
    ("Heavy_Makeup", "Oval_Face"): 0.46,
    ("Heavy_Makeup", "Pointy_Nose"): 0.37,
    ("Heavy_Makeup", "Rosy_Cheeks"): 0.62,
    ("Heavy_Makeup", "Wavy_Hair"): 0.32,
    ("Heavy_Makeup", "Wearing_Earrings"): 0.27,
    ("Heavy_Makeup", "Wearing_Lipstick"): 0.96,
    ("Heavy_Makeup", "Young"): 0.28,
    ("High_Cheekbones", "Mouth_Slightly_Open"): 0.72,
    ("High_Cheekbones", "Oval_Face"): 0.51,
    ("High_Cheekbones", "Rosy_Cheeks"): 0.66,
    ("High_Cheekbones", "Smiling"): 0.97,
    ("High_Cheekbones", "Wearing_Earrings"): 0.37,
    ("High_Cheekbones", "Wearing_Lipstick"): 0.43,
    ("Mouth_Slightly_Open", "Smiling"): 0.91,
    ("Mustache", "Sideburns"): 0.18,
    ("Oval_Face", "Smiling"): 0.54,
    ("Pointy_Nose", "Wearing_Lipstick"): 0.34,
    ("Receding_Hairline", "Young"): -0.38,
    ("Rosy_Cheeks", "Smiling"): 0.70,
    ("Rosy_Cheeks", "Wearing_Earrings"): 0.31,
    ("Rosy_Cheeks", "Wearing_Lipstick"): 0.49,
    ("Wavy_Hair", "Wearing_Lipstick"): 0.41,
    ("Wearing_Earrings", "Wearing_Lipstick"): 0.26,
    ("Wearing_Lipstick", "Wearing_Necklace"): 0.22,
    ("Wearing_Necktie", "Young"): -0.45,
}

# What the first attribute rules out, in the order of application: a bald head has no hair colour, and so on.
_EXCLUDES: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        "Bald",
        ("Wearing_Hat", "Gray_Hair", "Black_Hair", "Blond_Hair", "Brown_Hair", "Wavy_Hair", "Straight_Hair", "Bangs"),
    ),
    ("Wearing_Hat", ("Receding_Hairline",)),
    ("Receding_Hairline", ("Bangs",)),
    ("Gray_Hair", ("Black_Hair", "Blond_Hair", "Brown_Hair")),
    ("Black_Hair", ("Blond_Hair", "Brown_Hair")),
    ("Blond_Hair", ("Brown_Hair",)),
    ("Wavy_Hair", ("Straight_Hair",)),
    ("No_Beard", ("Goatee", "Mustache", "Sideburns")),
    ("Wearing_Necktie", ("Wearing_Necklace",)),
)

# Share of an attribute's latent variance that all images of one person have in common.
_STABLE, _HABIT, _FLEETING = 0.7, 0.4, 0.05
_FLEETING_ATTRIBUTES = ("Blurry", "High_Cheekbones", "Mouth_Slightly_Open", "Smiling", "Wearing_Hat")
_HABIT_ATTRIBUTES = (
    "5_o_Clock_Shadow",
    "Bags_Under_Eyes",
    "Bangs",
    "Eyeglasses",
    "Heavy_Makeup",
    "Rosy_Cheeks",
    "Straight_Hair",
    "Wavy_Hair",
    "Wearing_Earrings",
    "Wearing_Lipstick",
    "Wearing_Necklace",
    "Wearing_Necktie",
)
_IMAGES_PER_IDENTITY = (12, 28)
_GOLDEN_RATIO = (5**0.5 - 1) / 2
_COLUMN = {name: column for column, name in enumerate(CELEBA_ATTRIBUTES)}


@dataclass
class People:
    """Who is drawn.

    Attributes:
        attributes: int8 (N, 40) in {0, 1}, columns as in `CELEBA_ATTRIBUTES`.
        identity: int64 (N,), 0, 0, ..., 1, 1, ...: the images of one person stand together.
    """

    attributes: NDArray[np.int8]
    identity: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.identity)


def sample_people(count: int, seed: int) -> People:
    """Draw the labels of ``count`` images; a larger ``count`` with the same ``seed`` (>= 0) only adds rows.

    Sex comes first, per identity. Within a sex the other attributes are a Gaussian copula: correlated normals, in part
    shared by the images of an identity, cut at thresholds that give CelebA's frequencies.
    """
    sizes_rng, sex_rng, person_rng, image_rng = (
        np.random.Generator(np.random.Philox(child)) for child in np.random.SeedSequence([seed, 0]).spawn(4)
    )
    smallest, largest = _IMAGES_PER_IDENTITY
    sizes = sizes_rng.integers(smallest, largest + 1, size=count // smallest + 1)
    identity = np.repeat(np.arange(len(sizes), dtype=np.int64), sizes)[:count]
    persons = int(identity[-1]) + 1 if count else 0

    # Steps of the golden ratio spread evenly, so that even a small set has its share of men.
    male = (sex_rng.random() + _GOLDEN_RATIO * np.arange(persons)) % 1.0 < _MALE_SHARE
    factor, shared, threshold = _copula()
    person = person_rng.standard_normal((persons, len(CELEBA_ATTRIBUTES))) @ factor.T
    image = image_rng.standard_normal((count, len(CELEBA_ATTRIBUTES))) @ factor.T
    latent = np.sqrt(shared) * person[identity] + np.sqrt(1.0 - shared) * image
    present = latent > threshold[male.astype(np.int64)][identity]

    present[:, _COLUMN["Male"]] = male[identity]
    for winner, losers in _EXCLUDES:
        present[:, [_COLUMN[loser] for loser in losers]] &= ~present[:, [_COLUMN[winner]]]
    return People(present.astype(np.int8), identity)


@cache
def _copula() -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return the copula: a factor (40, 40) of the correlation, identities' shares (40,), thresholds (2, 40) by sex."""
    correlation = np.eye(len(CELEBA_ATTRIBUTES))
    for (first, second), value in _LATENT_CORRELATION.items():
        i, j = _COLUMN[first], _COLUMN[second]
        correlation[i, j] = correlation[j, i] = value
    # Pairs that were fitted one by one need not fit together: the nearest matrix without negative eigenvalues does.
    values, vectors = np.linalg.eigh(correlation)
    factor = vectors * np.sqrt(values.clip(min=0.0))
    factor /= np.linalg.norm(factor, axis=1, keepdims=True)

    levels = dict.fromkeys(_HABIT_ATTRIBUTES, _HABIT) | dict.fromkeys(_FLEETING_ATTRIBUTES, _FLEETING)
    shared = np.array([levels.get(name, _STABLE) for name in CELEBA_ATTRIBUTES])

    threshold = np.array([[_threshold(name, sex) for name in CELEBA_ATTRIBUTES] for sex in (0, 1)])
    return factor, shared, threshold


def _threshold(name: str, sex: int) -> float:
    """Return the latent value above which an attribute is present in an image of a woman (0) or a man (1)."""
    return -NormalDist().inv_cdf(min(max(_chance(name, sex), 1e-9), 1.0 - 1e-9))


def _chance(name: str, sex: int) -> float:
    """Return an attribute's probability where nothing excludes it, higher than its share to make up for exclusions."""
    open_to_it = 1.0
    for winner, losers in _EXCLUDES:
        if name in losers:
            open_to_it *= 1.0 - _chance(winner, sex)
    return _PREVALENCE[name][sex] / open_to_it


# ---------------------------------------------------------------------------------------------------------------------
# Geometry. A face is laid out upright: x = 0 is its middle, y counts rows of the image. `_Pose` puts it in place.
# ---------------------------------------------------------------------------------------------------------------------

Points = NDArray[np.float64]
Colour = tuple[float, float, float]

_SUPERSAMPLING = 2
_CENTRE = (89.0, 118.0)
_EYE_ROW = 111.0
_BROW_ROW = 97.0
_MOUTH_ROW = 152.0
_HAIRLINE_ROW = 73.0


def _points(*pairs: tuple[float, float]) -> Points:
    return np.array(pairs, dtype=np.float64)


def _moved(points: Points, right: float, down: float) -> Points:
    return points + _points((right, down))


def _mirrored(points: Points) -> Points:
    return points * _points((-1.0, 1.0))


def _symmetric(right: Points) -> Points:
    """Return a closed outline, given its right half from top to bottom (both ends on the middle line)."""
    return np.concatenate([right, _mirrored(right[-2:0:-1])])


@cache
def _spline_weights(steps: int) -> NDArray[np.float64]:
    """Return the Catmull-Rom weights (steps, 4) of four neighbours between the second and the third of them."""
    t = np.arange(steps)[:, None] / steps
    return np.hstack([-t + 2 * t**2 - t**3, 2 - 5 * t**2 + 3 * t**3, t + 4 * t**2 - 3 * t**3, t**3 - t**2]) / 2.0


def _spline(padded: Points, steps: int) -> Points:
    neighbours = np.stack([padded[:-3], padded[1:-2], padded[2:-1], padded[3:]], axis=1)
    return (_spline_weights(steps) @ neighbours).reshape(-1, 2)


def _curve(points: Points, steps: int = 6) -> Points:
    """Return a smooth open curve (m, 2) through the points."""
    smooth = _spline(np.concatenate([points[:1], points, points[-1:]]), steps)
    return np.concatenate([smooth, points[-1:]])


def _loop(points: Points, steps: int = 6) -> Points:
    """Return a smooth closed curve (m, 2) through the points."""
    return _spline(np.concatenate([points[-1:], points, points[:2]]), steps)


_CIRCLE = np.stack([np.cos(np.arange(24) * pi / 12), np.sin(np.arange(24) * pi / 12)], axis=1)


def _oval(x: float, y: float, rx: float, ry: float) -> Points:
    return _CIRCLE * (rx, ry) + (x, y)


def _normals(line: Points) -> Points:
    """Return unit vectors (n, 2) at right angles to the line at each of its points."""
    across = np.gradient(line, axis=0)[:, ::-1] * _points((-1.0, 1.0))
    return across / (np.hypot(across[:, 0], across[:, 1])[:, None] + 1e-9)


def _ribbon(line: Points, width: float, end_width: float | None = None) -> Points:
    """Return the outline of a stroke along a line; the width may change from one end to the other."""
    normal = _normals(line)
    half = np.linspace(width, width if end_width is None else end_width, len(line))[:, None] / 2.0
    return np.concatenate([line + normal * half, (line - normal * half)[::-1]])


def _waved(line: Points, amplitude: float, waves: float, phase: float) -> Points:
    """Return the line with sideways waves, as hair has."""
    normal = _normals(line)
    swing = np.sin(np.linspace(0.0, 2 * pi * waves, len(line)) + 2 * pi * phase)
    return line + normal * amplitude * swing[:, None]


def _between(share: float, low: float, high: float) -> float:
    """Map a draw from [0, 1) to [low, high)."""
    return low + share * (high - low)


def _mix(first: Colour, second: Colour, share: float) -> Colour:
    """Return the colour that is ``share`` of the way from the first to the second."""
    r, g, b = (_between(share, one, other) for one, other in zip(first, second, strict=True))
    return r, g, b


def _shade(colour: Colour, factor: float) -> Colour:
    return colour[0] * factor, colour[1] * factor, colour[2] * factor


def _glow(colour: Colour, share: float) -> Colour:
    """Return the colour lit up: lighter in proportion, so that dark skin gets no chalky spots."""
    red, green, blue = (min(255.0, 1.5 * part + 18.0) for part in colour)
    return _mix(colour, (red, green, blue), share)


def _pick(colours: Sequence[Colour], share: float) -> Colour:
    return colours[int(share * len(colours))]


@dataclass(frozen=True)
class _Pose:
    """Where a face stands in the image: turned about its centre, scaled, shifted, and looking aside a little."""

    angle: float
    scale: float
    shift: tuple[float, float]
    yaw: float

    def place(self, points: Points) -> Points:
        """Return image coordinates (n, 2) of layout points (n, 2); drawing and landmarks both go through here."""
        x, y = points[:, 0], points[:, 1] - _CENTRE[1]
        # The middle of a head is nearest to the viewer, so a turn of the head moves it furthest.
        x = x + self.yaw * np.exp(-((x / 50.0) ** 2) - (y / 60.0) ** 2)
        c, s = self.scale * cos(self.angle), self.scale * sin(self.angle)
        return np.stack(
            [c * x - s * y + _CENTRE[0] + self.shift[0], s * x + c * y + _CENTRE[1] + self.shift[1]], axis=1
        )


class _Canvas:
    """A picture in the making, at `_SUPERSAMPLING` times the final size."""

    def __init__(self, background: Image.Image, pose: _Pose) -> None:
        self.image = background
        self._pen = ImageDraw.Draw(background)
        self._pose = pose

    def fill(
        self, outline: Points, colour: Colour, opacity: float = 1.0, blur: float = 0.0, clip: Points | None = None
    ) -> None:
        """Paint the inside of an outline.

        Args:
            outline: (n, 2) in the face's layout.
            colour: RGB, 0 to 255.
            opacity: 0 to 1.
            blur: standard deviation of a soft edge in pixels.
            clip: another outline, outside of which nothing is painted.
        """
        placed = self._placed(outline)
        ink = (int(colour[0]), int(colour[1]), int(colour[2]))
        if opacity >= 1.0 and not blur and clip is None:
            self._pen.polygon(placed.ravel().tolist(), fill=ink)
            return
        margin = 2.5 * blur * _SUPERSAMPLING + 1.0
        low = np.maximum(np.floor(placed.min(0) - margin), 0).astype(int)
        high = np.minimum(np.ceil(placed.max(0) + margin), self.image.size).astype(int)
        if (high <= low).any():
            return
        mask = self._mask(placed - low, high - low, round(255 * min(opacity, 1.0)))
        if blur:
            mask = mask.filter(ImageFilter.GaussianBlur(blur * _SUPERSAMPLING))
        if clip is not None:
            mask = ImageChops.multiply(mask, self._mask(self._placed(clip) - low, high - low, 255))
        self.image.paste(ink, (int(low[0]), int(low[1]), int(high[0]), int(high[1])), mask)

    def both(
        self, outline: Points, colour: Colour, opacity: float = 1.0, blur: float = 0.0, clip: Points | None = None
    ) -> None:
        """Paint the inside of an outline and its mirror image on the face's other side."""
        self.fill(outline, colour, opacity, blur, clip)
        self.fill(_mirrored(outline), colour, opacity, blur, clip)

    def specks(self, places: Points, colour: Colour) -> None:
        """Paint specks of half a pixel at (n, 2) places."""
        self._pen.point(self._placed(places).ravel().tolist(), fill=(int(colour[0]), int(colour[1]), int(colour[2])))

    def _placed(self, points: Points) -> Points:
        return self._pose.place(points) * _SUPERSAMPLING

    @staticmethod
    def _mask(outline: Points, size: NDArray[np.int64], level: int) -> Image.Image:
        mask = Image.new("L", (int(size[0]), int(size[1])), 0)
        ImageDraw.Draw(mask).polygon(outline.ravel().tolist(), fill=level)
        return mask


# ---------------------------------------------------------------------------------------------------------------------
# What is drawn
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Person:
    """What all images of an identity share: draws from [0, 1) that the features below turn into lengths and colours."""

    width: float
    jaw: float
    chin: float
    eye_distance: float
    eye_size: float
    iris: float
    brow_row: float
    nose_length: float
    nose_width: float
    mouth_width: float
    lips: float
    skin: float
    undertone: float
    hair_tint: float
    hair_shade: float
    hair_volume: float
    hair_length: float
    parting: float
    forehead: float


@dataclass(frozen=True)
class _Shot:
    """What differs from one image of a person to the next: draws from [0, 1)."""

    angle: float
    scale: float
    shift_x: float
    shift_y: float
    yaw: float
    garment: float
    garment_colour: float
    garment_shade: float
    tie_colour: float
    tie_stripes: float
    necklace_colour: float
    necklace_kind: float
    earring_colour: float
    earring_kind: float
    hat_kind: float
    hat_colour: float
    glasses_kind: float
    glasses_colour: float
    sunglasses: float
    lipstick: float
    eyeshadow: float
    gaze: float
    opening: float
    smile: float
    bangs: float
    curls: float
    brow: float
    expression: float
    light_angle: float
    light_strength: float
    gain: float
    warmth: float
    noise: float
    blur: float


_SKINS: tuple[Colour, ...] = (
    (238, 200, 172),
    (224, 178, 146),
    (206, 156, 120),
    (176, 124, 90),
    (138, 92, 66),
    (104, 68, 50),
)
_PALE: Colour = (255, 240, 234)
_IRISES: tuple[Colour, ...] = ((86, 56, 34), (58, 38, 26), (92, 118, 148), (84, 110, 78), (120, 104, 66))
_HAIRS: dict[str, Colour] = {
    "Black_Hair": (30, 26, 30),
    "Blond_Hair": (228, 190, 112),
    "Brown_Hair": (104, 64, 36),
    "Gray_Hair": (176, 177, 182),
}
_OTHER_HAIRS: tuple[Colour, ...] = ((166, 70, 34), (140, 44, 34), (190, 100, 52), (70, 40, 56))
_CLOTHES: tuple[Colour, ...] = (
    (60, 84, 128), (170, 60, 62), (72, 120, 98), (222, 216, 206), (46, 46, 54), (206, 150, 70), (128, 96, 148),
    (110, 150, 190), (226, 150, 150),
)  # fmt: skip
_SUITS: tuple[Colour, ...] = ((44, 48, 62), (70, 72, 80), (34, 34, 38), (92, 78, 66))
_TIES: tuple[Colour, ...] = ((170, 32, 40), (36, 60, 140), (30, 110, 90), (120, 50, 120), (206, 150, 40), (30, 30, 34))
_METALS: tuple[Colour, ...] = ((240, 200, 80), (236, 238, 244), (250, 244, 236), (60, 190, 190), (220, 70, 100))
_LIPSTICKS: tuple[Colour, ...] = ((204, 24, 50), (226, 60, 120), (150, 20, 66), (236, 84, 84))
_EYESHADOWS: tuple[Colour, ...] = ((124, 66, 150), (60, 90, 160), (70, 50, 60), (150, 74, 60))
_FRAMES: tuple[Colour, ...] = ((24, 24, 28), (90, 48, 28), (130, 24, 36), (60, 66, 84))
_HATS: tuple[Colour, ...] = ((184, 52, 50), (46, 66, 120), (52, 52, 56), (60, 110, 80), (214, 190, 146), (230, 180, 60))


@dataclass
class _Face:
    """A face to be drawn: its labels, its person, its shot, and the lengths (pixels) and colours that follow."""

    has: dict[str, bool]
    person: _Person
    shot: _Shot
    half_width: float = field(init=False)
    chin: float = field(init=False)
    outline: Points = field(init=False)
    eye_x: float = field(init=False)
    brow_row: float = field(init=False)
    nose_tip: float = field(init=False)
    nose_width: float = field(init=False)
    mouth_corner: tuple[float, float] = field(init=False)
    skin: Colour = field(init=False)
    hair: Colour = field(init=False)

    def __post_init__(self) -> None:
        has, person = self.has, self.person
        self._shape_head()
        self.eye_x = _between(person.eye_distance, 19.0, 21.0)
        self.brow_row = _BROW_ROW + _between(person.brow_row, -1.5, 1.5)
        self.nose_tip = _between(person.nose_length, 132.5, 136.0) + (1.5 if has["Big_Nose"] else 0.0)
        self.nose_width = _between(person.nose_width, 7.0, 8.3) * (1.75 if has["Big_Nose"] else 1.0)
        width = _between(person.mouth_width, 15.5, 18.0)
        smile = _between(self.shot.smile, 1.5, 3.0)
        self.mouth_corner = (width + smile, _MOUTH_ROW - 0.8 * smile) if has["Smiling"] else (width, _MOUTH_ROW + 0.5)
        self.skin = self._skin_colour()
        self.hair = self._hair_colour()

    @property
    def long_hair(self) -> bool:
        """Whether hair hangs beside the face: with most women, and with few men."""
        return self.person.hair_length < (0.06 if self.has["Male"] else 0.88) and not self.has["Bald"]

    @property
    def full_beard(self) -> bool:
        return not any(self.has[name] for name in ("No_Beard", "Goatee", "Mustache", "Sideburns", "5_o_Clock_Shadow"))

    def landmarks(self) -> Points:
        """Return `LANDMARKS_5` (5, 2) in the layout."""
        corner_x, corner_y = self.mouth_corner
        return _points(
            (-self.eye_x, _EYE_ROW), (self.eye_x, _EYE_ROW), (0.0, self.nose_tip), (-corner_x, corner_y),
            (corner_x, corner_y),
        )  # fmt: skip

    def _shape_head(self) -> None:
        has, person = self.has, self.person
        width = _between(person.width, 43.0, 47.0) + (1.5 if has["Male"] else 0.0)
        cheek, jaw, chin = 0.97, 0.84 + _between(person.jaw, -0.03, 0.03), _between(person.chin, 171.0, 174.0)
        if has["Male"]:
            jaw += 0.05
        if has["Oval_Face"]:
            width, cheek, jaw, chin = width * 0.96, 0.92, jaw - 0.16, chin + 3.5
        if has["Chubby"]:
            width, cheek, jaw = width * 1.07, cheek + 0.09, jaw + 0.13
        right = (
            (0.0, 55.0), (0.56 * width, 60.0), (0.92 * width, 84.0), (width, 112.0), (cheek * width, 138.0),
            (jaw * width, 155.0), (0.56 * jaw * width, chin - 3.0), (0.0, chin),
        )  # fmt: skip
        self.half_width, self.chin = width, chin
        self.outline = _loop(_symmetric(_points(*right)))

    def _skin_colour(self) -> Colour:
        depth = self.person.skin**1.5 * (len(_SKINS) - 1)
        skin = _mix(_SKINS[int(depth)], _SKINS[int(depth) + 1], depth % 1.0)
        skin = _mix(skin, (skin[0], skin[1] * 0.96, skin[2] * 0.9), self.person.undertone)
        return _mix(skin, _PALE, 0.8) if self.has["Pale_Skin"] else skin

    def _hair_colour(self) -> Colour:
        named = [colour for name, colour in _HAIRS.items() if self.has[name]]
        colour = named[0] if named else _pick(_OTHER_HAIRS, self.person.hair_tint)
        return _shade(colour, _between(self.person.hair_shade, 0.88, 1.08))


def draw_face(
    attributes: NDArray[np.int8], identity: int, seed: int, index: int
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Draw one face; the same arguments always give the same picture.

    Args:
        attributes: int8 (40,), 1 where present.
        identity: >= 0; whose face it is, gives the proportions and colours that a person keeps.
        seed: >= 0, of the data set.
        index: >= 0, the image's number; gives pose, clothes, light and noise.

    Returns:
        RGB image, uint8 (218, 178, 3), and `LANDMARKS_5`, float32 (5, 2), x and y in pixels.
    """
    person_rng, shot_rng = _generator(seed, 1, identity), _generator(seed, 2, index)
    person = _Person(*person_rng.random(len(_Person.__dataclass_fields__)).tolist())
    shot = _Shot(*shot_rng.random(len(_Shot.__dataclass_fields__)).tolist())
    face = _Face(dict(zip(CELEBA_ATTRIBUTES, (attributes > 0).tolist(), strict=True)), person, shot)
    pose = _pose(shot)
    canvas = _Canvas(_background(shot_rng), pose)
    for draw in _LAYERS:
        draw(canvas, face)
    _draw_stubble(canvas, face, shot_rng)
    return _photograph(canvas.image, face, shot_rng), pose.place(face.landmarks()).astype(np.float32)


def draw_faces(
    people: People, seed: int, rows: Sequence[int] | NDArray[np.int64]
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Draw the given rows of ``people``: images, uint8 (n, 218, 178, 3), and landmarks, float32 (n, 5, 2)."""
    images = np.empty((len(rows), *IMAGE_SIZE, 3), dtype=np.uint8)
    landmarks = np.empty((len(rows), 5, 2), dtype=np.float32)
    for place, row in enumerate(rows):
        images[place], landmarks[place] = draw_face(people.attributes[row], int(people.identity[row]), seed, int(row))
    return images, landmarks


def _generator(*key: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))


def _pose(shot: _Shot) -> _Pose:
    return _Pose(
        angle=_between(shot.angle, -0.08, 0.08),
        scale=_between(shot.scale, 0.96, 1.04),
        shift=(_between(shot.shift_x, -2.5, 2.5), _between(shot.shift_y, -2.5, 2.5)),
        yaw=_between(shot.yaw, -6.5, 6.5),
    )


def _background(rng: np.random.Generator) -> Image.Image:
    """Return a soft play of two colours with a few shapes out of focus."""
    height, width = (side * _SUPERSAMPLING for side in IMAGE_SIZE)
    base, other = rng.uniform(30, 235, (2, 1)) + rng.uniform(-45, 45, (2, 3))
    share = rng.random((5, 4, 1))
    coarse = (base + share * (other - base)).clip(0, 255).astype(np.uint8)
    small = Image.fromarray(coarse).resize((width // 4, height // 4), Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(small)
    for *place, red, green, blue in rng.random((4, 7)).tolist():
        x, y, rx, ry = place[0] * width / 4, place[1] * height / 6, 4 + 14 * place[2], 4 + 22 * place[3]
        gray = 40 + 120 * (red + green + blue) / 3
        ink = (int(gray + 70 * red), int(gray + 70 * green), int(gray + 70 * blue))
        pen.ellipse((x - rx, y - ry, x + rx, y + ry), fill=ink)
    return small.filter(ImageFilter.GaussianBlur(4.0)).resize((width, height), Image.Resampling.BILINEAR)


def _photograph(drawing: Image.Image, face: _Face, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Take the picture, uint8 (218, 178, 3): sharpness, light from one side, exposure, colour cast and sensor noise."""
    shot = face.shot
    picture = drawing.reduce(_SUPERSAMPLING)
    if face.has["Blurry"]:
        picture = picture.filter(ImageFilter.GaussianBlur(_between(shot.blur, 2.6, 4.0)))
    height, width = IMAGE_SIZE
    across = np.linspace(-1.0, 1.0, width, dtype=np.float32)[None, :, None]
    down = np.linspace(-1.0, 1.0, height, dtype=np.float32)[:, None, None]
    angle, strength = 2 * pi * shot.light_angle, _between(shot.light_strength, 0.0, 0.22)
    warmth = _between(shot.warmth, -0.07, 0.07)
    cast = np.array([1.0 + warmth, 1.0, 1.0 - warmth], dtype=np.float32) * np.float32(_between(shot.gain, 0.82, 1.12))
    light = np.float32(1.0) + np.float32(strength * cos(angle)) * across + np.float32(strength * sin(angle)) * down
    noise = rng.standard_normal((height, width, 3), dtype=np.float32) * np.float32(_between(shot.noise, 1.0, 5.0))
    image: NDArray[np.uint8] = (np.asarray(picture) * (light * cast) + noise).clip(0, 255).astype(np.uint8)
    return image


def _draw_hair_behind(canvas: _Canvas, face: _Face) -> None:
    """Draw what of long hair is behind neck and shoulders, or the bun into which it is tied."""
    if not face.long_hair:
        if not (face.has["Male"] or face.has["Bald"]):
            canvas.fill(_oval(0.0, 42.0, 15.0, 13.0), _shade(face.hair, 0.8))
        return
    width, spread = face.half_width, 14.0 if face.has["Wavy_Hair"] else 6.0
    bottom = _between(face.person.hair_length, 182.0, 214.0)
    side = _curve(_points((0.6 * width, 50.0), (width + 9, 84.0), (width + spread, 130.0), (width + spread, bottom)))
    if face.has["Wavy_Hair"]:
        side = _waved(side, 3.2, 4.0, face.shot.curls)
    canvas.fill(np.concatenate([side, _mirrored(side[::-1])]), _shade(face.hair, 0.72))


def _draw_body(canvas: _Canvas, face: _Face) -> None:
    """Draw neck, shoulders, clothes, and what is worn around the neck."""
    neck = 27.0 if face.has["Male"] else 21.0
    shoulder = 12.0 if face.has["Male"] else 0.0
    half = _points(
        (neck, 150.0), (neck, 176.0), (neck + 12, 186.0), (60.0 + shoulder, 196.0), (92.0, 214.0), (96.0, 250.0)
    )
    side = _curve(half)
    canvas.fill(np.concatenate([side, _mirrored(side[::-1])]), _shade(face.skin, 0.88))
    canvas.fill(_oval(0.0, face.chin - 2, 0.75 * face.half_width, 16.0), _shade(face.skin, 0.62), 0.7, 3.0)

    suit = face.has["Wearing_Necktie"] or (face.has["Male"] and face.shot.garment < 0.3)
    if suit:
        _draw_suit(canvas, face, neck, side)
    else:
        _draw_top(canvas, face, neck, side)
    if face.has["Wearing_Necktie"]:
        _draw_necktie(canvas, face)
    if face.has["Wearing_Necklace"]:
        _draw_necklace(canvas, face, neck)


def _draw_top(canvas: _Canvas, face: _Face, neck: float, side: Points) -> None:
    colour = _shade(_pick(_CLOTHES, face.shot.garment_colour), _between(face.shot.garment_shade, 0.8, 1.05))
    depth = _between(face.shot.garment, 186.0, 196.0) if face.has["Male"] else _between(face.shot.garment, 190.0, 214.0)
    half_way = 0.5 * (183.0 + depth) + 3
    bow = ((-neck - 9, 183.0), (-0.6 * neck, half_way), (0.0, depth), (0.6 * neck, half_way), (neck + 9, 183.0))
    opening = _curve(_points(*bow))
    right = side[side[:, 1] > 184.0]
    canvas.fill(np.concatenate([opening, right, _mirrored(right[::-1])]), colour)
    canvas.fill(_ribbon(opening, 2.0), _shade(colour, 0.75))


def _draw_suit(canvas: _Canvas, face: _Face, neck: float, side: Points) -> None:
    suit = _pick(_SUITS, face.shot.garment_colour)
    shirt = _mix((244, 244, 248), (150, 180, 220), face.shot.garment_shade**2)
    right = side[side[:, 1] > 178.0]
    canvas.fill(np.concatenate([right, _mirrored(right[::-1])]), suit)
    canvas.fill(_points((-neck, 178.0), (neck, 178.0), (8.0, 240.0), (-8.0, 240.0)), shirt)
    canvas.fill(_points((-10.0, 178.0), (10.0, 178.0), (0.0, 196.0)), _shade(face.skin, 0.75))
    canvas.both(
        _points((neck, 176.0), (neck + 3, 182.0), (11.0, 200.0), (1.0, 190.0), (12.0, 181.0)), _shade(shirt, 0.93)
    )
    canvas.both(_points((neck + 2, 180.0), (neck + 12, 184.0), (26.0, 222.0), (7.0, 250.0)), _shade(suit, 1.25))


def _draw_necktie(canvas: _Canvas, face: _Face) -> None:
    colour = _pick(_TIES, face.shot.tie_colour)
    blade = _points((-6.0, 195.0), (6.0, 195.0), (12.0, 240.0), (-12.0, 240.0))
    canvas.fill(blade, colour)
    if face.shot.tie_stripes < 0.5:
        for row in (202.0, 212.0, 222.0):
            stripe = _points((-14.0, row + 4), (14.0, row - 6), (14.0, row - 3), (-14.0, row + 7))
            canvas.fill(stripe, _mix(colour, (255, 255, 255), 0.6), clip=blade)
    canvas.fill(_points((-8.5, 184.0), (8.5, 184.0), (5.5, 196.0), (-5.5, 196.0)), _shade(colour, 0.85))


def _draw_necklace(canvas: _Canvas, face: _Face, neck: float) -> None:
    metal = _pick(_METALS, face.shot.necklace_colour)
    row = _between(face.shot.necklace_kind, 190.0, 194.0)
    half = _points((neck + 2, 176.0), (0.66 * neck, row - 4.5), (0.0, row))
    line = _curve(np.concatenate([_mirrored(half), half[-2::-1]]), 8)
    canvas.fill(_ribbon(_moved(line, 0.0, 1.4), 3.4), _shade(face.skin, 0.5), 0.6)
    if face.shot.necklace_kind < 0.5:
        for x, y in line[::2]:
            canvas.fill(_oval(x, y, 2.3, 2.3), metal)
    else:
        canvas.fill(_ribbon(line, 2.4), metal)
        canvas.fill(_oval(0.0, row + 4, 4.0, 5.0), _shade(metal, 0.92))


def _draw_head(canvas: _Canvas, face: _Face) -> None:
    """Draw ears, the head and its soft shading."""
    width, skin, chin = face.half_width, face.skin, face.chin
    canvas.both(_oval(width + 1.5, 118.0, 6.0, 11.5), _shade(skin, 0.92))
    canvas.both(_oval(width + 2.5, 118.0, 3.0, 7.0), _shade(skin, 0.74))
    if face.has["Double_Chin"]:
        canvas.fill(_oval(0.0, chin - 7, 0.72 * width, 20.0), _shade(skin, 0.5), 0.7, 2.0)
        canvas.fill(_oval(0.0, chin - 9, 0.7 * width, 19.5), _shade(skin, 0.95))
    canvas.fill(face.outline, skin)
    canvas.fill(_oval(0.0, 112.0, 0.62 * width, 48.0), _glow(skin, 0.3), 0.5, 9.0)
    side = _points((0.9 * width, 84.0), (1.0 * width, 118.0), (0.86 * width, 155.0), (0.4 * width, chin))
    canvas.both(_ribbon(_curve(side), 9.0), _shade(skin, 0.7), 0.5, 5.0, face.outline)
    if face.has["Double_Chin"]:
        half = _points((0.5 * width, chin - 8), (0.22 * width, chin))
        canvas.fill(_ribbon(_curve(np.concatenate([_mirrored(half), half[::-1]])), 2.6), _shade(skin, 0.52), 0.9, 0.4)


def _draw_cheeks(canvas: _Canvas, face: _Face) -> None:
    width, skin = face.half_width, face.skin
    if face.has["High_Cheekbones"]:
        hollow = _curve(_points((0.94 * width, 128.0), (0.72 * width, 139.0), (0.5 * width, 151.0)))
        canvas.both(_ribbon(hollow, 9.0, 4.0), _shade(skin, 0.58), 0.75, 2.2, face.outline)
        bone = _curve(_points((0.86 * width, 118.0), (0.66 * width, 126.0), (0.42 * width, 131.0)))
        canvas.both(_ribbon(bone, 8.0), _glow(skin, 0.85), 0.95, 2.0, face.outline)
    if face.has["Rosy_Cheeks"]:
        canvas.both(_oval(0.62 * width, 133.0, 11.0, 9.0), (238, 70, 90), 0.62, 3.0, face.outline)


def _draw_age(canvas: _Canvas, face: _Face) -> None:
    """Draw the wrinkles of those who are not young."""
    if face.has["Young"]:
        return
    crease, width = _shade(face.skin, 0.6), face.half_width
    for row in (78.0, 84.0, 89.5):
        line = _points((-0.5 * width, row + 1), (-0.2 * width, row - 1), (0.1 * width, row + 0.5), (0.5 * width, row))
        canvas.fill(_ribbon(_curve(line), 1.5), crease, 0.75, 0.3)
    fold = _curve(_points((face.nose_width + 2, face.nose_tip), (19.0, 143.0), (23.0, 154.0), (22.0, 161.0)))
    canvas.both(_ribbon(fold, 2.4, 1.0), crease, 0.85, 0.4)
    for rise in (-5.0, 0.0, 5.0):
        feet = _points((face.eye_x + 14, _EYE_ROW + 1 + 0.4 * rise), (face.eye_x + 21, _EYE_ROW + 2 + rise))
        canvas.both(_ribbon(feet, 1.5), crease, 0.8)


def _beard_colour(face: _Face) -> Colour:
    return _shade(face.hair, 0.82)


def _draw_beard(canvas: _Canvas, face: _Face) -> None:
    """Draw full beard, goatee and sideburns; the mouth is drawn on top of them."""
    colour, width = _beard_colour(face), face.half_width
    if face.full_beard:
        fringe = _moved(face.outline * (1.03, 1.0), 0.0, 5.0)
        canvas.fill(_jaw_region(face, 133.0), colour, 0.95, 0.8, fringe)
    if face.has["Goatee"]:
        corner = face.mouth_corner[0]
        tuft = (
            (0.0, 158.0), (0.5 * corner, 160.0), (0.95 * corner, 158.0), (0.85 * corner, 169.0),
            (0.45 * corner, face.chin + 4), (0.0, face.chin + 7),
        )  # fmt: skip
        canvas.fill(_loop(_symmetric(_points(*tuft))), colour, 0.96, 0.7)
    if face.has["Sideburns"]:
        strip = (
            (0.98 * width, 96.0), (0.84 * width, 99.0), (0.83 * width, 128.0), (0.76 * width, 144.0),
            (0.9 * width, 148.0), (1.0 * width, 128.0),
        )  # fmt: skip
        canvas.both(_loop(_points(*strip)), colour, 0.95, 0.7)


def _jaw_region(face: _Face, top: float) -> Points:
    """Return where a beard grows, with the skin between nose and cheek left out."""
    width = face.half_width
    right = (
        (0.0, face.nose_tip + 6), (0.3 * width, 144.0), (0.62 * width, 150.0), (0.84 * width, top),
        (1.1 * width, top - 14), (1.1 * width, 150.0), (0.7 * width, face.chin + 4), (0.0, face.chin + 12),
    )  # fmt: skip
    return _loop(_symmetric(_points(*right)), 4)


def _draw_shadow(canvas: _Canvas, face: _Face) -> None:
    """Draw the gray-blue tint of a shaved beard; `_draw_stubble` adds the specks."""
    if face.has["5_o_Clock_Shadow"]:
        opacity = 0.42 if face.has["No_Beard"] else 0.55
        canvas.fill(
            _jaw_region(face, 137.0), _mix(_shade(face.skin, 0.4), (62, 70, 84), 0.5), opacity, 2.0, face.outline
        )


def _draw_stubble(canvas: _Canvas, face: _Face, rng: np.random.Generator) -> None:
    # The draws are made in any case, so that this label changes no later draw.
    share = rng.random((420, 2))
    if face.has["5_o_Clock_Shadow"]:
        angle, radius = pi * (1.1 * share[:, :1] - 0.05), np.sqrt(0.45 + 0.5 * share[:, 1:])
        arc = np.hstack([np.cos(angle), np.sin(angle)]) * radius
        places = arc * (0.86 * face.half_width, face.chin - 138.0) + (0.0, 138.0)
        canvas.specks(places, _shade(face.skin, 0.35))


def _draw_nose(canvas: _Canvas, face: _Face) -> None:
    tip, width, skin = face.nose_tip, face.nose_width, face.skin
    bridge = _curve(_points((4.5, 102.0), (3.5, 116.0), (0.55 * width, tip - 6)))
    canvas.both(_ribbon(bridge, 1.5, 4.0), _shade(skin, 0.72), 0.5, 1.2)
    canvas.fill(_oval(0.0, tip + 1, width, 0.75 * width), _shade(skin, 0.9), 0.6, 1.0)
    if face.has["Big_Nose"]:
        flare = _points((0.5 * width, tip - 5), (1.08 * width, tip - 2), (1.1 * width, tip + 4), (0.5 * width, tip + 6))
        canvas.both(_loop(flare), _shade(skin, 0.78), 0.85, 0.7)
        canvas.fill(_oval(0.0, tip - 1, 0.62 * width, 6.5), _glow(skin, 0.4), 0.9, 1.2)
    wing = _curve(_points((0.95 * width, tip - 4), (1.12 * width, tip + 1), (0.75 * width, tip + 4.5)))
    canvas.both(_ribbon(wing, 1.8), _shade(skin, 0.56), 0.9)
    canvas.both(_oval(0.46 * width, tip + 4, 0.25 * width, 1.5), _shade(skin, 0.32), 0.95)
    if face.has["Pointy_Nose"]:
        point = _points((-0.5 * width, tip + 2), (0.0, tip - 12), (0.5 * width, tip + 2), (0.0, tip + 8.5))
        ridge = _points((0.0, 102.0), (2.4, tip - 6), (0.0, tip + 1), (-2.4, tip - 6))
        canvas.fill(ridge, _glow(skin, 1.0), 1.0, 0.4)
        canvas.fill(point, _glow(skin, 0.45), 1.0, 0.4)
        canvas.fill(
            _ribbon(_points((-0.62 * width, tip + 3), (0.0, tip + 9), (0.62 * width, tip + 3)), 2.2),
            _shade(skin, 0.45),
            0.95,
        )
    else:
        canvas.fill(_oval(0.0, tip - 2.0, 2.2, 2.2), _glow(skin, 0.7), 0.8, 0.8)


def _draw_mouth(canvas: _Canvas, face: _Face) -> None:
    """Draw lips, teeth and the dark of an open mouth between the two corners."""
    (x, y), has = face.mouth_corner, face.has
    sag = _between(face.shot.smile, 4.0, 6.0) if has["Smiling"] else _between(face.shot.expression, -0.8, 1.2)
    gap = _between(face.shot.opening, 5.5, 9.5) if has["Mouth_Slightly_Open"] else 0.0
    fullness = _between(face.person.lips, 0.9, 1.1) * (1.95 if has["Big_Lips"] else 1.0)
    upper, lower = 3.4 * fullness, 4.3 * fullness
    lips = _mix(_shade(face.skin, 0.86), (184, 60, 68), 0.5)
    if has["Wearing_Lipstick"]:
        lips = _pick(_LIPSTICKS, face.shot.lipstick)

    seam = _curve(_points((-x, y), (-0.5 * x, y + 0.8 * sag), (0.0, y + sag), (0.5 * x, y + 0.8 * sag), (x, y)))
    floor = seam + np.stack([np.zeros(len(seam)), gap * (1.0 - (seam[:, 0] / x) ** 2)], axis=1)
    profile = 1.0 - np.abs(seam[:, 0] / x) ** 2.5
    dip = 1.0 - 0.25 * np.exp(-((seam[:, 0] / 2.5) ** 2))
    top = seam - np.stack([np.zeros(len(seam)), upper * profile * dip], axis=1)
    bottom = floor + np.stack([np.zeros(len(seam)), lower * profile], axis=1)

    canvas.fill(_oval(0.0, y + sag + gap + lower + 4, 9.0, 2.5), _shade(face.skin, 0.6), 0.5, 1.5)
    canvas.fill(np.concatenate([top, bottom[::-1]]), lips)
    canvas.fill(np.concatenate([seam, bottom[::-1]]), _mix(lips, (255, 220, 220), 0.12))
    canvas.fill(_ribbon(bottom, 1.0), _shade(lips, 0.7), 0.8)
    if gap:
        inside = np.concatenate([seam, floor[::-1]])
        canvas.fill(inside, (66, 16, 22))
        teeth = _moved(seam, 0.0, 0.55 * gap)
        canvas.fill(np.concatenate([seam, teeth[::-1]]), (250, 248, 242), clip=inside)
    else:
        canvas.fill(_ribbon(seam, 1.6), _shade(lips, 0.45))
    if has["Wearing_Lipstick"]:
        canvas.fill(_oval(0.0, y + sag + gap + 0.55 * lower, 5.0, 0.9), (255, 235, 240), 0.6, 0.4)
    if has["Smiling"]:
        dimple = _curve(_points((x + 1.5, y - 4.5), (x + 3.8, y - 0.5), (x + 2.5, y + 4)))
        canvas.both(_ribbon(dimple, 1.6), _shade(face.skin, 0.55), 0.9)


def _draw_mustache(canvas: _Canvas, face: _Face) -> None:
    if not (face.has["Mustache"] or face.full_beard):
        return
    corner, row = face.mouth_corner
    lift = 3.5 if face.has["Big_Lips"] else 2.0
    half = (
        (0.0, face.nose_tip + 6.5), (0.5 * corner, face.nose_tip + 7), (1.08 * corner, row - 0.5),
        (0.6 * corner, row - lift), (0.0, row - lift),
    )  # fmt: skip
    canvas.fill(_loop(_symmetric(_points(*half))), _beard_colour(face), 0.97, 0.5)


def _draw_eyes(canvas: _Canvas, face: _Face) -> None:
    has = face.has
    wide = _between(face.person.eye_size, 9.6, 11.0)
    tall = _between(face.person.eye_size, 4.6, 5.6) * (0.9 if has["Smiling"] else 1.0)
    if has["Narrow_Eyes"]:
        tall *= 0.46
    iris = _pick(_IRISES, face.person.iris)
    gaze = _between(face.shot.gaze, -0.8, 0.8)
    for side in (-1.0, 1.0):
        centre = (side * face.eye_x, _EYE_ROW)
        above = _points((-wide, 1.0), (-0.4 * wide, -0.85 * tall), (0.25 * wide, -tall), (wide, -0.5))
        below = _points((wide, -0.5), (0.3 * wide, 0.85 * tall), (-0.4 * wide, 0.7 * tall), (-wide, 1.0))
        upper, lower = (_moved(_curve(edge * (side, 1.0)), *centre) for edge in (above, below))
        almond = np.concatenate([upper, lower])
        _draw_eye_surroundings(canvas, face, centre, upper)
        canvas.fill(almond, (246, 244, 240))
        canvas.fill(_oval(centre[0] + gaze, centre[1], 4.5, 4.5), iris, clip=almond)
        canvas.fill(_oval(centre[0] + gaze, centre[1], 2.6, 2.6), (16, 12, 12), clip=almond)
        canvas.fill(_oval(centre[0] + 2.1, centre[1] - 2.0, 1.1, 1.1), (255, 255, 255), clip=almond)
        canvas.fill(_ribbon(lower, 0.9), _shade(face.skin, 0.5), 0.7)
        _draw_lashes(canvas, face, upper, lower)


def _draw_eye_surroundings(canvas: _Canvas, face: _Face, centre: tuple[float, float], upper: Points) -> None:
    """Draw the lid's fold, eyeshadow, and bags under the eye."""
    x, y = centre
    if face.has["Heavy_Makeup"]:
        lid = np.concatenate([_moved(upper, 0.0, 1.0), _moved(upper, 0.0, -7.0)[::-1]])
        canvas.fill(lid, _pick(_EYESHADOWS, face.shot.eyeshadow), 0.85, 1.2)
    else:
        canvas.fill(_ribbon(_moved(upper, 0.0, -2.6), 1.0), _shade(face.skin, 0.62), 0.7)
    if face.has["Bags_Under_Eyes"]:
        bag = _curve(_points((x - 10, y + 6), (x - 4, y + 10.5), (x + 4, y + 10.5), (x + 10, y + 6)))
        canvas.fill(_ribbon(_moved(bag, 0.0, -1.8), 6.0), _mix(_shade(face.skin, 0.55), (96, 62, 104), 0.4), 0.62, 1.2)
        canvas.fill(_ribbon(_moved(bag, 0.0, 1.5), 1.6), _shade(face.skin, 0.45), 0.8)


def _draw_lashes(canvas: _Canvas, face: _Face, upper: Points, lower: Points) -> None:
    dark: Colour = (26, 18, 18)
    if face.has["Heavy_Makeup"]:
        canvas.fill(_ribbon(upper, 1.8, 4.2), dark)
        canvas.fill(_ribbon(lower, 2.0, 0.8), dark, 0.85)
        outer = upper[-1] + np.array((np.sign(upper[-1, 0]) * 5.0, -4.0))
        canvas.fill(_ribbon(np.stack([upper[-1], outer]), 3.6, 0.6), dark)
    elif face.has["Male"]:
        canvas.fill(_ribbon(upper, 1.3), dark, 0.85)
    else:
        canvas.fill(_ribbon(upper, 1.4, 2.2), dark)


def _draw_brows(canvas: _Canvas, face: _Face) -> None:
    has, x = face.has, face.eye_x
    row = face.brow_row + _between(face.shot.brow, -0.8, 0.8)
    arch = 8.0 if has["Arched_Eyebrows"] else 0.5
    bow = ((x - 12, row), (x - 5, row - 0.65 * arch - 0.6), (x + 4, row - 0.95 * arch - 0.8), (x + 14, row + 1.5))
    line = _curve(_points(*bow))
    colour = _mix(_shade(face.hair, 0.7), (40, 30, 28), 0.3)
    thick = 3.3 if has["Male"] else 2.5
    if has["Bushy_Eyebrows"]:
        thick, colour = 7.0, _shade(colour, 0.75)
        for start in line[1::2]:
            hair = start + _points((-0.5, 2.0), (3.0, -5.5))
            canvas.both(_ribbon(hair, 1.8, 0.6), colour)
    canvas.both(_ribbon(line, thick, 0.45 * thick), colour, 0.96)


def _hair_edges(face: _Face) -> tuple[Points, Points]:
    """Return the cap of hair's outer contour and the hairline, each (m, 2) from left to right over the head."""
    width = face.half_width
    volume = _between(face.person.hair_volume, 7.0, 13.0) + (4.0 if face.has["Wavy_Hair"] else 0.0)
    end = 116.0 if face.long_hair else 105.0
    top = (0.7 * width, 61.0 - 0.85 * volume), (0.0, 51.0 - volume)
    outer = _points((width + 3, end), (width + 0.55 * volume, 88.0), *top)
    if face.has["Receding_Hairline"]:
        temple = (0.76 * width, 72.0), (0.5 * width, 60.5), (0.2 * width, 60.5)
        inner = _points((0.97 * width, end), (0.91 * width, 90.0), *temple, (0.0, 65.0))
    else:
        row = _HAIRLINE_ROW + _between(face.person.forehead, -2.5, 3.5)
        inner = _points(
            (0.95 * width, end), (0.88 * width, 93.0), (0.68 * width, row + 7), (0.4 * width, row), (0.0, row)
        )
    contour, hairline = (np.concatenate([_mirrored(half[:-1]), half[::-1]]) for half in (outer, inner))
    hairline[len(inner) - 1, 0] += _between(face.person.parting, -12.0, 12.0)
    return _curve(contour, 8), _curve(hairline, 8)


def _draw_hair(canvas: _Canvas, face: _Face) -> None:
    """Draw the hair on the head, beside the face and over the forehead."""
    if face.has["Bald"]:
        _draw_bald_head(canvas, face)
        return
    contour, hairline = _hair_edges(face)
    if face.has["Wavy_Hair"]:
        contour = _waved(_resampled(contour, 96), 2.6, 11.0, face.shot.curls)
        hairline = _waved(hairline, 0.8, 7.0, face.shot.curls)
    canvas.fill(np.concatenate([contour, hairline[::-1]]), face.hair)
    _draw_strands(canvas, face, _resampled(contour, 48), _resampled(hairline, 48))
    if face.long_hair:
        _draw_locks(canvas, face)
    if face.has["Bangs"]:
        _draw_bangs(canvas, face)


def _resampled(line: Points, count: int) -> Points:
    """Return ``count`` points at even distances along the line."""
    steps = np.hypot(*np.diff(line, axis=0).T)
    along = np.concatenate([[0.0], np.cumsum(steps)])
    target = np.linspace(0.0, along[-1], count)
    return np.stack([np.interp(target, along, line[:, 0]), np.interp(target, along, line[:, 1])], axis=1)


def _draw_strands(canvas: _Canvas, face: _Face, contour: Points, hairline: Points) -> None:
    """Draw the texture of the cap of hair between its contour and the hairline."""
    light, dark = _hair_light(face), _shade(face.hair, 0.6)
    if face.has["Wavy_Hair"]:
        for share, colour in ((0.2, light), (0.4, dark), (0.6, light), (0.82, dark)):
            strand = _waved(contour + share * (hairline - contour), 2.4, 9.0, face.shot.curls + share)
            canvas.fill(_ribbon(strand, 2.2), colour, 0.9)
    elif face.has["Straight_Hair"]:
        # Combed down from the parting: strands across the cap, not along it.
        for place in range(2, 46, 3):
            strand = np.stack([contour[place], 0.5 * (contour[place] + hairline[place]), hairline[place]])
            canvas.fill(_ribbon(strand, 0.8, 1.7), light if place % 2 else dark, 0.85)
    else:
        canvas.fill(_ribbon(contour[10:30] + 0.4 * (hairline - contour)[10:30], 5.0), light, 0.45, 2.0)


def _hair_light(face: _Face) -> Colour:
    return _mix(face.hair, (255, 240, 216), 0.26)


def _draw_locks(canvas: _Canvas, face: _Face) -> None:
    """Draw the long hair that hangs on both sides of the face."""
    width = face.half_width
    bottom = _between(face.person.hair_length, 180.0, 212.0)
    wavy, straight = face.has["Wavy_Hair"], face.has["Straight_Hair"]
    outer = _curve(_points((0.98 * width, 74.0), (width + 8, 100.0), (width + 9, 140.0), (width + 8, bottom)), 10)
    inner = _curve(
        _points((0.84 * width, 78.0), (0.93 * width, 104.0), (0.95 * width, 140.0), (0.8 * width, bottom)), 10
    )
    if wavy:
        outer = _waved(_moved(outer, 4.0, 0.0), 4.2, 3.5, face.shot.curls)
        inner = _waved(inner, 3.0, 3.5, face.shot.curls)
    lock = np.concatenate([outer, inner[::-1]])
    canvas.both(lock, face.hair)
    light, dark = _hair_light(face), _shade(face.hair, 0.6)
    for share, colour in ((0.2, dark), (0.4, light), (0.6, dark), (0.8, light)):
        strand = outer + share * (inner - outer)
        if wavy:
            canvas.both(_ribbon(_waved(strand, 1.6, 4.5, share), 2.2), colour, 0.9)
        elif straight:
            canvas.both(_ribbon(strand, 1.3), colour, 0.9)


def _draw_bangs(canvas: _Canvas, face: _Face) -> None:
    width, row = 0.84 * face.half_width, _between(face.shot.bangs, 91.0, 95.0)
    top = _curve(_points((-width, 84.0), (-0.7 * width, 66.0), (0.0, 60.0), (0.7 * width, 66.0), (width, 84.0)))
    tips = np.linspace(width, -width, 15)
    jag = np.where(np.arange(15) % 2, row - 4.0, row) + 3.0 * (tips / width) ** 2
    canvas.fill(np.concatenate([top, np.stack([tips, jag], axis=1)]), face.hair)
    for x, y in zip(tips[1:-1:2], jag[1:-1:2], strict=True):
        canvas.fill(_ribbon(_points((0.75 * x, 68.0), (x, y + 1)), 0.8, 1.8), _shade(face.hair, 0.6), 0.9)


def _draw_bald_head(canvas: _Canvas, face: _Face) -> None:
    """Draw the scalp's gloss, and with a receding hairline the rim of hair that is left at the sides."""
    canvas.fill(_oval(-6.0, 66.0, 15.0, 7.0), _glow(face.skin, 0.9), 0.8, 3.0)
    if face.has["Receding_Hairline"]:
        width = face.half_width
        rim = _points(
            (width + 3, 118.0), (width + 4, 98.0), (0.98 * width, 78.0), (0.9 * width, 84.0), (0.92 * width, 104.0)
        )
        canvas.both(_loop(rim), face.hair, 0.96, 0.5)


def _draw_earrings(canvas: _Canvas, face: _Face) -> None:
    if not face.has["Wearing_Earrings"]:
        return
    metal, kind, x = _pick(_METALS, face.shot.earring_colour), int(face.shot.earring_kind * 3), face.half_width + 3.0
    canvas.both(_oval(x, 131.0, 3.2, 3.2), (30, 24, 24), 0.6, 0.8)
    canvas.both(_oval(x, 130.5, 3.0, 3.0), metal)
    if kind == 1:
        hoop = _oval(x, 140.0, 6.0, 8.5)
        canvas.both(_ribbon(np.concatenate([hoop, hoop[:1]]), 2.6), metal)
    elif kind == 2:
        canvas.both(
            _points((x - 1.2, 131.0), (x + 1.2, 131.0), (x + 5.0, 150.0), (x - 5.0, 150.0)), _shade(metal, 0.92)
        )
    else:
        canvas.both(_oval(x, 133.5, 4.4, 4.4), metal)
    canvas.both(_oval(x - 1.0, 129.8, 1.1, 1.1), (255, 255, 255))


def _draw_glasses(canvas: _Canvas, face: _Face) -> None:
    if not face.has["Eyeglasses"]:
        return
    frame, dark = _pick(_FRAMES, face.shot.glasses_colour), face.shot.sunglasses < 0.3
    if face.shot.glasses_kind < 0.5:
        lens = _oval(face.eye_x, _EYE_ROW + 1.0, 14.5, 12.5)
    else:
        corners = _points((-15, -8), (-8, -10.5), (8, -10.5), (15.5, -8.5), (14, 8), (7, 12), (-8, 12), (-14, 8))
        lens = _moved(_loop(corners, 3), face.eye_x, _EYE_ROW + 1.0)
    rim = _ribbon(np.concatenate([lens, lens[:2]]), 3.4 if not dark else 2.4)
    canvas.both(lens, (22, 22, 30) if dark else (226, 238, 250), 0.92 if dark else 0.16)
    gleam = _points((3.0, -8.0), (7.0, -8.0), (-4.0, 8.0), (-7.0, 7.0))
    canvas.both(_moved(gleam, face.eye_x, _EYE_ROW), (255, 255, 255), 0.28)
    canvas.both(rim, frame)
    canvas.both(_ribbon(_points((face.eye_x + 14, 107.0), (face.half_width + 1, 106.0)), 3.0), frame)
    canvas.fill(_ribbon(_curve(_points((-face.eye_x + 13, 109.0), (0.0, 105.5), (face.eye_x - 13, 109.0))), 2.8), frame)


def _draw_hat(canvas: _Canvas, face: _Face) -> None:
    if not face.has["Wearing_Hat"]:
        return
    colour, width, kind = _pick(_HATS, face.shot.hat_colour), face.half_width + 7.0, int(face.shot.hat_kind * 3)
    dome = _points(
        (0.0, 30.0), (0.66 * width, 37.0), (0.98 * width, 58.0), (width, 78.0), (0.5 * width, 74.0), (0.0, 72.0)
    )
    canvas.fill(_loop(_symmetric(dome)), colour)
    canvas.fill(_oval(-0.35 * width, 48.0, 12.0, 9.0), _mix(colour, (255, 255, 255), 0.35), 0.7, 5.0)
    if kind == 0:  # baseball cap
        visor = _points((0.0, 71.0), (0.6 * width, 72.0), (1.02 * width, 80.0), (0.7 * width, 86.0), (0.0, 83.0))
        canvas.fill(_moved(_loop(_symmetric(visor)), 0.0, 2.0), (20, 16, 16), 0.4, 2.0)
        canvas.fill(_loop(_symmetric(visor)), _shade(colour, 0.72))
        canvas.fill(_oval(0.0, 55.0, 8.0, 7.0), _mix(colour, (255, 255, 255), 0.75))
    elif kind == 1:  # hat with a brim all around
        canvas.fill(_oval(0.0, 78.0, width + 24.0, 8.5), (20, 16, 16), 0.4, 2.0)
        canvas.fill(_oval(0.0, 75.5, width + 24.0, 8.0), _shade(colour, 0.85))
        canvas.fill(_points((-width + 1, 62.0), (width - 1, 62.0), (width, 72.0), (-width, 72.0)), _shade(colour, 0.4))
    else:  # woollen cap
        band = _points((0.0, 60.0), (width + 1, 66.0), (width + 1, 82.0), (0.0, 77.0))
        canvas.fill(_loop(_symmetric(band)), _shade(colour, 0.8))
        for x in np.linspace(-0.9 * width, 0.9 * width, 13):
            canvas.fill(_ribbon(_points((x, 63.0), (x, 79.0)), 1.4), _shade(colour, 0.6))
        canvas.fill(_oval(0.0, 30.0, 9.0, 8.0), _mix(colour, (255, 255, 255), 0.5))


_LAYERS = (
    _draw_hair_behind,
    _draw_body,
    _draw_head,
    _draw_shadow,
    _draw_cheeks,
    _draw_age,
    _draw_beard,
    _draw_nose,
    _draw_mouth,
    _draw_mustache,
    _draw_eyes,
    _draw_brows,
    _draw_hair,
    _draw_earrings,
    _draw_glasses,
    _draw_hat,
)
"""From back to front."""
