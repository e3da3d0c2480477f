"""A trial's values in its study, and what ends it."""

from __future__ import annotations

import shutil
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from faceattr_lightning.processes import quote
from faceattr_lightning.search import PRUNED
from tests.runs import SMALL, assert_same_state, rows, run_here, state

JOB = [*SMALL, "model=baseline", "trainer.max_epochs=3", "callbacks.report.grid=0", "callbacks.progress=null"]


def prune(storage: str, **settings: object) -> str:
    given = "".join(f",{key}:{value}" for key, value in settings.items())
    node = f"_target_:faceattr_lightning.callbacks.prune.Prune,storage:{quote(storage)},study:s{given}"
    return f"++callbacks.prune={{{node}}}"


def study_with(storage: str, value: float) -> optuna.Study:
    """A study with one complete trial, whose value was the same after every epoch, and one that runs."""
    study = optuna.create_study(storage=storage, study_name="s", direction="maximize")
    before = study.ask()
    for epoch in range(3):
        before.report(value, epoch)
    study.tell(before, value)
    study.ask()
    return study


def validated(run_dir: Path) -> dict[int, float]:
    """The metric after each epoch, as the run's own file says."""
    found = [row for row in rows(run_dir / "metrics.csv") if row.get("val/average_precision")]
    return {int(row["epoch"]): float(row["val/average_precision"]) for row in found}


def test_a_hopeless_trial_ends(tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    study = study_with(storage, 0.999)
    job = [*JOB, prune(storage, startup_trials=1, warmup_epochs=1)]
    run_here(*job, data=tiny_data, run_dir=tmp_path / "1", monkeypatch=monkeypatch)
    trial = study.trials[1]
    assert trial.state == TrialState.RUNNING and trial.user_attrs == {PRUNED: 1}
    # Epoch 0 is for warming up.
    assert trial.intermediate_values == pytest.approx(validated(tmp_path / "1"), rel=1e-6)
    assert list(trial.intermediate_values) == [0, 1]
    assert (tmp_path / "1" / "report" / "summary.json").exists()

    # Killed before the search was told of it, it does not train on; killed before the checkpoint of that epoch, it
    # comes to the same end, whatever the study has learned meanwhile.
    study.add_trial(optuna.create_trial(value=0.0, intermediate_values={0: 0.0, 1: 0.0, 2: 0.0}))
    study.add_trial(optuna.create_trial(value=0.0, intermediate_values={0: 0.0, 1: 0.0, 2: 0.0}))
    first = state(tmp_path / "1")
    run_here(*job, "ckpt_path=last", data=tiny_data, run_dir=tmp_path / "1", monkeypatch=monkeypatch)
    assert_same_state(state(tmp_path / "1"), first)
    shutil.rmtree(tmp_path / "1")
    run_here(*job, data=tiny_data, run_dir=tmp_path / "1", monkeypatch=monkeypatch)
    assert_same_state(state(tmp_path / "1"), first)
    assert study.trials[1].intermediate_values == trial.intermediate_values


def test_a_good_trial_and_one_without_study(tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    study = study_with(storage, 0.001)
    run_here(*JOB, prune(storage, startup_trials=1), data=tiny_data, run_dir=tmp_path / "1", monkeypatch=monkeypatch)
    trial = study.trials[1]
    assert trial.user_attrs == {}
    assert trial.intermediate_values == pytest.approx(validated(tmp_path / "1"), rel=1e-6)
    assert list(trial.intermediate_values) == [0, 1, 2]

    # A storage that is gone ends no training.
    elsewhere = prune(f"sqlite:///{tmp_path / 'nowhere' / 'study.db'}")
    run_here(*JOB, elsewhere, data=tiny_data, run_dir=tmp_path / "2", monkeypatch=monkeypatch)
    assert list(validated(tmp_path / "2")) == [0, 1, 2]
