"""The order of samples: a pure function of (seed, epoch, position), whatever the ranks and workers."""

import numpy as np
import pytest

from faceattr_lightning.data.order import EpochOrder, sample_uniforms
from faceattr_lightning.errors import ConfigError


def rows_by_position(count: int, batch_size: int, world_size: int, epoch: int, training: bool) -> dict[int, int]:
    found: dict[int, int] = {}
    for rank in range(world_size):
        order = EpochOrder(count, batch_size, seed=3, training=training, rank=rank, world_size=world_size)
        order.set_epoch(epoch)
        for request in order:
            assert request.epoch == epoch
            for position, row in zip(request.positions.tolist(), request.rows.tolist(), strict=True):
                assert position not in found, "a position was handled twice"
                found[position] = row
    return found


def test_training_order_does_not_depend_on_the_number_of_ranks() -> None:
    alone, together = (rows_by_position(101, 8 // world, world, epoch=2, training=True) for world in (1, 2))
    assert alone == together
    assert len(alone) == 96  # the remainder of 101 is left out
    assert len(set(alone.values())) == 96


def test_global_batches_do_not_depend_on_the_number_of_ranks() -> None:
    one = list(EpochOrder(64, 16, seed=3, training=True))
    two = [list(EpochOrder(64, 8, seed=3, training=True, rank=rank, world_size=2)) for rank in range(2)]
    for whole, *parts in zip(one, *two, strict=True):
        assert np.concatenate([part.rows for part in parts]).tolist() == whole.rows.tolist()


def test_epochs_and_seeds_differ_and_repeat() -> None:
    first, again = (rows_by_position(50, 5, 1, epoch=0, training=True) for _ in range(2))
    assert first == again
    assert first != rows_by_position(50, 5, 1, epoch=1, training=True)
    other_seed = EpochOrder(50, 5, seed=4, training=True)
    assert [row for request in other_seed for row in request.rows] != list(first.values())


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("count", [3, 10, 17, 64, 65])
def test_evaluation_covers_each_row_once_in_equal_steps(count: int, world_size: int) -> None:
    steps = {
        len(list(EpochOrder(count, 8, 0, training=False, rank=rank, world_size=world_size)))
        for rank in range(world_size)
    }
    assert len(steps) == 1, "ranks with different numbers of steps would wait for each other for ever"
    found = rows_by_position(count, 8, world_size, epoch=0, training=False)
    assert found == {row: row for row in range(count)}
    sizes = [len(request.rows) for request in EpochOrder(count, 8, 0, training=False, world_size=world_size)]
    assert max(sizes) <= 8 and min(sizes) >= 1


def test_too_few_images_for_one_step() -> None:
    with pytest.raises(ConfigError, match=r"data\.batch_size: the train split has 7 images, but one step takes 8"):
        EpochOrder(7, 4, 0, training=True, world_size=2, split="train")
    with pytest.raises(ConfigError, match="the test split has 0 images"):
        EpochOrder(0, 4, 0, training=False, split="test")


def test_uniforms_belong_to_their_position() -> None:
    positions = np.arange(1000)
    whole = sample_uniforms(1, 2, positions, 5)
    assert whole.dtype == np.float32 and whole.shape == (1000, 5)
    assert (whole >= 0).all() and (whole < 1).all()
    some = np.array([999, 3, 512])
    np.testing.assert_array_equal(sample_uniforms(1, 2, some, 5), whole[some])
    np.testing.assert_array_equal(sample_uniforms(1, 2, positions, 3), whole[:, :3])


def test_uniforms_are_uniform_and_uncorrelated() -> None:
    numbers = sample_uniforms(0, 0, np.arange(20_000), 4).astype(float)
    # The mean of n uniform numbers has a standard deviation of sqrt(1 / 12 / n); the bounds are five of them.
    assert np.abs(numbers.mean(axis=0) - 0.5).max() < 5 * (1 / 12 / 20_000) ** 0.5
    assert np.abs(np.histogram(numbers, bins=10, range=(0, 1))[0] / 80_000 - 0.1).max() < 0.006
    columns = np.corrcoef(numbers.T)[np.triu_indices(4, 1)]
    neighbours = [np.corrcoef(numbers[:-1, k], numbers[1:, k])[0, 1] for k in range(4)]
    epochs = [np.corrcoef(numbers[:, k], sample_uniforms(0, 1, np.arange(20_000), 4)[:, k])[0, 1] for k in range(4)]
    assert np.abs([*columns, *neighbours, *epochs]).max() < 5 / 20_000**0.5
