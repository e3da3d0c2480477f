"""The order of samples and their random numbers: a pure function of (seed, epoch, position).

Nothing here depends on the number of workers. The number of ranks decides only who handles a position, never what
happens at it: rank r of R takes its part of each global batch, without copies and without gaps. Mixup alone blends
neighbours of a rank's batch, which are others where ranks are more.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from faceattr_lightning.errors import ConfigError


@dataclass(frozen=True)
class Mix:
    """How much of an epoch each part of a split gets, whatever its size.

    Attributes:
        part: int64 (n,), the part that each row of the split belongs to.
        shares: float64 (P,), of each part; of sum 1, 0 for a part without rows.
    """

    part: NDArray[np.int64]
    shares: NDArray[np.float64]


@dataclass(frozen=True)
class BatchRequest:
    """What a data set is asked for: a whole batch at once.

    Attributes:
        rows: int64 (B,), rows of the split to fetch, in this order.
        positions: int64 (B,), where each stands in the epoch's global order.
        epoch: the epoch that the positions belong to.
    """

    rows: NDArray[np.int64]
    positions: NDArray[np.int64]
    epoch: int


class EpochOrder(Sampler[BatchRequest]):
    """Yields the batch requests of one rank for one epoch.

    In training the order is shuffled and cut into global batches of ``batch_size * world_size``; the remainder of an
    epoch is left out, and is another remainder each epoch. In evaluation nothing is left out and nothing repeated: the
    rows are cut into ``steps * world_size`` parts whose sizes differ by one at most, so that ranks take the same number
    of steps.

    Args:
        count: number of rows in the split.
        batch_size: samples per rank and step.
        seed: of the shuffling.
        training: shuffle and drop the remainder.
        rank: of this process, 0 <= rank < world_size.
        world_size: number of processes.
        split: named in an error.
        mix: of a training split's parts; ``None`` takes every row once an epoch. An epoch has `count` samples all the
            same: rows of a part that gets more than its size come again after all of them came, of a part that gets
            less some are left out, others each epoch.

    Raises:
        ConfigError: the split has too few rows for one step.
    """

    def __init__(
        self,
        count: int,
        batch_size: int,
        seed: int,
        training: bool,
        rank: int = 0,
        world_size: int = 1,
        split: str = "split",
        mix: Mix | None = None,
    ) -> None:
        self.count, self.batch_size, self.seed, self.training = count, batch_size, seed, training
        self.rank, self.world_size = rank, world_size
        self.mix = mix
        self.epoch = 0
        self._begin = (0, 0)
        needed = batch_size * world_size if training else world_size
        if count < needed:
            raise ConfigError(
                [
                    f"data.batch_size: the {split} split has {count} images, but one step takes {needed} "
                    f"({batch_size if training else 1} on each of {world_size} process(es)). "
                    "Lower data.batch_size or trainer.devices, or raise data.train_fraction."
                ]
            )

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration; Lightning calls it."""
        self.epoch = epoch

    def begin_at(self, epoch: int, step: int) -> None:
        """Leave out the first steps of one epoch, which are done; its length stays that of the whole epoch."""
        self.epoch, self._begin = epoch, (epoch, step)

    def __len__(self) -> int:
        per_step = self.batch_size * self.world_size
        if self.training:
            return self.count // per_step
        # No rank may be left without a sample in a step; parts of one may then grow to two.
        return min(-(-self.count // per_step), self.count // self.world_size)

    def __iter__(self) -> Iterator[BatchRequest]:
        if self.training:
            order = self._shuffled(np.random.Generator(np.random.Philox(key=[self.seed, self.epoch])))
        else:
            order = np.arange(self.count, dtype=np.int64)
        epoch, first = self._begin
        for step in range(first if self.epoch == epoch else 0, len(self)):
            start, stop = self._bounds(step)
            positions = np.arange(start, stop, dtype=np.int64)
            yield BatchRequest(order[positions], positions, self.epoch)

    def _shuffled(self, generator: np.random.Generator) -> NDArray[np.int64]:
        if self.mix is None:
            return generator.permutation(self.count).astype(np.int64)
        ends = np.rint(np.cumsum(self.mix.shares) * self.count).astype(np.int64)
        drawn = []
        for part, quota in enumerate(np.diff(ends, prepend=0)):
            members = np.flatnonzero(self.mix.part == part)
            rounds = -(-int(quota) // max(1, len(members)))
            drawn += [np.concatenate([generator.permutation(members) for _ in range(rounds)])[:quota]] if rounds else []
        return generator.permutation(np.concatenate(drawn)).astype(np.int64)

    def _bounds(self, step: int) -> tuple[int, int]:
        part = step * self.world_size + self.rank
        if self.training:
            return part * self.batch_size, (part + 1) * self.batch_size
        parts = len(self) * self.world_size
        return part * self.count // parts, (part + 1) * self.count // parts


def sample_uniforms(seed: int, epoch: int, positions: NDArray[np.int64], count: int) -> NDArray[np.float32]:
    """Return random numbers that depend on nothing but (seed, epoch, position, column).

    The mixing is the finaliser of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014), applied once per key part.

    Args:
        seed: non-negative.
        epoch: non-negative.
        positions: int64 (B,).
        count: numbers per position.

    Returns:
        float32 (B, count), uniform in [0, 1).
    """
    state = np.zeros((len(positions), count), dtype=np.uint64)
    for part in (
        np.uint64(seed),
        np.uint64(epoch),
        positions.astype(np.uint64)[:, None],
        np.arange(count, dtype=np.uint64),
    ):
        state = _mix(state ^ part)
    return ((state >> np.uint64(40)).astype(np.float32)) / np.float32(1 << 24)


def _mix(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    state = state + np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))
