"""DMM-CNN's weights against a computation by hand."""

import math
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from faceattr_lightning.callbacks.task_weighting import DMMWeighting, DWSWeighting, dmm_weights, dws_weights
from faceattr_lightning.errors import ConfigError


def by_hand(previous: list[float], current: list[float]) -> list[float]:
    trend = [abs(now - before) / now for before, now in zip(previous, current, strict=True)]
    mean_trend, mean_now = sum(trend) / len(trend), sum(current) / len(current)
    product = [t / mean_trend * now / mean_now for t, now in zip(trend, current, strict=True)]
    return [value * len(product) / sum(product) for value in product]


def test_the_formula() -> None:
    previous, current = [0.7, 0.5, 0.2, 0.4], [0.6, 0.5, 0.25, 0.1]
    weights = dmm_weights(
        torch.tensor(previous, dtype=torch.float64), torch.tensor(current, dtype=torch.float64), eps=0
    )
    assert weights is not None
    assert weights.tolist() == pytest.approx(by_hand(previous, current))
    assert float(weights.mean()) == pytest.approx(1)
    assert weights[1] == 0  # it does not move


def test_weights_are_one_until_two_windows_have_passed() -> None:
    weighting = DMMWeighting(3)
    weighting.update(torch.tensor([0.7, 0.5, 0.2]))
    assert weighting.weights.tolist() == [1, 1, 1]
    weighting.update(torch.tensor([0.6, 0.6, 0.25]))
    assert weighting.weights.tolist() == pytest.approx(by_hand([0.7, 0.5, 0.2], [0.6, 0.6, 0.25]), abs=1e-5)
    weighting.update(torch.tensor([0.5, 0.3, 0.2]))
    assert weighting.weights.tolist() == pytest.approx(by_hand([0.6, 0.6, 0.25], [0.5, 0.3, 0.2]), abs=1e-5)


def test_an_attribute_without_a_label_keeps_weight_one_and_its_last_loss() -> None:
    weighting = DMMWeighting(3)
    weighting.update(torch.tensor([0.7, 0.5, 0.2]))
    weighting.update(torch.tensor([0.6, torch.nan, 0.25]))
    first, last = by_hand([0.7, 0.2], [0.6, 0.25])
    assert weighting.weights.tolist() == pytest.approx([first, 1, last], abs=1e-5)
    weighting.update(torch.tensor([0.5, 0.4, 0.3]))
    assert weighting.weights.tolist() == pytest.approx(by_hand([0.6, 0.5, 0.25], [0.5, 0.4, 0.3]), abs=1e-5)


@pytest.mark.parametrize("losses", [[0.0, 0.0], [0.3, 0.3]])
def test_losses_that_are_zero_or_do_not_move_change_nothing(losses: list[float]) -> None:
    weighting = DMMWeighting(2)
    for _ in range(3):
        weighting.update(torch.tensor(losses))
    assert weighting.weights.tolist() == [1, 1]


def test_one_loss_that_falls_to_zero_stays_finite() -> None:
    weighting = DMMWeighting(2)
    weighting.update(torch.tensor([0.5, 0.5]))
    weighting.update(torch.tensor([0.0, 0.4]))
    assert weighting.weights.isfinite().all()
    assert float(weighting.weights.mean()) == pytest.approx(1)


def test_smoothing_and_clip_keep_the_mean() -> None:
    previous, current = [0.7, 0.5, 0.2], [0.6, 0.5, 0.25]
    plain = by_hand(previous, current)
    smooth = DMMWeighting(3, smoothing=0.5)
    clipped = DMMWeighting(3, floor=0.5, ceiling=1.5)
    for weighting in (smooth, clipped):
        weighting.update(torch.tensor(previous))
        weighting.update(torch.tensor(current))
    assert smooth.weights.tolist() == pytest.approx([(1 + weight) / 2 for weight in plain], abs=1e-5)
    bounded = [min(max(weight, 0.5), 1.5) for weight in plain]
    assert clipped.weights.tolist() == pytest.approx([weight * 3 / sum(bounded) for weight in bounded], abs=1e-5)


