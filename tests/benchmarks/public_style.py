"""The style of public attribute repositories, written anew as the other side of our benchmarks.

After d-li14/face-attribute-prediction (its main.py and celeba.py): every image decoded by PIL when it is asked for,
transforms for one image at a time, a classifier of two logits and a cross-entropy for each attribute, and forty means
of loss and accuracy that are read off at every step. SGD with momentum 0.9, a weight decay of 1e-4 and a learning rate
of 0.1 for a batch of 256, a tenth of it after each 30 epochs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset
from torchvision import transforms


class ImageFiles(Dataset[tuple[Tensor, Tensor]]):
    """One file and its labels at a time.

    Args:
        files: of the images.
        labels: (N, A) in {0, 1}.
        transform: from a PIL image to a tensor.
    """

    def __init__(self, files: Sequence[Path], labels: NDArray[np.int8], transform: Callable[[Any], Tensor]) -> None:
        self.files, self.labels, self.transform = files, labels.tolist(), transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        with self.files[index].open("rb") as file:
            image = Image.open(file).convert("RGB")
        return self.transform(image), torch.LongTensor(self.labels[index])


def transform(
    mean: Sequence[float], std: Sequence[float], training: bool, crop: tuple[int, int] | None = None
) -> Callable[[Any], Tensor]:
    """Return the usual transforms: a random mirror image in training, a tensor, normalised.

    Args:
        mean: per channel, of values in [0, 1].
        std: per channel, of values in [0, 1].
        training: whether to mirror.
        crop: (height, width) of the centre to take first; ``None`` for the image as it is.
    """
    steps: list[Any] = [transforms.CenterCrop(crop)] if crop else []
    steps += [transforms.RandomHorizontalFlip()] if training else []
    return transforms.Compose([*steps, transforms.ToTensor(), transforms.Normalize(mean, std)])


class TwoLogits(nn.Module):
    """A network that pools and flattens its features, and a classifier of two logits for each attribute."""

    def __init__(self, body: nn.Module, channels: int, attributes: int) -> None:
        super().__init__()
        self.body = body
        self.heads = nn.ModuleList(nn.Linear(channels, 2) for _ in range(attributes))

    def forward(self, image: Tensor) -> list[Tensor]:
        features = self.body(image)
        return [head(features) for head in self.heads]


class Average:
    """A running mean."""

    def __init__(self) -> None:
        self.sum, self.count = 0.0, 0

    def update(self, value: float, count: int) -> None:
        self.sum += value * count
        self.count += count

    @property
    def mean(self) -> float:
        return self.sum / max(1, self.count)


def sgd(parameters: Iterable[nn.Parameter], batch_size: int) -> torch.optim.Optimizer:
    """Return the optimiser, its learning rate in proportion to the batch."""
    return torch.optim.SGD(parameters, 0.1 * batch_size / 256, momentum=0.9, weight_decay=1e-4)


def train(network: TwoLogits, batches: Iterable[tuple[Tensor, Tensor]], optimizer: Any) -> Iterator[None]:
    """Train for an epoch; yields after each step."""
    network.train()
    losses, right = [Average() for _ in network.heads], [Average() for _ in network.heads]
    for image, target in batches:
        terms = _losses(network(image), target, losses, right)
        optimizer.zero_grad()
        torch.stack(terms).sum().backward()
        optimizer.step()
        yield


def evaluate(network: TwoLogits, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Return the mean accuracy over the attributes, in [0, 1]."""
    network.eval()
    losses, right = [Average() for _ in network.heads], [Average() for _ in network.heads]
    with torch.no_grad():
        for image, target in batches:
            _losses(network(image), target, losses, right)
    return sum(average.mean for average in right) / len(right)


def _losses(
    outputs: Sequence[Tensor], target: Tensor, losses: Sequence[Average], right: Sequence[Average]
) -> list[Tensor]:
    terms = []
    for column, output in enumerate(outputs):
        terms.append(functional.cross_entropy(output, target[:, column]))
        losses[column].update(terms[-1].item(), len(target))
        correct = output.argmax(dim=1).eq(target[:, column]).float().mean()
        right[column].update(correct.item(), len(target))
    return terms
