"""What trainer.precision=auto becomes."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from faceattr_lightning.networks.heads import LogitLayer
from faceattr_lightning.precision import choose_precision

DENSE = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=2))
DEPTHWISE = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=8))


@pytest.fixture
def cpu(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make the CPU one with these capabilities and no others."""
    return lambda **able: monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)


@pytest.mark.parametrize(
    ("able", "network", "chosen"),
    [
        ({"amx_bf16": True}, DENSE, "bf16-mixed"),
        ({"avx512_bf16": True}, DENSE, "bf16-mixed"),
        ({"avx512_bf16": True}, DEPTHWISE, "32-true"),
        ({"avx2": True}, DENSE, "32-true"),
        ({}, DENSE, "32-true"),
    ],
)
def test_rule_on_a_cpu(
    cpu: Any, able: dict[str, bool], network: nn.Module, chosen: str, caplog: pytest.LogCaptureFixture
) -> None:
    cpu(**able)
    with caplog.at_level(logging.INFO, logger="faceattr_lightning"):
        assert choose_precision("auto", "cpu", network) == chosen
    assert f"Precision: {chosen}, since the " in caplog.text


def test_what_is_asked_for_is_taken(cpu: Any) -> None:
    cpu(amx_bf16=True)
    assert choose_precision("32-true", "cpu", DENSE) == "32-true"
    assert choose_precision(None, "cpu", DENSE) is None
    assert choose_precision("auto", "mps", DENSE) == "32-true"


def test_logits_keep_their_digits_under_mixed_precision() -> None:
    layer = LogitLayer(16, 4)
    inputs = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        logits = layer(inputs)
    assert torch.equal(logits, layer(inputs)) and logits.dtype == torch.float32
    logits.sum().backward()
    assert layer.weight.grad is not None
