"""Small images first."""

from __future__ import annotations

import pytest
import torch
from lightning import Trainer

from faceattr_lightning.callbacks.progressive_resizing import ProgressiveResizing
from faceattr_lightning.data.preprocessing import resize
from faceattr_lightning.errors import ConfigError


def test_sizes_rise_in_a_straight_line() -> None:
    callback = ProgressiveResizing(start=0.5, until=0.75, multiple=16)
    # 64 + 64 * epoch / 6, up to the next 16.
    assert [callback.size(epoch, 8, 128) for epoch in range(8)] == [64, 80, 96, 96, 112, 128, 128, 128]
    assert [callback.size(epoch, 2, 112) for epoch in range(2)] == [64, 112]


@pytest.mark.parametrize(("start", "until"), [(0.5, 1.0), (0.5, 0.0), (1.0, 0.5), (0.01, 0.9)])
@pytest.mark.parametrize("epochs", [1, 2, 3, 10])
def test_the_last_epoch_has_the_full_size(start: float, until: float, epochs: int) -> None:
    callback = ProgressiveResizing(start, until)
    sizes = [callback.size(epoch, epochs, 120) for epoch in range(epochs)]
    assert sizes[-1] == 120 and sizes == sorted(sizes) and min(sizes) >= 32


def test_values_out_of_range() -> None:
    with pytest.raises(ConfigError) as caught:
        ProgressiveResizing(start=0, until=2, multiple=0)
    assert [problem.partition(":")[0] for problem in caught.value.problems] == [
        "callbacks.progressive.start",
        "callbacks.progressive.until",
        "callbacks.progressive.multiple",
    ]


def test_without_a_number_of_epochs_the_steps_tell() -> None:
    trainer = Trainer(max_steps=10, logger=False, enable_checkpointing=False, accelerator="cpu")
    trainer.fit_loop.max_batches = 4
    assert ProgressiveResizing._epochs(trainer) == 3


@pytest.mark.parametrize(("epochs", "steps", "expected"), [(5, 10, 3), (2, 10, 2), (5, -1, 5)])
def test_the_nearer_of_two_ends_counts(epochs: int, steps: int, expected: int) -> None:
    trainer = Trainer(max_epochs=epochs, max_steps=steps, logger=False, enable_checkpointing=False, accelerator="cpu")
    trainer.fit_loop.max_batches = 4
    assert ProgressiveResizing._epochs(trainer) == expected


def test_steps_of_accumulated_batches() -> None:
    trainer = Trainer(
        max_steps=10, accumulate_grad_batches=3, logger=False, enable_checkpointing=False, accelerator="cpu"
    )
    trainer.fit_loop.max_batches = 7
    # Three steps an epoch, the last of one batch.
    assert ProgressiveResizing._epochs(trainer) == 4


def test_resized_pixels_do_not_depend_on_their_type() -> None:
    image = torch.randint(0, 256, (2, 3, 40, 40), dtype=torch.uint8)
    small = resize(image, 24)
    assert small.dtype == torch.uint8 and small.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(small.float(), resize(image.float(), 24), atol=1.0, rtol=0)
    assert torch.equal(resize(image, 40), image)
