"""Real searches beside those of test_search.py: machines that begin at once, several processes a trial, and the best
trial's command."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import optuna
import pytest
from lightning import Callback, LightningModule, Trainer
from optuna.trial import TrialState

from tests.runs import ROOT, SMALL, assert_same_state, rows, run, run_dirs, state


@pytest.mark.slow
def test_machines_that_begin_at_once(tmp_path: Path) -> None:
    """Of processes that make a database's tables at the same time Optuna itself lets all but one fail."""
    program = (
        "import sys; from faceattr_lightning.search import open_study; open_study(sys.argv[1], 'shared', 'max', {})"
    )
    url = f"sqlite:///{tmp_path / 'study.db'}"
    begun = [subprocess.Popen([sys.executable, "-c", program, url], cwd=ROOT) for _ in range(4)]
    assert [process.wait(timeout=120) for process in begun] == [0] * 4


def trials_in(url: str, study: str | None = None) -> list[optuna.trial.FrozenTrial]:
    return optuna.load_study(study_name=study, storage=url).trials


class Strike(Callback):
    """Kills the job whose folder has the name that the environment says, in its third step."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int) -> None:
        if batch_idx == 2 and Path(trainer.default_root_dir).name == os.environ.get("FACEATTR_STRIKE"):
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_trials_are_pruned_and_killed_and_the_search_goes_on(tiny_data: Path, tmp_path: Path) -> None:
    command = [*SMALL, "model=baseline", "callbacks.report.grid=0", "callbacks.progress=null", "trainer.max_epochs=3"]
    command += ["callbacks.last.every_n_steps=1", "++callbacks.strike={_target_: tests.test_search_real.Strike}"]
    command += ["sweep=search", "hydra.sweeper.startup_trials=1", "hydra.sweeper.warmup_epochs=0"]
    first = run(*command, "hydra.sweeper.n_trials=1", data=tiny_data, output=tmp_path)
    (sweep,) = (tmp_path / "multirun").iterdir()
    url = f"sqlite:///{sweep / 'study.db'}"
    study = optuna.load_study(study_name=None, storage=url)
    # Whatever comes after a trial that nothing can beat is pruned, at the first look.
    perfect = optuna.create_study(direction="maximize")
    perfect.enqueue_trial(study.trials[0].params)
    trial = perfect.ask(study.trials[0].distributions)
    for epoch in range(3):
        trial.report(1.0, epoch)
    perfect.tell(trial, 0.0)
    study.add_trial(perfect.trials[0])

    four = [*command, "hydra.sweeper.n_trials=4", "sweep.resume=true"]
    killed = run(*four, data=tiny_data, output=tmp_path, check=False, FACEATTR_STRIKE="3")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    complete, pruned, running = TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING
    assert [trial.state for trial in trials_in(url)] == [complete, complete, pruned, running]
    went_on = run(*four, data=tiny_data, output=tmp_path)
    found = trials_in(url)
    assert [trial.state for trial in trials_in(url)] == [complete, complete, pruned, pruned]
    assert "Going on from" in went_on.stdout
    for number in (2, 3):
        assert list(found[number].intermediate_values) == [0] and found[number].value is not None
        curve = [row for row in rows(sweep / str(number) / "metrics.csv") if row.get("train/loss")]
        assert len(curve) == 1 and (sweep / str(number) / "report" / "summary.json").is_file()
    assert list(found[0].intermediate_values) == [0, 1, 2]
    assert found[0].value == pytest.approx(max(found[0].intermediate_values.values()))
    table = rows(sweep / "study.csv")
    assert [row["state"] for row in table] == ["complete", "complete", "pruned", "pruned"]
    assert Path(table[3]["folder"]) == sweep / "3"

    # What is printed as the best trial's command trains the same weights.
    again = next(line for line in first.stdout.splitlines() if line.strip().startswith("python run.py"))
    run(*shlex.split(again)[2:], data=tiny_data, output=tmp_path)
    (alone,) = run_dirs(tmp_path)
    assert_same_state(state(alone), state(sweep / "0"))


@pytest.mark.slow
def test_a_trial_of_two_processes_is_pruned(tiny_data: Path, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'study.db'}"
    study = optuna.create_study(study_name="shared", storage=url, direction="maximize")
    trial = study.ask()
    trial.report(1.0, 0)
    study.tell(trial, 1.0)
    command = [*SMALL, "model=baseline", "callbacks.report.grid=0", "callbacks.progress=null", "trainer.max_epochs=3"]
    command += ["trainer.devices=2", "data.batch_size=4", "sweep=search", f"hydra.sweeper.storage={url}"]
    command += ["hydra.sweeper.study_name=shared", "hydra.sweeper.n_trials=2", "hydra.sweeper.startup_trials=1"]
    run(*command, "hydra.sweeper.warmup_epochs=0", data=tiny_data, output=tmp_path, OMP_NUM_THREADS="1")
    found = trials_in(url, "shared")
    assert found[1].state == TrialState.PRUNED and list(found[1].intermediate_values) == [0]
