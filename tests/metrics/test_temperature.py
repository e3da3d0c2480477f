"""Temperatures against scipy's minimiser, and against the temperature that labels were drawn with."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from sklearn.metrics import log_loss

from faceattr_lightning.metrics.temperature import GREATEST, LEAST, fit_temperatures


def test_no_temperature_is_likelier() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(300, 4, generator=generator) * torch.tensor([0.3, 1.0, 4.0, 9.0])
    labels = (torch.rand(300, 4, generator=generator) < (logits / 2).sigmoid()).to(torch.int8)
    labels[::7, 1] = -1
    found = fit_temperatures(logits, labels)
    for column in range(4):
        known = labels[:, column] >= 0
        z, y = logits[known, column].double().numpy(), labels[known, column].numpy()
        least = minimize_scalar(
            lambda t, z=z, y=y: log_loss(y, 1 / (1 + np.exp(-z / t))), bounds=(0.05, 20), method="bounded"
        )
        assert float(found[column]) == pytest.approx(least.x, rel=1e-3)


def test_the_temperature_that_labels_were_drawn_with() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = 3 * torch.randn(100_000, 2, generator=generator)
    labels = (torch.rand(100_000, 2, generator=generator) < (logits / torch.tensor([2.5, 0.5])).sigmoid()).to(
        torch.int8
    )
    assert fit_temperatures(logits, labels).tolist() == pytest.approx([2.5, 0.5], rel=0.03)


def test_where_none_is_best() -> None:
    logits = torch.tensor([[1.0, 1.0, 0.0, 2.0, 1.0], [-1.0, 2.0, 0.0, -2.0, 1.0], [2.0, 3.0, 0.0, 1.0, -1.0]])
    labels = torch.tensor([[1, 1, 1, 0, -1], [0, 1, 0, 1, -1], [1, 1, 1, 0, -1]], dtype=torch.int8)
    # Without an error, one class, no logit, all wrong, no label.
    assert fit_temperatures(logits, labels).tolist() == pytest.approx([LEAST, 1, 1, GREATEST, 1])
