"""Masked losses against sums over the labelled samples, and gradients that stop at what is not labelled."""

import math

import pytest
import torch

from faceattr_lightning.models.losses import attribute_bce, landmark_error, landmark_smooth_l1


def test_attribute_bce_averages_over_the_labelled() -> None:
    logits = torch.tensor([[0.5, -1.0], [2.0, 3.0], [-0.3, 0.1]], requires_grad=True)
    labels = torch.tensor([[1, -1], [0, 1], [-1, 0]], dtype=torch.int8)
    losses = attribute_bce(logits, labels)
    first = (math.log1p(math.exp(-0.5)) + math.log1p(math.exp(2.0))) / 2
    second = (math.log1p(math.exp(-3.0)) + math.log1p(math.exp(0.1))) / 2
    assert losses.tolist() == pytest.approx([first, second])
    losses.sum().backward()
    assert logits.grad is not None
    assert (logits.grad == 0).tolist() == [[False, True], [False, False], [True, False]]


def test_an_attribute_without_a_label_costs_nothing() -> None:
    logits = torch.tensor([[5.0], [-5.0]], requires_grad=True)
    loss = attribute_bce(logits, torch.full((2, 1), -1, dtype=torch.int8))
    assert loss.tolist() == [0]
    loss.sum().backward()
    assert logits.grad is not None and not logits.grad.any()


def test_landmark_loss_by_hand() -> None:
    target = torch.zeros(2, 2, 2)
    predicted = torch.tensor([[[0.02, 0.2], [9.0, 9.0]], [[0.0, -0.1], [9.0, 9.0]]])
    valid = torch.tensor([[True, False], [True, False]])
    beta = 0.05
    small, *large = 0.02**2 / (2 * beta), 0.2 - beta / 2, 0.1 - beta / 2
    expected = (small + sum(large)) / 4
    assert float(landmark_smooth_l1(predicted, target, valid, beta)) == pytest.approx(expected)
    assert float(landmark_smooth_l1(predicted, target, torch.zeros_like(valid), beta)) == 0


def test_landmark_error_in_distances_between_the_eyes() -> None:
    target = torch.tensor([[[0.3, 0.4], [0.7, 0.4], [0.5, 0.6]]]).repeat(2, 1, 1)
    predicted = target.clone()
    predicted[:, 2, 0] += 0.12
    valid = torch.tensor([[True, True, True], [True, True, False]])
    error = landmark_error(predicted, target, valid)
    assert float(error[0]) == pytest.approx(0.12 / 3 / 0.4)
    assert error[1].isnan()
