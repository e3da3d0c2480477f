"""Training-time augmentation of a whole batch, on whatever device the batch is."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from faceattr_lightning.data.batch import Batch
from faceattr_lightning.errors import ConfigError
from faceattr_lightning.landmarks import FLIPPED_LANDMARKS

_COLUMNS = ("flip", "scale", "shift_x", "shift_y", "brightness", "contrast", "saturation", "mix")
RANDOM_NUMBERS = len(_COLUMNS)
"""How many uniform numbers `augment` takes per sample."""

_LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class Augmentation:
    """How far a training image may differ from its source; 0 everywhere switches it off.

    Attributes:
        flip: probability of a horizontal mirror image, in [0, 1].
        scale: greatest relative change of the scale, up or down.
        shift: greatest shift in x and in y, as a fraction of the image.
        brightness: greatest relative change.
        contrast: greatest relative change.
        saturation: greatest relative change.
        mix: greatest share of another image of the batch that is blended in, with its labels: mixup (Zhang et al., ICLR
            2018), with their alpha = 1 for 0.5. Of use where labels are few or noisy, and with more epochs.

    Raises:
        ConfigError: a value outside [0, 1), of ``flip`` outside [0, 1], or of ``mix`` outside [0, 0.5].
    """

    flip: float = 0.5
    scale: float = 0.1
    shift: float = 0.05
    brightness: float = 0.2
    contrast: float = 0.2
    saturation: float = 0.2
    mix: float = 0.0

    def __post_init__(self) -> None:
        problems = []
        for name, value in vars(self).items():
            # A scale of 1 would let an image vanish, a larger one turn it over.
            if not (0 <= value < 1 or (name == "flip" and value == 1)):
                interval = "[0, 1]" if name == "flip" else "[0, 1)"
                problems.append(f"data.augmentation.{name}: expected a number in {interval}, found {value}.")
        if self.mix > 0.5:
            # Beyond it the other image is the one that is seen.
            problems.append(f"data.augmentation.mix: expected a share in [0, 0.5], found {self.mix}.")
        if problems:
            raise ConfigError(problems)


def augment(batch: Batch, settings: Augmentation) -> Batch:
    """Return the batch with its images and landmarks changed by the random numbers that it carries.

    A landmark that leaves the image is no longer valid. Left and right landmarks change places in a mirror image; the
    attribute labels have no side and stay. With ``mix``, ``attributes`` become float32 (B, A): between 0 and 1, or -1
    where either image has no label. Landmarks and the other labels stay those of the image that has the greater share.

    Args:
        batch: with ``augmentation``, float32 (B, `RANDOM_NUMBERS`). Its ``image`` may be changed in place.
        settings: the ranges.

    Returns:
        the batch without ``augmentation``; ``image`` is float32 in [0, 255], or of the type that it was if nothing but
        mirror images are asked for.
    """
    randoms = dict(zip(_COLUMNS, batch["augmentation"].unbind(dim=1), strict=True))
    signed = {name: 2 * value - 1 for name, value in randoms.items()}
    flipped = randoms["flip"] < settings.flip
    zoom = 1 + settings.scale * signed["scale"]
    shift = torch.stack([settings.shift * signed["shift_x"], settings.shift * signed["shift_y"]], dim=1)

    image = batch["image"]
    if settings.scale or settings.shift:
        image = _warp(image, flipped, zoom, shift)
    elif settings.flip:
        _flip(image, flipped)
    if settings.brightness or settings.contrast or settings.saturation:
        image = _recolour(
            image,
            brightness=1 + settings.brightness * signed["brightness"],
            contrast=1 + settings.contrast * signed["contrast"],
            saturation=1 + settings.saturation * signed["saturation"],
        )
    landmarks, valid = _move_landmarks(batch["landmarks"], batch["landmarks_valid"], flipped, zoom, shift)
    changed: Batch = {**batch, "image": image, "landmarks": landmarks, "landmarks_valid": valid}
    del changed["augmentation"]
    return _mix(changed, settings.mix * randoms["mix"]) if settings.mix else changed


def _mix(batch: Batch, share: Tensor) -> Batch:
    """Blend a share, float (B,), of each sample's neighbour into it."""
    image, attributes = batch["image"].float(), batch["attributes"].float()
    other = attributes.roll(1, dims=0)
    mixed = torch.where((attributes < 0) | (other < 0), -1.0, torch.lerp(attributes, other, share[:, None]))
    blended = torch.lerp(image, image.roll(1, dims=0), share[:, None, None, None])
    return {**batch, "image": blended, "attributes": mixed}


def _flip(image: Tensor, flipped: Tensor) -> None:
    chosen = flipped.nonzero().flatten()
    if image.device.type == "cpu":
        # Image by image is four times as fast as by an index, which is what a GPU needs.
        for row in chosen.tolist():
            image[row] = image[row].flip(-1)
    else:
        image[chosen] = image[chosen].flip(-1)


def _warp(image: Tensor, flipped: Tensor, zoom: Tensor, shift: Tensor) -> Tensor:
    size = image.shape[-1]
    mirror = torch.where(flipped, -1.0, 1.0)
    # Where an output pixel comes from, in [-1, 1]: the inverse of the change that landmarks undergo. Without a rotation
    # x depends on the column alone and y on the row: affine_grid, which does not know that, takes ten times as long.
    centres = (torch.arange(size, device=image.device) + 0.5) * (2 / size) - 1
    x = (centres - 2 * shift[:, :1]) * (mirror / zoom)[:, None]
    y = (centres - 2 * shift[:, 1:]) / zoom[:, None]
    shape = (len(image), size, size)
    grid = torch.stack([x[:, None, :].expand(shape), y[:, :, None].expand(shape)], dim=-1)
    return functional.grid_sample(image.float(), grid, mode="bilinear", padding_mode="border", align_corners=False)


def _recolour(image: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor) -> Tensor:
    """Scale by the brightness, then move from grey by the saturation, then from the mean grey by the contrast.

    All three are linear in the channels, and so one 3 x 3 matrix and one offset a sample.
    """
    pixels = image.float().contiguous().flatten(start_dim=2)
    luma = pixels.new_tensor(_LUMA)
    matrix = saturation[:, None, None] * torch.eye(3, device=image.device) + (1 - saturation)[:, None, None] * luma
    mean_grey = pixels.mean(dim=2) @ luma
    offset = ((1 - contrast) * brightness * mean_grey)[:, None, None]
    changed = torch.baddbmm(offset, (contrast * brightness)[:, None, None] * matrix, pixels)
    return changed.clamp_(0, 255).view(image.shape)


def _move_landmarks(
    landmarks: Tensor, valid: Tensor, flipped: Tensor, zoom: Tensor, shift: Tensor
) -> tuple[Tensor, Tensor]:
    if landmarks.shape[1] == 0:
        return landmarks, valid
    swap = torch.tensor(FLIPPED_LANDMARKS[landmarks.shape[1]], device=landmarks.device)
    mirrored = torch.stack([1 - landmarks[:, swap, 0], landmarks[:, swap, 1]], dim=-1)
    moved = torch.where(flipped[:, None, None], mirrored, landmarks)
    known = torch.where(flipped[:, None], valid[:, swap], valid)
    moved = (moved - 0.5) * zoom[:, None, None] + 0.5 + shift[:, None, :]
    known = known & ((moved >= 0) & (moved <= 1)).all(dim=-1)
    return torch.where(known[..., None], moved, 0.0), known
