"""Each weighting in a real training: it moves the weights, it goes on exactly, it weighs tasks, ranks agree."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.runs import SMALL, SMALL_DMM, assert_same_state, rows, run, run_dirs, run_here, state

JOB = [
    *SMALL,
    *SMALL_DMM,
    "trainer.max_epochs=4",
    "trainer.precision=32-true",
    "data.augmentation=null",
    "callbacks.progress=null",
    "callbacks.report.grid=0",
]
FAST = {"gradnorm": ["weighting.every=2"], "dmm": [], "dws": [], "dwa": [], "uncertainty": [], "inverse_prevalence": []}
STOP = "++callbacks.stop={_target_: tests.runs.StopAfter, epoch: 2}"


@pytest.mark.parametrize(
    "weighting",
    [name if name == "uncertainty" else pytest.param(name, marks=pytest.mark.slow) for name in FAST],
)
def test_it_goes_on_exactly(weighting: str, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = [*JOB, f"weighting={weighting}", *FAST[weighting]]
    whole, first, second = (tmp_path / name for name in ("whole", "first", "second"))
    run_here(*given, data=tiny_data, run_dir=whole, monkeypatch=monkeypatch)
    run_here(*given, STOP, data=tiny_data, run_dir=first, monkeypatch=monkeypatch)
    last = f"ckpt_path={first}/checkpoints/last.ckpt"
    run_here(*given, last, data=tiny_data, run_dir=second, monkeypatch=monkeypatch)
    assert_same_state(state(second), state(whole))
    weights = state(whole)["weighting.weights"]
    assert weights.isfinite().all() and weights.std() > 0


@pytest.mark.parametrize(
    "weighting", ["uncertainty", *(pytest.param(name, marks=pytest.mark.slow) for name in ("dwa", "dws", "gradnorm"))]
)
def test_it_weighs_landmarks_beside_attributes(
    weighting: str, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = [*JOB, f"weighting={weighting}", "weighting.over=task", *FAST[weighting]]
    run_here(*given, data=tiny_data, run_dir=tmp_path / "run", monkeypatch=monkeypatch)
    found = state(tmp_path / "run")
    (landmarks,), attributes = found["weighting.task_weights"], found["weighting.weights"]
    assert landmarks != 1 and (attributes == attributes[0]).all() and attributes[0] != landmarks
    logged = [row["task_weight/landmarks"] for row in rows(tmp_path / "run" / "metrics.csv")]
    assert float(next(filter(None, reversed(logged)))) == pytest.approx(float(landmarks))


@pytest.mark.slow
@pytest.mark.parametrize("weighting", ["gradnorm", "uncertainty", "dwa"])
def test_two_ranks_agree(weighting: str, tiny_data: Path, tmp_path: Path) -> None:
    given = [*JOB, f"weighting={weighting}", *FAST[weighting], "trainer.max_epochs=3"]
    run(*given, "trainer.devices=2", "data.batch_size=4", data=tiny_data, output=tmp_path / "two")
    run(*given, data=tiny_data, output=tmp_path / "one")
    one, two = (state(run_dirs(tmp_path / name)[0])["weighting.weights"] for name in ("one", "two"))
    assert two.isfinite().all() and two.std() > 0
    # Batch statistics are each rank's own, so that what the weights follow is alike, not equal.
    if weighting == "gradnorm":
        assert torch.corrcoef(torch.stack([one, two]))[0, 1] > 0.6
    else:
        assert (one - two).abs().max() < 0.5
