"""``task=summary``: parameters and operations against a count by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from faceattr_lightning.metrics.cost import Part, peak_memory, summarise
from tests.benchmarks.clock import in_child
from tests.runs import SMALL, run, run_dirs


def part(parts: list[Part], name: str) -> Part:
    """Return the part of a dotted name, however deep."""
    for one in parts:
        if one["name"] == name:
            return one
        if name.startswith(f"{one['name']}.") and one["parts"]:
            return part(one["parts"], name)
    raise AssertionError(f"no part {name}")


def assert_adds_up(whole: Part) -> None:
    for key in ("parameters", "trainable", "gmacs"):
        assert sum(one[key] for one in whole["parts"]) == pytest.approx(whole[key]), (whole["name"], key)  # type: ignore[literal-required]
    for one in whole["parts"]:
        if one["parts"]:
            assert_adds_up(one)


def test_the_baseline_through_the_program(tiny_data: Path, tmp_path: Path) -> None:
    finished = run("task=summary", *SMALL, "model=baseline", data=tiny_data, output=tmp_path)
    (run_dir,) = run_dirs(tmp_path, "summary")
    whole: Any = json.loads((run_dir / "summary.json").read_text())
    assert (whole["model"], whole["backbone"], whole["image_size"]) == ("Baseline", "test_resnet", 64)
    assert_adds_up(whole)

    network: Any = timm.create_model("test_resnet", num_classes=0, global_pool="")
    assert whole["parameters"] == sum(one.numel() for one in network.parameters()) + (network.num_features + 1) * 40
    assert whole["trainable"] == whole["parameters"]

    # One multiplication and addition for each weight of the convolution at each place of its output.
    convolution = network.conv1[0]
    stride = convolution.stride[0]
    weights = convolution.in_channels * convolution.out_channels * convolution.kernel_size[0] ** 2
    stem = part(whole["parts"], "backbone.body.conv1")
    layers = [layer for layer in network.conv1 if isinstance(layer, nn.Conv2d)]
    places = []
    side = 64
    for layer in layers:
        side //= layer.stride[0]
        places.append(side**2 * layer.weight.numel())
    assert places[0] == (64 // stride) ** 2 * weights
    assert stem["gmacs"] == pytest.approx(sum(places) / 1e9) and stem["parameters"] == sum(
        one.numel() for one in network.conv1.parameters()
    )

    head = part(whole["parts"], "head")
    assert head["parameters"] == (network.num_features + 1) * 40
    assert head["gmacs"] == pytest.approx(network.num_features * 40 / 1e9)

    for text in ("backbone", "conv1", "head", "in all", f"{whole['parameters']:,}", f"{whole['gmacs']:.4f}"):
        assert text in finished.stdout, text
    assert finished.stdout.rstrip().endswith(f"Summary: {run_dir / 'summary.json'}")
    assert not (run_dir / "checkpoints").exists()


class _Shared(nn.Module):
    """Calls one convolution twice, a method of a part instead of the part, attention, and a product of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.wrapper = nn.Sequential(nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()))
        self.twice = nn.Conv2d(8, 8, 1, bias=False)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.own = nn.Parameter(torch.zeros(5, 8))
        self.frozen = nn.Linear(8, 4).requires_grad_(False)
        self.idle = nn.Identity()

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        # Not called itself, as timm's forward_features is not.
        features = self.wrapper[0].forward(image)
        tokens = self.twice(self.twice(features)).mean(dim=2).transpose(1, 2)
        attended, _ = self.attention(tokens, tokens, tokens)
        return {"logits": attended.mean(dim=1) @ self.own.t(), "extra": self.frozen(attended)}


def test_shared_uncalled_and_own_parts() -> None:
    network = _Shared().train()
    size = 16
    whole = summarise(network, size)
    assert_adds_up(whole)
    macs = {one["name"]: round(one["gmacs"] * 1e9) for one in whole["parts"]}
    assert macs == {
        "wrapper": size**2 * 3 * 8 * 9,
        "twice": 2 * size**2 * 8 * 8,
        # Three projections and the one behind, and for each token the products with every other, of keys and of values.
        "attention": size * 4 * 8 * 8 + 2 * size * size * 8,
        "frozen": size * 8 * 4,
        "idle": 0,
        "(itself)": 8 * 5,
    }
    assert part(whole["parts"], "(itself)")["parameters"] == 40
    assert part(whole["parts"], "frozen")["trainable"] == 0 and part(whole["parts"], "frozen")["parameters"] == 36
    # A wrapper is looked through; what is inside it is named.
    assert [one["name"] for one in part(whole["parts"], "wrapper.0")["parts"]] == [f"wrapper.0.{k}" for k in range(3)]
    assert torch.backends.mha.get_fastpath_enabled()


def test_a_compiled_network_is_counted_in_parts() -> None:
    network = _Shared()
    parts = summarise(network, 16)["parts"]
    network.compile(backend="eager")
    assert summarise(network, 16)["parts"] == parts


def test_peak_memory_sees_a_large_array() -> None:
    """In a process of its own, which has not yet used more."""
    before, after = in_child(_peaks)
    assert before is not None and before > 50e6
    assert after is not None and after - before > 300e6


def _peaks() -> tuple[int | None, int | None]:
    before = peak_memory(torch.device("cpu"))
    large = torch.ones(400_000_000, dtype=torch.uint8)
    after = peak_memory(torch.device("cpu"))
    return (before, after) if len(large) else (None, None)
