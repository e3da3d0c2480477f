"""Each weighting's formula against a computation by hand."""

import math
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from faceattr_lightning.callbacks.task_weighting import (
    DMMWeighting,
    DWAWeighting,
    DWSWeighting,
    GradNormWeighting,
    InversePrevalenceWeighting,
    TaskWeighting,
    UncertaintyWeighting,
)
from faceattr_lightning.callbacks.task_weighting.dmm import dmm_weights
from faceattr_lightning.callbacks.task_weighting.gradnorm import gradient_norms, gradnorm_weights
from faceattr_lightning.errors import ConfigError

ONE_RANK: Any = SimpleNamespace(strategy=SimpleNamespace(reduce=lambda values, reduce_op: values))


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


def dwa_by_hand(before: list[float], current: list[float], temperature: float) -> list[float]:
    powers = [math.exp(now / then / temperature) for then, now in zip(before, current, strict=True)]
    return [len(powers) * power / sum(powers) for power in powers]


def dws_by_hand(before: list[float], current: list[float], temperature: float) -> list[float]:
    raw = [weight / now for weight, now in zip(dwa_by_hand(before, current, temperature), current, strict=True)]
    return [value * len(raw) / sum(raw) for value in raw]


def test_dwa_by_hand() -> None:
    weighting = DWAWeighting(3, temperature=1.5)
    weighting.update(torch.tensor([0.8, 0.6, 0.5]))
    assert weighting.weights.tolist() == [1, 1, 1]
    weighting.update(torch.tensor([0.4, 0.57, 0.5]))
    assert weighting.weights.tolist() == pytest.approx(dwa_by_hand([0.8, 0.6, 0.5], [0.4, 0.57, 0.5], 1.5))


def test_dws_by_hand() -> None:
    weighting = DWSWeighting(3, temperature=2.0)
    weighting.update(torch.tensor([0.8, 0.6, 0.5]))
    weighting.update(torch.tensor([0.4, 0.57, 0.5]))
    assert weighting.weights.tolist() == pytest.approx(dws_by_hand([0.8, 0.6, 0.5], [0.4, 0.57, 0.5], 2.0))


def test_dws_weighs_groups_after_two_windows() -> None:
    # Two attributes in the first group, one in the second.
    weighting = DWSWeighting(3, group_of=[0, 0, 1], over="group")
    weighting.update(torch.tensor([0.7, 0.9, 0.4]))
    assert weighting.weights.tolist() == [1, 1, 1]
    weighting.update(torch.tensor([0.3, 0.5, 0.4]))
    first, second = dws_by_hand([0.8, 0.4], [0.4, 0.4], 2.0)
    scale = 3 / (2 * first + second)
    assert weighting.weights.tolist() == pytest.approx([first * scale, first * scale, second * scale])
    assert weighting.weights[0] == weighting.weights[1] < weighting.weights[2]  # the second group stands still


def test_dws_without_a_label_of_a_group() -> None:
    weighting = DWSWeighting(3, group_of=[0, 1, 1], over="group")
    for losses in ([math.nan, 0.5, 0.3], [math.nan, 0.4, 0.3], [0.0, 0.4, 0.2]):
        weighting.update(torch.tensor(losses))
        assert weighting.weights.isfinite().all() and float(weighting.weights.mean()) == pytest.approx(1)
    assert weighting.before[0] == 0


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"smoothing": 1.0}, {"floor": 2.0}])
def test_dws_refuses(options: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=f"weighting.{next(iter(options))}"):
        DWSWeighting(3, **options)  # type: ignore[arg-type]