def test_the_state_goes_on_exactly() -> None:
    first = DMMWeighting(3)
    first.update(torch.tensor([0.7, 0.5, 0.2]))
    second = DMMWeighting(3)
    second.load_state_dict(first.state_dict())
    for weighting in (first, second):
        weighting.update(torch.tensor([0.6, 0.4, 0.3]))
    assert torch.equal(first.weights, second.weights)
    assert not torch.equal(first.weights, torch.ones(3))


def test_bad_settings_are_named_together() -> None:
    with pytest.raises(ConfigError) as raised:
        DMMWeighting(3, every=0, smoothing=1.0, floor=2.0)
    assert [problem.split(":")[0] for problem in raised.value.problems] == [
        "weighting.every",
        "weighting.smoothing",
        "weighting.floor, weighting.ceiling",
    ]


def test_dws_by_hand() -> None:
    before, current, temperature = [0.8, 0.6, 0.5], [0.4, 0.57, 0.5], 2.0
    powers = [math.exp(now / then / temperature) for then, now in zip(before, current, strict=True)]
    raw = [3 * power / sum(powers) / now for power, now in zip(powers, current, strict=True)]
    expected = [value * 3 / sum(raw) for value in raw]
    weights = dws_weights(torch.tensor(before).double(), torch.tensor(current).double(), temperature)
    assert weights is not None and weights.tolist() == pytest.approx(expected)


def test_dws_weighs_groups_after_two_windows() -> None:
    # Two attributes in the first group, one in the second.
    weighting = DWSWeighting(3, group_of=[0, 0, 1])
    weighting.update(torch.tensor([0.7, 0.9, 0.4]))
    assert weighting.weights.tolist() == [1, 1, 1]
    weighting.update(torch.tensor([0.3, 0.5, 0.4]))
    group = dws_weights(torch.tensor([0.8, 0.4]).double(), torch.tensor([0.4, 0.4]).double(), 2.0)
    assert group is not None
    expected = group[[0, 0, 1]] / group[[0, 0, 1]].mean()
    assert weighting.weights.tolist() == pytest.approx(expected.tolist())
    assert weighting.weights[0] == weighting.weights[1] < weighting.weights[2]  # the second group stands still
    assert float(weighting.weights.mean()) == pytest.approx(1)


def test_dws_without_a_label_of_a_group() -> None:
    weighting = DWSWeighting(3, group_of=[0, 1, 1])
    for losses in ([math.nan, 0.5, 0.3], [math.nan, 0.4, 0.3], [0.0, 0.4, 0.2]):
        weighting.update(torch.tensor(losses))
        assert weighting.weights.isfinite().all() and float(weighting.weights.mean()) == pytest.approx(1)
    assert weighting.before[0] == 0


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"smoothing": 1.0}])
def test_dws_refuses(options: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=f"weighting.{next(iter(options))}"):
        DWSWeighting(3, **options)


def test_dws_counts_the_labels_that_are_there() -> None:
    weighting = DWSWeighting(2, group_of=[0, 1])
    trainer: Any = SimpleNamespace(strategy=SimpleNamespace(reduce=lambda values, reduce_op: values))
    # Three batches: the first attribute has labels in one of them, the second never.
    for losses, counts in (([1.4, 0.0], [2, 0]), ([0.0, 0.0], [0, 0]), ([0.0, 0.0], [0, 0])):
        outputs = {"loss_sums": torch.tensor(losses), "label_counts": torch.tensor(counts)}
        weighting.on_train_batch_end(trainer, cast(Any, None), outputs, None, 0)
    weighting.on_train_epoch_end(trainer, cast(Any, None))
    mean = weighting.loss_sum / weighting.loss_count
    assert float(mean[0]) == pytest.approx(0.7) and mean[1].isnan()
    # An epoch without validation goes on with the same window; what is saved between is whole.
    weighting.on_train_epoch_end(trainer, cast(Any, None))
    assert weighting.loss_count.tolist() == [2, 0]
