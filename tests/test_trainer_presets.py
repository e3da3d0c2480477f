"""Each preset of conf/trainer that needs no GPU and no second process: one step, and a finite report."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.runs import ROOT, SMALL, run_here, summary

# Tested in several processes, or only checked: without a GPU there is nothing to run.
ELSEWHERE = {"ddp", "fsdp", "gpu", "multi_node"}
SLOW = {"compile"}
PRESETS = sorted({path.stem for path in (ROOT / "conf" / "trainer").glob("*.yaml")} - ELSEWHERE)


@pytest.fixture(autouse=True)
def _torch_as_before() -> Iterator[None]:
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(
    "preset", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in PRESETS]
)
def test_preset_trains(preset: str, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = [*SMALL, "model=baseline", f"trainer={preset}", "trainer.max_steps=1", "trainer.accelerator=cpu"]
    run_here(*overrides, data=tiny_data, run_dir=tmp_path / "run", monkeypatch=monkeypatch)
    facts = summary(tmp_path / "run")
    assert all(math.isfinite(facts[name]) for name in ("accuracy", "balanced_accuracy", "average_precision"))
    assert facts["effective_batch_size"] == (32 if preset == "accumulate" else 8)
    assert torch.are_deterministic_algorithms_enabled() == (preset == "deterministic")
    checkpoint = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert ("averaging_state" in checkpoint) == (preset in ("ema", "fast"))
    profiles = {path.name: path.read_text() for path in (tmp_path / "run").glob("*profile*")}
    assert bool(profiles) == (preset == "profile")
    if profiles:
        assert "run_training_epoch" in profiles["fit-profile.txt"] and "test-profile.txt" in profiles
