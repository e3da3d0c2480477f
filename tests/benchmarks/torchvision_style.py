"""What torchvision offers for CelebA, used as its documentation shows: the other side of our benchmarks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import datasets, transforms


class CelebA(datasets.CelebA):  # type: ignore[misc]
    """`torchvision.datasets.CelebA` for any subset: only the check of the official files' MD5 sums is left out."""

    def _check_integrity(self) -> bool:
        return True


def loader(
    root: Path,
    split: str,
    size: int,
    normalise: tuple[Sequence[float], Sequence[float]] | None,
    batch_size: int = 64,
) -> DataLoader[tuple[Tensor, Tensor]]:
    """Return batches by the default collate function: the middle square of 178 pixels, resized; mirrored in training.

    Args:
        root: the folder that holds ``celeba``, flat.
        split: ``train``, which is mirrored and shuffled, or ``valid``.
        size: height and width in pixels.
        normalise: mean and standard deviation per channel for float32 images; ``None`` for uint8 ones.
        batch_size: the last batch may be smaller in validation.
    """
    training = split == "train"
    steps: list[Any] = [transforms.CenterCrop(178), transforms.Resize(size)]
    steps += [transforms.RandomHorizontalFlip()] if training else []
    steps += [transforms.ToTensor(), transforms.Normalize(*normalise)] if normalise else [transforms.PILToTensor()]
    faces = CelebA(str(root), split, transform=transforms.Compose(steps))
    return DataLoader(faces, batch_size, shuffle=training, drop_last=training)