def test_dws_counts_the_labels_that_are_there() -> None:
    weighting = DWSWeighting(2, group_of=[0, 1], over="group")
    # Three batches: the first attribute has labels in one of them, the second never.
    for losses, counts in (([1.4, 0.0], [2, 0]), ([0.0, 0.0], [0, 0]), ([0.0, 0.0], [0, 0])):
        outputs = {"loss_sums": torch.tensor(losses), "label_counts": torch.tensor(counts)}
        weighting.on_train_batch_end(ONE_RANK, cast(Any, None), outputs, None, 0)
    weighting.on_train_epoch_end(ONE_RANK, cast(Any, None))
    # An epoch without validation goes on with the same window; what is saved between is whole.
    weighting.on_train_epoch_end(ONE_RANK, cast(Any, None))
    assert weighting.losses.counts.tolist() == [2, 0]
    means = weighting.losses.end()
    assert float(means[0]) == pytest.approx(0.7) and means[1].isnan()


def test_tasks_are_weighed_beside_the_attributes_as_one() -> None:
    weighting = DWAWeighting(3, tasks=["age_group", "landmarks"], over="task")
    weighting.update(torch.tensor([0.7, 0.5, 0.6, 2.0, math.nan]))
    weighting.update(torch.tensor([0.3, 0.2, 0.4, 1.9, math.nan]))
    attributes, age = dwa_by_hand([0.6, 2.0], [0.3, 1.9], 2.0)
    assert weighting.weights.tolist() == pytest.approx([attributes] * 3)
    assert weighting.task_weights.tolist() == pytest.approx([age, 1.0])  # no image has landmarks
    terms = weighting.weigh(
        torch.tensor([0.1, 0.2, 0.3]), {"age_group": torch.tensor(2.0), "center": torch.tensor(5.0)}
    )
    assert {name: float(term) for name, term in terms.items()} == pytest.approx(
        {"attributes": attributes * 0.6, "age_group": 2 * age, "center": 5.0}
    )


@pytest.mark.parametrize("strategy", [DWAWeighting, UncertaintyWeighting, GradNormWeighting])
def test_a_model_without_another_task_has_none_to_weigh(strategy: type[TaskWeighting]) -> None:
    with pytest.raises(ConfigError, match=r"weighting\.over: this model has no task beside"):
        strategy(3, over="task")  # type: ignore[call-arg]


def test_uncertainty_is_its_papers_loss_and_ends_where_it_should() -> None:
    weighting = UncertaintyWeighting(3, group_of=[0, 0, 1], over="group")
    losses = torch.tensor([0.2, 0.4, 0.1])
    optimizer = torch.optim.SGD(weighting.parameters(), lr=0.2)
    for _ in range(400):
        optimizer.zero_grad()
        terms = weighting.weigh(losses, {"landmarks": torch.tensor(7.0)})
        torch.stack(list(terms.values())).sum().backward()
        optimizer.step()
    log_variance = weighting.log_variance.detach()
    terms = weighting.weigh(losses, {})
    by_hand = sum(
        math.exp(-s) * loss + s / 2 for s, loss in zip(log_variance[[0, 0, 1]].tolist(), losses.tolist(), strict=True)
    )
    assert sum(float(term.detach()) for term in terms.values()) == pytest.approx(by_hand)
    # The minimum of a sum of m losses of mean L: exp(-s) = 1 / (2 L).
    weighting.on_train_batch_end(cast(Any, None), cast(Any, None), None, None, 0)
    assert weighting.weights.tolist() == pytest.approx([1 / 0.6, 1 / 0.6, 1 / 0.2], rel=1e-3)


def test_uncertainty_stays_within_its_bounds() -> None:
    weighting = UncertaintyWeighting(2, floor=0.5, ceiling=2.0)
    with torch.no_grad():
        weighting.log_variance.copy_(torch.tensor([5.0, -5.0]))
    terms = weighting.weigh(torch.tensor([1.0, 1.0]), {})
    assert float(terms["attributes"].detach()) == pytest.approx(2.5)


def test_inverse_prevalence_by_hand() -> None:
    weighting = InversePrevalenceWeighting(4, power=0.5)
    model: Any = SimpleNamespace(train_prevalence=torch.tensor([0.25, 0.04, torch.nan, 0.0]))
    weighting.on_fit_start(cast(Any, None), model)
    first, second = 2 / 3.5, 5 / 3.5
    scale = 4 / (first + second + 2)
    assert weighting.weights.tolist() == pytest.approx([first * scale, second * scale, scale, scale])


