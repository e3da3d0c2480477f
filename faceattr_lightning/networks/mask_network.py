"""The network that predicts masks of a face's parts.

Published (MGMTN, Gao et al., arXiv 2601.01408): a fully convolutional network, a U-Net, with one head per group that
predicts binary masks of the input's size. Ours: its depth, widths and normalisation; its first level at half
resolution, which takes a fifth of the time (0.25 for 1.25 s on one CPU core, 64 images of 112 px); and its loss
(`faceattr_lightning.models.losses.mask_loss`).
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

_PRIOR_LOGIT = 2.0


def convolutions(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """Return two 3x3 convolutions, each normalised over groups of channels: (B, inputs, h, w) to (B, outputs, h, w).

    Group normalisation (Wu, He, ECCV 2018) depends neither on the batch nor on the number of processes.
    """
    layers: list[nn.Module] = []
    for channels, step in ((inputs, stride), (outputs, 1)):
        layers += [
            nn.Conv2d(channels, outputs, kernel_size=3, stride=step, padding=1, bias=False),
            nn.GroupNorm(math.gcd(outputs, 4), outputs),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers)


class MaskNetwork(nn.Module):
    """A small U-Net (Ronneberger et al., MICCAI 2015): images in, one mask per group out.

    Args:
        groups: K >= 1, of masks.
        prior: float (K, h, w) in {0, 1}, masks that the network starts from, as a rule those of the mean face, so that
            it learns in what a face differs; ``None`` for none. Ours.
        width: channels of the first level; each further level has twice as many.
        depth: number of levels >= 1, the first at half of the input's resolution, each further one at half of that.
    """

    prior: Tensor | None

    def __init__(self, groups: int, prior: Tensor | None = None, width: int = 16, depth: int = 4) -> None:
        super().__init__()
        self.register_buffer("prior", None if prior is None else _PRIOR_LOGIT * (2 * prior[None] - 1))
        widths = [width * 2**level for level in range(depth)]
        self.multiple = 2**depth
        """Height and width are padded to multiples of it."""
        self.stem = convolutions(3, width, stride=2)
        self.down = nn.ModuleList(convolutions(upper, lower) for upper, lower in pairwise(widths))
        up = [convolutions(upper + lower, upper) for upper, lower in reversed(list(pairwise(widths)))]
        # With the last ReLU the masks of small parts stay empty for long: while all heads learn that most pixels lie
        # outside, the features that they share can only sink to 0.
        (up[-1] if up else self.stem).pop(-1)
        self.up = nn.ModuleList(up)
        self.heads = nn.Conv2d(width, groups, kernel_size=1)
        """One 1x1 convolution: each of its K filters, with its bias, is a group's head."""
        # Convolutions run faster in this memory format, on CPUs and on GPUs with tensor cores.
        self.to(memory_format=torch.channels_last)

    def forward(self, image: Tensor) -> Tensor:
        """Predict the masks.

        Args:
            image: (B, 3, H, W), uint8 or float, in the range 0 to 255.

        Returns:
            logits float (B, K, H, W), upsampled bilinearly from half of the resolution.
        """
        height, width = image.shape[-2:]
        features = image.to(self.heads.weight.dtype) / 127.5 - 1
        padding = (0, -width % self.multiple, 0, -height % self.multiple)
        if any(padding):
            features = functional.pad(features, padding, mode="replicate")
        features = self.stem(features.contiguous(memory_format=torch.channels_last))
        skipped = []
        for level in self.down:
            skipped.append(features)
            features = level(functional.max_pool2d(features, 2))
        for level in self.up:
            upsampled = functional.interpolate(features, scale_factor=2, mode="nearest")
            features = level(torch.cat([upsampled, skipped.pop()], dim=1))
        logits = functional.interpolate(self.heads(features), scale_factor=2, mode="bilinear")[..., :height, :width]
        if self.prior is not None:
            logits = logits + functional.interpolate(self.prior, size=(height, width), mode="bilinear")
        return logits
