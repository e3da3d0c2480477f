"""A run that is killed, at whatever moment, and goes on in its own folder ends as one that never was."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lightning import Callback, LightningModule, Trainer

from faceattr_lightning.callbacks.last_checkpoint import LastCheckpoint
from faceattr_lightning.errors import ConfigError
from faceattr_lightning.tasks.run_folder import is_occupied, occupied, read_status, write_status
from tests.runs import SMALL, SMALL_DMM, assert_same_state, rows, run, run_dirs, run_here, state

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


@pytest.mark.slow
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


@pytest.mark.parametrize(
    ("at", "count", "processes"),
    [
        ("on_train_batch_start", 9, 1),
        *(
            pytest.param(at, count, processes, marks=pytest.mark.slow)
            for at, count, processes in [
                ("on_validation_batch_end", 2, 1),
                ("on_test_batch_end", 1, 1),
                ("on_train_batch_start", 9, 2),
                ("on_validation_batch_end", 2, 2),
                ("on_test_batch_end", 1, 2),
            ]
        ),
    ],
)
def test_sigterm_saves_and_ends(
    at: str, count: int, processes: int, plain: Path, tiny_data: Path, tmp_path: Path
) -> None:
    """As a scheduler sends it: the run says so, ends soon, and has lost nothing but what an exact start needs again."""
    overrides = [*RUN, f"trainer.devices={processes}", f"data.batch_size={8 // processes}"]
    ended = run(*overrides, kill(at, count, signal.SIGTERM), data=tiny_data, output=tmp_path, check=False)
    assert ended.returncode == 128 + signal.SIGTERM, ended.stdout + ended.stderr
    assert "ckpt_path=last goes on with it" in ended.stdout and "Traceback" not in ended.stderr
    (run_dir,) = run_dirs(tmp_path)
    assert json.loads((run_dir / "status.json").read_text())["state"] == "stopped"
    step = {"on_train_batch_start": 9, "on_validation_batch_end": 6, "on_test_batch_end": 18}[at]
    assert torch.load(run_dir / "checkpoints/last.ckpt", weights_only=True)["global_step"] == step
    run(*overrides, "ckpt_path=last", data=tiny_data, output=tmp_path)
    if processes == 1:
        assert_same_run(run_dir, plain)
    else:
        assert len(rows(run_dir / "metrics.csv")) == len(rows(plain / "metrics.csv"))


def test_a_folder_has_one_run_at_a_time(tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_dir = tmp_path / "run"
    with (
        occupied(run_dir),
        pytest.raises(ConfigError, match=f"hydra.run.dir: another run is writing into {run_dir}"),
    ):
        run_here(*RUN, data=tiny_data, run_dir=run_dir, monkeypatch=monkeypatch)
    assert is_occupied(run_dir) is False


def test_a_folder_that_holds_a_run_is_left_alone(
    plain: Path, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(plain, run_dir)
    before = {path: path.read_bytes() for path in run_dir.rglob("*.*") if path.is_file() and path.suffix != ".log"}
    with pytest.raises(ConfigError, match=r"holds a finished run. Choose another folder"):
        run_here(*RUN, data=tiny_data, run_dir=run_dir, monkeypatch=monkeypatch)
    assert {path: path.read_bytes() for path in before} == before
    status = read_status(run_dir)
    assert status is not None
    write_status(replace(status, state="running"), run_dir)
    with pytest.raises(ConfigError, match=r"holds a run that did not finish. Add ckpt_path=last to go on with it"):
        run_here(*RUN, data=tiny_data, run_dir=run_dir, monkeypatch=monkeypatch)


def test_a_run_that_has_ended_is_tested_again(
    plain: Path, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(plain, run_dir)
    shutil.rmtree(run_dir / "report")
    run_here(*RUN, "ckpt_path=last", data=tiny_data, run_dir=run_dir, monkeypatch=monkeypatch)
    assert_same_run(run_dir, plain)


@pytest.mark.parametrize("every_n_steps", [0, -1])
def test_steps_between_checkpoints(every_n_steps: int) -> None:
    with pytest.raises(ConfigError, match=r"callbacks.last.every_n_steps: expected at least 1"):
        LastCheckpoint("checkpoints", every_n_steps)


@pytest.mark.slow
def test_slurm_takes_a_job_back_and_it_goes_on(plain: Path, tiny_data: Path, tmp_path: Path) -> None:
    """With a stand-in for SLURM: its variables, and a ``scontrol`` that writes down what it is asked for."""
    asked = tmp_path / "asked"
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f'#!/bin/sh\necho "$@" > "{asked}"\n')
    scontrol.chmod(0o755)
    step = {"JOB_ID": "77", "STEP_ID": "0", "PROCID": "0", "LOCALID": "0", "NODEID": "0", "NTASKS": "1"}
    slurm = {f"SLURM_{name}": value for name, value in {**step, "JOB_NAME": "faces", "NNODES": "1"}.items()}
    slurm["PATH"] = f"{scontrol.parent}:{os.environ['PATH']}"
    output = tmp_path / "outputs"
    told = kill("on_train_batch_start", 9, signal.SIGUSR1)
    ended = run(*RUN, told, data=tiny_data, output=output, check=False, **slurm)
    assert ended.returncode == 128 + signal.SIGTERM, ended.stdout + ended.stderr
    assert asked.read_text().split() == ["requeue", "77"]
    assert [path.name for path in run_dirs(output)] == ["slurm-77.0"]
    # SLURM runs the same command with the same number.
    run(*RUN, data=tiny_data, output=output, **slurm, SLURM_RESTART_COUNT="1")
    assert_same_run(output / "train" / "slurm-77.0", plain)


class JumpingClock(Callback):
    """Sets the clock a day back or forth at every step, as a machine does that hears the time late."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int) -> None:
        now, jump = time.monotonic(), 86_400 * (-1) ** batch_idx
        time.time = lambda: now + jump
        time.time_ns = lambda: int(1e9 * time.time())


@pytest.mark.slow
def test_a_clock_that_jumps(plain: Path, tiny_data: Path, tmp_path: Path) -> None:
    clock = "++callbacks.clock={_target_: tests.test_resume.JumpingClock}"
    killed = go_on([*RUN, clock], [kill("on_train_batch_end", 4), kill("before last.ckpt", 2)], tiny_data, tmp_path)
    assert_same_run(killed, plain)
    # The clock was set back for good: what the killed run has written is of the day after tomorrow.
    future = time.time() + 2 * 86_400
    for path in killed.rglob("*"):
        os.utime(path, (future, future))
    run(*RUN, "ckpt_path=last", data=tiny_data, output=tmp_path)
    assert_same_run(killed, plain)