def test_gradnorm_by_hand() -> None:
    first, current, norms, alpha = [0.7, 0.6, 0.8], [0.35, 0.5, 0.2], [2.0, 1.0, 4.0], 1.5
    ratios = [now / then for then, now in zip(first, current, strict=True)]
    mean = sum(ratios) / 3
    raw = [(ratio / mean) ** alpha / norm for ratio, norm in zip(ratios, norms, strict=True)]
    expected = [value * 3 / sum(raw) for value in raw]
    tensors = [torch.tensor(values).double() for values in (first, current, norms)]
    weights = gradnorm_weights(*tensors, alpha)
    assert weights.tolist() == pytest.approx(expected)
    # Where the paper's descent ends: the gradient norms are to each other as the powers of the ratios.
    pulled = [float(weight) * norm / ratio**alpha for weight, norm, ratio in zip(weights, norms, ratios, strict=True)]
    assert pulled == pytest.approx([pulled[0]] * 3)


def test_gradient_norms_are_those_of_the_last_shared_weight() -> None:
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3), nn.Tanh())
    unused = nn.Linear(3, 3)
    backbone.append(unused)
    head, inputs, targets = nn.Linear(3, 2), torch.randn(6, 4), torch.randn(6, 2)

    def losses() -> Tensor:
        return ((head(backbone[:4](inputs)) - targets) ** 2).mean(dim=0)

    expected = []
    for index in range(2):
        backbone.zero_grad()
        losses()[index].backward()
        gradient = backbone[2].weight.grad
        assert gradient is not None
        expected.append(float(gradient.norm()))
    found = gradient_norms(torch.cat([losses(), torch.tensor([math.nan])]), backbone, lambda gradient: gradient)
    assert found.tolist() == pytest.approx([*expected, 0])


def test_gradnorm_changes_every_so_many_steps_and_goes_on_exactly() -> None:
    def step(weighting: GradNormWeighting, seed: int) -> None:
        torch.manual_seed(seed)
        backbone, head = nn.Linear(4, 3), nn.Linear(3, 2)
        losses = head(backbone(torch.randn(5, 4))).square().mean(dim=0)
        model: Any = SimpleNamespace(network=SimpleNamespace(backbone=backbone))
        total = torch.stack(list(weighting.weigh(losses, {}).values())).sum()
        weighting.on_before_backward(ONE_RANK, model, total)
        total.backward()
        outputs = {"loss_sums": losses.detach() * 5, "label_counts": torch.tensor([5, 5])}
        weighting.on_train_batch_end(ONE_RANK, model, outputs, None, 0)

    whole = GradNormWeighting(2, every=2, smoothing=0.0)
    step(whole, 0)
    assert whole.weights.tolist() == [1, 1]
    step(whole, 1)
    assert whole.weights.tolist() != [1, 1] and float(whole.weights.mean()) == pytest.approx(1)
    step(whole, 2)
    whole.on_train_epoch_end(ONE_RANK, cast(Any, None))  # a checkpoint is written
    resumed = GradNormWeighting(2, every=2, smoothing=0.0)
    resumed.load_state_dict(whole.state_dict())
    resumed.on_train_start(ONE_RANK, cast(Any, None))
    for weighting in (whole, resumed):
        step(weighting, 3)
    assert torch.equal(whole.weights, resumed.weights)
    assert whole.first.isfinite().all()


def test_gradnorm_needs_a_backbone_that_is_trained() -> None:
    model: Any = SimpleNamespace(network=SimpleNamespace(backbone=nn.Linear(2, 2).requires_grad_(False)))
    with pytest.raises(ConfigError, match=r"backbone\.freeze"):
        GradNormWeighting(2).on_fit_start(ONE_RANK, model)
