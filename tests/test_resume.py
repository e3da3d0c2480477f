"""A run that is killed, at whatever moment, and goes on in its own folder ends as one that never was."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import torch

from tests.runs import SMALL, SMALL_DMM, assert_same_state, run, run_dirs, state

# Six steps an epoch; weights that remember the training losses, so that they show what is lost of an epoch.
RUN = [*SMALL, *SMALL_DMM, "trainer.max_epochs=3", "callbacks.last.every_n_steps=2", "weighting=dws"]
AVERAGED = ["trainer=fast", "trainer.max_epochs=3"]
ACCUMULATED = ["++trainer.accumulate_grad_batches=2", "callbacks.last.every_n_steps=1"]


def kill(at: str, count: int = 1, sent: int = signal.SIGKILL) -> str:
    return f"++callbacks.kill={{_target_: tests.runs.Kill, at: '{at}', count: {count}, sent: {int(sent)}}}"


def whole(tmp: pytest.TempPathFactory, data: Path, *overrides: str) -> Path:
    output = tmp.mktemp("whole")
    run(*RUN, *overrides, data=data, output=output)
    return run_dirs(output)[0]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path) -> Path:
    """A run that was never killed."""
    return whole(tmp_path_factory, tiny_data)


def go_on(overrides: list[str], kills: list[str], data: Path, output: Path) -> Path:
    """Kill a run and go on with it, again and again, then let it end."""
    begun: list[str] = []
    for one in kills:
        finished = run(*overrides, *begun, one, data=data, output=output, check=False)
        assert finished.returncode < 0, finished.stdout + finished.stderr
        begun = ["ckpt_path=last"]
    run(*overrides, *begun, data=data, output=output)
    (run_dir,) = run_dirs(output)
    return run_dir


def assert_same_run(killed: Path, never: Path) -> None:
    for name in ("last", "best"):
        assert_same_state(state(killed, name), state(never, name))
    for name in ("metrics.csv", "report/attributes.csv", "report/attributes_validation.csv", "report/slices.csv"):
        assert (killed / name).read_text() == (never / name).read_text(), name
    optimizers = [
        torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["optimizer_states"]
        for folder in (killed, never)
    ]
    torch.testing.assert_close(*optimizers, rtol=0, atol=0)


def test_killed_inside_an_epoch_and_between_validation_and_saving(plain: Path, tiny_data: Path, tmp_path: Path) -> None:
    kills = [kill("on_train_batch_end", 4), kill("before last.ckpt", 2)]
    killed = go_on(RUN, kills, tiny_data, tmp_path)
    assert_same_run(killed, plain)
    assert not list(killed.glob("checkpoints/.*")), "half-written checkpoints were left"
    assert json.loads((killed / "status.json").read_text())["state"] == "finished"


@pytest.mark.slow
def test_killed_at_any_moment(plain: Path, tiny_data: Path, tmp_path: Path) -> None:
    moments = [
        ("on_train_batch_start", 4),
        ("after last.ckpt", 1),
        ("on_validation_batch_end", 2),
        ("before best.ckpt", 1),
        ("after best.ckpt", 1),
        ("on_train_epoch_start", 1),
        ("on_before_optimizer_step", 5),
        ("before previous.ckpt", 3),
        ("on_train_end", 1),
        ("on_test_batch_end", 1),
        ("before report.html", 1),
        ("after summary.json", 1),
    ]
    killed = go_on(RUN, [kill(*moment) for moment in moments], tiny_data, tmp_path)
    assert_same_run(killed, plain)


@pytest.mark.slow
@pytest.mark.parametrize("overrides", [AVERAGED, ACCUMULATED, ["weighting=gradnorm", "weighting.every=4"]])
def test_whatever_else_has_a_state(
    overrides: list[str], tiny_data: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    never = whole(tmp_path_factory, tiny_data, *overrides)
    kills = [kill("on_train_batch_end", 4), kill("on_validation_end"), kill("on_train_batch_start", 5)]
    assert_same_run(go_on([*RUN, *overrides], kills, tiny_data, tmp_path), never)
