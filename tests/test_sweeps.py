"""Sweeps: jobs that fail or are stopped, what is run again, the table of all, and every launcher."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from lightning import Callback, LightningModule, Trainer

from faceattr_lightning.errors import ConfigError
from faceattr_lightning.going_on import job_folders, sweep_of
from faceattr_lightning.tasks.collect import sweep_rows
from tests.runs import SMALL, assert_same_state, rows, run, run_dirs, state, summary

JOB = [*SMALL, "model=baseline", "trainer.max_epochs=1", "callbacks.report.grid=0", "callbacks.progress=null"]
BROKEN = "++callbacks.broken={_target_: tests.test_sweeps.Broken}"


class Broken(Callback):
    """Does to the jobs of some seeds what the environment says, in their third step."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int) -> None:
        what, _, seeds = os.environ.get("FACEATTR_BREAK", "").partition(":")
        if batch_idx == 2 and str(pl_module.run_config["seed"]) in seeds.split(","):
            if what == "raise":
                raise RuntimeError("broken on purpose")
            os.kill(os.getpid(), getattr(signal, what))


def the_sweep(output: Path) -> Path:
    (sweep,) = (output / "multirun").iterdir()
    return sweep


@pytest.mark.slow
def test_a_failed_job_is_run_again_alone(tiny_data: Path, tmp_path: Path) -> None:
    command = ["-m", *JOB, BROKEN, "seed=0,1,2"]
    failed = run(*command, data=tiny_data, output=tmp_path, check=False, FACEATTR_BREAK="raise:1")
    assert failed.returncode == 1 and "Jobs: 2 finished, 1 failed" in failed.stdout, failed.stdout + failed.stderr
    sweep = the_sweep(tmp_path)
    table = rows(sweep / "sweep.csv")
    assert [(row["job"], row["seed"], row["state"]) for row in table] == [
        ("0", "0", "finished"),
        ("1", "1", "failed"),
        ("2", "2", "finished"),
    ]
    assert table[1]["reason"] == "RuntimeError: broken on purpose" and table[1]["accuracy"] == ""
    assert float(table[2]["accuracy"]) == summary(sweep / "2")["accuracy"]
    assert "broken on purpose" in (sweep / "1" / "traceback.txt").read_text()
    assert "broken on purpose" in (sweep / "sweep.html").read_text()

    before = {job: (sweep / job / "checkpoints/last.ckpt").stat().st_mtime_ns for job in "02"}
    again = run(*command, "sweep.resume=true", data=tiny_data, output=tmp_path)
    assert "Jobs: 3 finished" in again.stdout and the_sweep(tmp_path) == sweep
    assert {job: (sweep / job / "checkpoints/last.ckpt").stat().st_mtime_ns for job in "02"} == before
    assert [row["state"] for row in rows(sweep / "sweep.csv")] == ["finished"] * 3

    other = run("-m", *JOB, "seed=3,4", "sweep.resume=true", data=tiny_data, output=tmp_path, check=False)
    assert other.returncode == 1 and "Traceback" not in other.stderr
    assert "sweep.resume: no sweep under" in other.stderr and "seed=0,1,2" in other.stderr


def test_which_sweep_a_command_began(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="was begun with this command line"):
        sweep_of(["seed=0,1"], tmp_path)
    for name, overrides in (("a", '["seed=0,1"]'), ("b", '["seed=0,1", "sweep.resume=true"]'), ("c", '["seed=2"]')):
        (tmp_path / "multirun" / name).mkdir(parents=True)
        (tmp_path / "multirun" / name / "sweep.json").write_text(f'{{"overrides": {overrides}}}')
        os.utime(tmp_path / "multirun" / name / "sweep.json", (ord(name), ord(name)))
    assert sweep_of(["sweep.resume=true", "seed=0,1"], tmp_path).name == "b"


def test_a_folder_without_status_is_no_result(tmp_path: Path) -> None:
    (tmp_path / "0").mkdir()
    (tmp_path / "10").mkdir()
    (tmp_path / "2").mkdir()
    assert [folder.name for folder in job_folders(tmp_path)] == ["0", "2", "10"]
    assert {row["state"] for row in sweep_rows(tmp_path)} == {"killed"}


@pytest.mark.slow
@pytest.mark.parametrize("what", ["SIGINT", "SIGTERM", "SIGKILL"])
@pytest.mark.parametrize("launcher", ["basic", "joblib"])
def test_a_sweep_that_is_ended_goes_on(what: str, launcher: str, tiny_data: Path, tmp_path: Path) -> None:
    """What was finished stays, and in the end every job has the weights of one that was never ended."""
    command = ["-m", f"hydra/launcher={launcher}", *JOB, BROKEN, "seed=0,1,2", "callbacks.last.every_n_steps=1"]
    command += ["hydra.launcher.n_jobs=1"] if launcher == "joblib" else []
    ended = run(*command, data=tiny_data, output=tmp_path / "ended", check=False, FACEATTR_BREAK=f"{what}:1")
    assert ended.returncode != 0
    sweep = the_sweep(tmp_path / "ended")
    states = {row["job"]: row["state"] for row in sweep_rows(sweep)}
    assert states[0] == "finished" and states[1] == ("killed" if what == "SIGKILL" else "stopped"), states
    run(*command, "sweep.resume=true", data=tiny_data, output=tmp_path / "ended")
    run("task=collect", data=tiny_data, output=tmp_path / "ended")
    assert [row["state"] for row in rows(sweep / "sweep.csv")] == ["finished"] * 3
    run(*command, data=tiny_data, output=tmp_path / "never")
    for job in "012":
        assert_same_state(state(sweep / job), state(the_sweep(tmp_path / "never") / job))


MATRIX = {
    "model": ["baseline", "dmm_cnn"],
    "backbone.name": ["test_resnet", "test_efficientnet"],
    "trainer.devices": ["1", "2"],
}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path) -> dict[tuple[str, ...], Path]:
    """Each job of the matrix, run by a command of its own."""
    found = {}
    for model in MATRIX["model"]:
        for backbone in MATRIX["backbone.name"]:
            for devices in MATRIX["trainer.devices"]:
                output = tmp_path_factory.mktemp("alone")
                job = [f"model={model}", f"backbone.name={backbone}", f"trainer.devices={devices}", "data.batch_size=4"]
                run(*JOB, *job, data=tiny_data, output=output, OMP_NUM_THREADS="1")
                found[model, backbone, devices] = run_dirs(output)[0]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["basic", "joblib", "submitit_local"])
def test_each_job_equals_the_same_job_alone(
    launcher: str, alone: dict[tuple[str, ...], Path], tiny_data: Path, tmp_path: Path
) -> None:
    swept = [f"{key}={','.join(values)}" for key, values in MATRIX.items()]
    given = [*JOB, *swept, "data.batch_size=4", f"hydra/launcher={launcher}"]
    run("-m", *given, data=tiny_data, output=tmp_path, OMP_NUM_THREADS="1")
    sweep = the_sweep(tmp_path)
    table = rows(sweep / "sweep.csv")
    assert len(table) == 8 and {row["state"] for row in table} == {"finished"}
    for row in table:
        job = tuple(row[key] for key in MATRIX)
        assert_same_state(state(sweep / row["job"]), state(alone[job]))
