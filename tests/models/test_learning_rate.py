"""The rule from the size of the batch to the learning rate: alone, and through the real program."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from faceattr_lightning.callbacks.report import run_facts
from faceattr_lightning.checkpoint import CHECKPOINT_KEY
from faceattr_lightning.errors import ConfigError
from faceattr_lightning.models.baseline import Baseline
from faceattr_lightning.models.module import TRAINING_FACTS, batch_factor
from faceattr_lightning.tasks.checkpoint import load_model
from tests.runs import SMALL, run_here, state, summary

# Layer norm alone, so that four batches of 4 are one of 16; and steps that grow with the gradient, unlike Adam's, which
# make as much of the last bit of a small gradient as of a large one.
EXACT = [
    *SMALL,
    "model=baseline",
    "backbone.name=test_convnext",
    "weighting=uniform",
    "calibration=fixed",
    "trainer.max_epochs=1",
    "trainer.precision=32-true",
    "model.optimizer._target_=torch.optim.SGD",
]


@pytest.mark.parametrize(("rule", "factors"), [("none", [1, 1, 1]), ("sqrt", [1, 2, 3]), ("linear", [1, 4, 9])])
def test_the_rules(rule: str, factors: list[float]) -> None:
    assert [batch_factor(rule, times) for times in (1, 4, 9)] == factors


def test_an_unknown_rule_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"model\.schedule\.batch_rule: expected none, sqrt or linear, found 'cubic'"):
        batch_factor("cubic", 2)
    with pytest.raises(ConfigError, match=r"model\.schedule\.batch_rule"):
        small_baseline({"name": "constant", "batch_rule": "cubic"})


def small_baseline(schedule: dict[str, Any]) -> Baseline:
    image = {"source_size": [64, 64], "crop": [0, 0, 64, 64], "image_size": 64, "mean": [0.5] * 3, "std": [0.5] * 3}
    backbone = {"name": "test_resnet", "freeze": 0, "channels_last": False}
    return Baseline(["a", "b"], backbone, {**image, "template": []}, schedule=schedule)


def test_four_accumulated_batches_are_one_of_four_times_the_size(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A whole epoch ends with the same weights, at the learning rate that the rule makes of a quarter of it."""
    whole = [*EXACT, "data.batch_size=16", "model.optimizer.lr=0.04"]
    parts = [*EXACT, "data.batch_size=4", "model.optimizer.lr=0.01", "trainer=accumulate"]
    run_here(*whole, data=tiny_data, run_dir=tmp_path / "whole", monkeypatch=monkeypatch)
    with caplog.at_level(logging.INFO):
        run_here(
            *parts,
            "model.schedule.batch_rule=linear",
            data=tiny_data,
            run_dir=tmp_path / "parts",
            monkeypatch=monkeypatch,
        )
    said = "Effective batch 4 x 1 processes x 4 accumulated steps = 16, learning rate 0.04 "
    assert said + "(model.schedule.batch_rule=linear)" in caplog.messages
    one, other = (state(tmp_path / name) for name in ("whole", "parts"))
    # Sums in another order, over three steps: a few units in the last place of float32.
    for name, tensor in one.items():
        torch.testing.assert_close(other[name], tensor, rtol=1e-5, atol=1e-6, equal_nan=True)
    for name in ("whole", "parts"):
        facts = summary(tmp_path / name)
        assert [facts[key] for key in TRAINING_FACTS] == [16, pytest.approx(0.04)]


def test_what_a_checkpoint_knows_of_its_batches(
    tmp_path: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`task=test` tells it too; of a checkpoint without it, which has no rule either, nothing is told."""
    overrides = [*SMALL, "model=baseline", "trainer.max_steps=1", "trainer.accumulate_grad_batches=2"]
    run_here(
        *overrides, "model.schedule.batch_rule=sqrt", data=tiny_data, run_dir=tmp_path / "run", monkeypatch=monkeypatch
    )
    path = tmp_path / "run" / "checkpoints" / "last.ckpt"
    model = load_model(path)
    facts = {name: run_facts(model, "", [])[name] for name in TRAINING_FACTS}
    assert facts == {"effective_batch_size": 16, "learning_rate": pytest.approx(2e-3 * 2**0.5)}
    test = [*SMALL, "task=test", f"ckpt_path='{path}'"]
    run_here(*test, data=tiny_data, run_dir=tmp_path / "test", monkeypatch=monkeypatch)
    assert summary(tmp_path / "test").items() >= facts.items()

    checkpoint = torch.load(path, weights_only=True)
    for name in TRAINING_FACTS:
        del checkpoint[CHECKPOINT_KEY][name]
    del checkpoint["hyper_parameters"]["schedule"]["batch_rule"]
    torch.save(checkpoint, tmp_path / "old.ckpt")
    old = load_model(tmp_path / "old.ckpt")
    assert old.schedule["batch_rule"] == "none" and not TRAINING_FACTS & run_facts(old, "", []).keys()
