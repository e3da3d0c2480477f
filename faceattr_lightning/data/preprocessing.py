"""From a source image to the network's input, the same way in training, test, predict and export."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from faceattr_lightning.errors import ConfigError


@dataclass(frozen=True)
class Preprocessing:
    """Everything that has to be known to feed a trained network. Plain values: it travels in the checkpoint.

    Attributes:
        source_size: (height, width) in pixels of the images that `crop` refers to.
        crop: (left, top, right, bottom) in pixels of the source image.
        image_size: height and width of the network's input in pixels.
        mean: per RGB channel, of values in [0, 1]; subtracted inside the network.
        std: per RGB channel, of values in [0, 1]; divided by inside the network.
        template: (L, 2) mean landmark positions as fractions of the crop, to which a photo of another source is
            aligned; empty where the data set has no landmarks.
        any_size: whether the data set's images are of any size, and brought to `source_size` by
            `faceattr_lightning.data.images.fit_image`.
    """

    source_size: tuple[int, int]
    crop: tuple[int, int, int, int]
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    template: tuple[tuple[float, float], ...] = ()
    any_size: bool = False

    def __post_init__(self) -> None:
        check_crop(self.crop, self.source_size)

    def to_dict(self) -> dict[str, Any]:
        """Return plain lists and numbers, as they stand in a checkpoint."""
        return {key: _plain(value) for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Preprocessing:
        """Make it again from `to_dict`."""
        return cls(**{key: _frozen(value) for key, value in values.items()})

    def images(self, source: NDArray[np.uint8]) -> Tensor:
        """Crop and resize with an antialiased bilinear filter.

        Args:
            source: uint8 (B, height, width, 3), RGB, of `source_size`.

        Returns:
            uint8 (B, 3, image_size, image_size), in channels-last memory.
        """
        left, top, right, bottom = self.crop
        batch = torch.from_numpy(source).permute(0, 3, 1, 2)[:, :, top:bottom, left:right]
        return resize(batch, self.image_size)

    def landmarks(self, source: NDArray[np.float32]) -> tuple[Tensor, Tensor]:
        """Move landmarks from source pixels into the crop.

        Args:
            source: float32 (B, L, 2), x then y in source pixels, NaN where missing.

        Returns:
            float32 (B, L, 2) as fractions of the crop, 0 where not valid; and bool (B, L), whether the landmark is
            known and inside the crop.
        """
        left, top, right, bottom = self.crop
        # A pixel's centre lies half a pixel from its corner; the crop's fractions are measured from corner to corner.
        scaled = (torch.from_numpy(source) + 0.5 - torch.tensor([left, top])) / torch.tensor(
            [right - left, bottom - top]
        )
        valid = ((scaled >= 0) & (scaled <= 1)).all(dim=-1)
        return torch.where(valid[..., None], scaled, 0.0).float(), valid


def resize(image: Tensor, size: int) -> Tensor:
    """Scale images with an antialiased bilinear filter.

    Args:
        image: uint8 or float (B, 3, H, W).
        size: height and width of the result in pixels.

    Returns:
        (B, 3, size, size) of the same type, in channels-last memory.
    """
    if image.shape[-2:] == (size, size):
        return image.contiguous(memory_format=torch.channels_last)
    # On a GPU torch has the filter for floating point alone.
    source = image if image.device.type == "cpu" else image.float()
    scaled = functional.interpolate(source, size=(size, size), mode="bilinear", antialias=True)
    if image.dtype == torch.uint8 and scaled.dtype != torch.uint8:
        scaled = scaled.round().clamp(0, 255).to(torch.uint8)
    return scaled.contiguous(memory_format=torch.channels_last)


def check_crop(crop: Sequence[int], source_size: tuple[int, int]) -> None:
    """Raise a ConfigError unless (left, top, right, bottom) has an area inside an image of (height, width)."""
    height, width = source_size
    if len(crop) != 4 or not (0 <= crop[0] < crop[2] <= width and 0 <= crop[1] < crop[3] <= height):
        raise ConfigError(
            [
                f"data.crop: {list(crop)} is not inside an image of {width} x {height}; "
                "expected [left, top, right, bottom] in pixels."
            ]
        )


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, (tuple, list)) else value


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, (tuple, list)) else value
