"""``sweep=search``: the space, what goes on after a kill, what machines share, and what is refused."""

from __future__ import annotations

import logging
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import CompactHydraException
from omegaconf import OmegaConf
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

from faceattr_lightning.errors import ConfigError
from faceattr_lightning.processes import quote
from faceattr_lightning.search import PRUNED, check_search, given_overrides, open_storage, search_space
from faceattr_lightning.tasks.run_folder import occupied
from tests.runs import ROOT, SMALL, rows, run

PLUGINS = ROOT / "faceattr_lightning" / "plugins"


def space_of(*overrides: str) -> tuple[dict[str, Any], list[str]]:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return search_space(given_overrides({}, overrides))


def test_the_space_in_hydras_grammar() -> None:
    space, fixed = space_of(
        "a=tag(log,interval(1e-4,1e-2))",
        "b=interval(0,1)",
        "c=int(interval(1,4))",
        "d=tag(log,int(interval(1,64)))",
        "e=range(1,8,3)",
        "f=range(0,1,0.25)",
        "g=one,null,0.5",
        "++h.i=x,y",
        "j=7",
        "~k",
        "b=interval(2,3)",
    )
    assert space == {
        "a": FloatDistribution(1e-4, 1e-2, log=True),
        "b": FloatDistribution(2, 3),
        "c": IntDistribution(1, 4),
        "d": IntDistribution(1, 64, log=True),
        # Without the end, as in Hydra and Python.
        "e": IntDistribution(1, 7, step=3),
        "f": FloatDistribution(0, 0.75, step=0.25),
        "g": CategoricalDistribution(["one", "null", "0.5"]),
        "++h.i": CategoricalDistribution(["x", "y"]),
    }
    assert fixed == ["j=7", "~k"]
    # The command line, which comes last, fixes a key of the file, and searches a fixed one.
    space, fixed = space_of("a=interval(0,1)", "b=1", "a=0.5", "b=1,2")
    assert list(space) == ["b"] and fixed == ["a=0.5"]


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (["a=1"], "nothing to search"),
        (["a=tag(log,interval(0,1))"], r"a=tag\(log,interval\(0,1\)\): .*low"),
        (["a=interval(2,1)"], r"a=interval\(2,1\): .*low"),
        (["a=range(2,1)"], "the range has no values"),
        (["a=tag(lin,interval(0,1))"], "the tags lin; the one known tag is log"),
        (["a=choice(1,null)"], r"a=choice\(1,null\)"),
        (["a=tag(log,choice(1,2))"], "the one known tag is log, of an interval"),
    ],
)
def test_a_space_that_is_none(overrides: list[str], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        space_of(*overrides)


@pytest.fixture(autouse=True)
def plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder of the plugin, which the program puts there itself."""
    monkeypatch.syspath_prepend(str(PLUGINS))


@pytest.fixture
def conf() -> Iterator[None]:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        yield


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("hydra.sweeper.n_trials=0", "hydra.sweeper.n_trials: expected a number of at least 1, found 0."),
        ("hydra.sweeper.n_jobs=x", "hydra.sweeper.n_jobs: expected a whole number, found 'x'."),
        ("hydra.sweeper.sampler=tpee", "hydra.sweeper.sampler: expected tpe or random, found 'tpee'. Did you"),
        ("hydra.sweeper.pruner=hyperban", "Did you mean 'hyperband'?"),
        ("+hydra.sweeper.trials=3", "hydra.sweeper.trials: there is no such key. Did you mean 'hydra.sweeper.n_trials"),
        ("hydra.sweeper.storage=nonsense", "hydra.sweeper.storage: can't be opened (ArgumentError"),
        ("hydra.sweeper.storage='sqlite:////nowhere/study.db'", "unable to open database file"),
        ("hydra.sweeper.storage='journal:/nowhere/study.log'", "No such file"),
        ("hydra.sweeper.storage='sqlite://'", "in memory"),
        ("callbacks.best=null", "callbacks.best: a search needs it"),
        ("task=summary", "task: a search is for task=train, found summary."),
        ("model.dropout=range(1,1)", "model.dropout=range(1,1): the range has no values."),
    ],
)
def test_each_problem_is_told_in_one_line(override: str, problem: str, conf: None) -> None:
    # A sweep has no first value of a range that has none.
    composed = [one for one in (override,) if "range" not in one]
    config = compose("config", ["sweep=search", *composed], return_hydra_config=True)
    (found,) = check_search(config, ["sweep=search", override])
    assert problem in found and "\n" not in found


def test_a_missing_optuna_is_told(conf: None, monkeypatch: pytest.MonkeyPatch) -> None:
    config = compose("config", ["sweep=search"], return_hydra_config=True)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert list(check_search(config, [])) == [
        "hydra.sweeper: the package optuna is not installed; run: pip install 'faceattr-lightning[search]'."
    ]
    assert list(check_search(compose("config", ["sweep=grid"], return_hydra_config=True), [])) == []


def test_only_a_search_needs_optuna() -> None:
    code = "import sys; sys.modules['optuna'] = None; import hydra_plugins.faceattr_search, faceattr_lightning.search"
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": f"{PLUGINS}:{ROOT}"})


Job = Callable[[int, dict[str, str]], Any]


class Machine:
    """Runs searches with jobs that are a function, of the trial's number and its overrides, in place of trainings."""

    def __init__(self, folder: Path, job: Job, **settings: Any) -> None:
        self.folder, self.job, self.settings = folder, job, {"n_trials": 4, **settings}
        self.storage = self.settings.get("storage") or f"sqlite:///{folder / 'study.db'}"
        self.launched: list[int] = []
        self.given: list[dict[str, str]] = []

    def search(self, *overrides: str) -> Any:
        from hydra_plugins.faceattr_search import OptunaSweeper

        keys = [
            f"hydra.sweeper.{key}={quote(value) if isinstance(value, str) else value}"
            for key, value in self.settings.items()
        ]
        arguments = ["sweep=search", *overrides]
        # A job's configuration has one value for each key.
        given = [*(one for one in arguments if "," not in one), *keys, f"hydra.sweep.dir={quote(str(self.folder))}"]
        config = compose("config", given, return_hydra_config=True)
        HydraConfig.instance().set_config(config)
        node: Any = OmegaConf.to_container(config.hydra.sweeper, resolve=True)
        sweeper = OptunaSweeper(**{key: value for key, value in node.items() if key != "_target_"})
        sweeper.config, sweeper.launcher = config, self  # type: ignore[assignment]
        try:
            return sweeper.sweep(arguments)
        finally:
            HydraConfig.instance().cfg = None

    def launch(self, batch: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        done = []
        for overrides in batch:
            by_key = dict(override.split("=", 1) for override in overrides)
            number = int(by_key["hydra.sweep.subdir"])
            self.launched.append(number)
            self.given.append(by_key)
            job = JobReturn(overrides=list(overrides))
            try:
                job.return_value, job.status = self.job(number, by_key), JobStatus.COMPLETED
            except RuntimeError as error:
                job.return_value, job.status = error, JobStatus.FAILED
            done.append(job)
        return done

    @property
    def study(self) -> optuna.Study:
        return optuna.load_study(study_name=self.folder.name, storage=open_storage(self.storage))


def learning_rate(number: int, overrides: dict[str, str]) -> float:
    return -abs(float(overrides["model.optimizer.lr"]) - 1e-3)


def test_a_search_finds_and_shows_the_best(conf: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    machine = Machine(
        tmp_path / "one", learning_rate, n_trials=6, startup_trials=2, storage=f"journal:{tmp_path / 'log'}"
    )
    machine.search("model=baseline", "seed=3")
    assert machine.launched == list(range(6))
    best = machine.study.best_trial
    table = rows(tmp_path / "one" / "study.csv")
    assert [row["trial"] for row in table] == [str(number) for number in range(6)]
    assert float(table[best.number]["value"]) == max(float(row["value"]) for row in table)
    assert {row["state"] for row in table} == {"complete"}
    assert table[5]["folder"] == str(tmp_path / "one" / "5")
    for number, trial in enumerate(machine.study.trials):
        assert float(machine.given[number]["model.optimizer.lr"]) == trial.params["model.optimizer.lr"]
        assert 1e-4 <= trial.params["model.optimizer.lr"] <= 1e-2
    shown = capsys.readouterr().out
    assert f"Best trial: {best.number}, val/average_precision" in shown
    assert (
        f"python run.py sweep=search model=baseline seed=3 model.optimizer.lr={best.params['model.optimizer.lr']}"
        in shown
    )


def test_a_killed_search_goes_on_as_if_it_never_was(conf: None, tmp_path: Path) -> None:
    never = Machine(tmp_path / "never" / "study", learning_rate, n_trials=6, startup_trials=2)
    never.search()

    def killed(number: int, overrides: dict[str, str]) -> float:
        if number in (0, 4) and "sweep.resume" not in overrides:
            raise KeyboardInterrupt
        return learning_rate(number, overrides)

    machine = Machine(tmp_path / "killed" / "study", killed, n_trials=6, startup_trials=2)
    for number in (0, 4):
        with pytest.raises(KeyboardInterrupt):
            machine.search()
        assert machine.study.trials[number].state == TrialState.RUNNING
    machine.search()
    assert machine.launched == [0, 0, 1, 2, 3, 4, 4, 5]
    for trial, other in zip(machine.study.trials, never.study.trials, strict=True):
        assert (trial.state, trial.params, trial.value) == (other.state, other.params, other.value)
    # All are done.
    machine.search()
    assert len(machine.launched) == 8


def test_values_that_were_not_chosen_before_the_kill(conf: None, tmp_path: Path) -> None:
    """Between a trial's beginning and its last value the process can be killed, too."""
    never = Machine(tmp_path / "never" / "study", learning_rate, n_trials=2)
    never.search()
    machine = Machine(tmp_path / "killed" / "study", learning_rate, n_trials=2)
    machine.folder.mkdir(parents=True)
    optuna.create_study(storage=machine.storage, study_name="study", direction="maximize").ask()
    machine.search()
    assert [trial.params for trial in machine.study.trials] == [trial.params for trial in never.study.trials]


def test_a_failed_trial_stops_no_other_and_is_replaced(conf: None, tmp_path: Path) -> None:
    def fails(number: int, overrides: dict[str, str]) -> float | None:
        if number == 1:
            raise RuntimeError("broken on purpose")
        return {0: float("nan"), 2: 0.5}.get(number, 0.7)

    machine = Machine(tmp_path / "study", fails, storage=f"journal:{tmp_path / 'log'}")
    with pytest.raises(CompactHydraException, match="Trial 0 has no value to be judged by: nan"):
        machine.search()
    fail, complete = TrialState.FAIL, TrialState.COMPLETE
    assert [trial.state for trial in machine.study.trials] == [fail, fail, complete, complete]
    machine.search()
    assert [trial.state for trial in machine.study.trials] == [fail, fail, *[complete] * 4]
    assert [row["state"] for row in rows(tmp_path / "study" / "study.csv")] == ["failed"] * 2 + ["complete"] * 4


def test_a_pruned_trial_is_told_as_such(conf: None, tmp_path: Path) -> None:
    def pruned(number: int, overrides: dict[str, str]) -> float:
        trial = optuna.Trial(machine.study, machine.study.trials[number]._trial_id)
        trial.report(0.1 * number, 0)
        if number % 2:
            trial.set_user_attr(PRUNED, 0)
        return 0.9

    machine = Machine(tmp_path / "study", pruned, storage=f"journal:{tmp_path / 'log'}")
    machine.search()
    states = [(trial.state, trial.value) for trial in machine.study.trials]
    assert states == [
        (TrialState.COMPLETE, 0.9),
        (TrialState.PRUNED, 0.1),
        (TrialState.COMPLETE, 0.9),
        (TrialState.PRUNED, pytest.approx(0.3)),
    ]


@pytest.mark.parametrize("kind", ["sqlite:///", "journal:"])
def test_machines_share_the_trials(kind: str, conf: None, tmp_path: Path) -> None:
    storage = f"{kind}{tmp_path / 'shared'}"
    settings = {"n_trials": 6, "storage": storage, "study_name": "both"}

    def other_begins(number: int, overrides: dict[str, str]) -> float:
        # In the middle of a trial of the first machine the second one runs two, and is killed in its third.
        if number == 1:
            with pytest.raises(KeyboardInterrupt):
                second.search()
        return learning_rate(number, overrides)

    def dies(number: int, overrides: dict[str, str]) -> float:
        if number == 4 and "sweep.resume" not in overrides:
            raise KeyboardInterrupt
        return learning_rate(number, overrides)

    first = Machine(tmp_path / "first", other_begins, **settings)
    second = Machine(tmp_path / "second", dies, **settings)
    first.search()
    # Not the trial of the machine that died.
    assert first.launched == [0, 1, 5] and second.launched == [2, 3, 4]
    states = [row["state"] for row in rows(tmp_path / "first" / "study.csv")]
    assert states == ["complete"] * 4 + ["running", "complete"]
    second.search()
    assert second.launched == [2, 3, 4, 4]
    table = rows(tmp_path / "second" / "study.csv")
    assert [row["state"] for row in table] == ["complete"] * 6
    assert [Path(row["folder"]).parent.name for row in table] == ["first"] * 2 + ["second"] * 3 + ["first"]
    assert len({row["model.optimizer.lr"] for row in table}) == 6


def test_jobs_that_outlive_a_search_are_waited_for(
    conf: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def once(number: int, overrides: dict[str, str]) -> float:
        if number == 1 and "sweep.resume" not in overrides:
            raise KeyboardInterrupt
        return learning_rate(number, overrides)

    machine = Machine(tmp_path / "study", once, n_trials=3, storage=f"journal:{tmp_path / 'log'}")
    with pytest.raises(KeyboardInterrupt):
        machine.search()
    with occupied(tmp_path / "study" / "1") as _, caplog.at_level(logging.INFO):
        monkeypatch.setattr("time.sleep", lambda _: (_ for _ in ()).throw(TimeoutError))
        with pytest.raises(TimeoutError):
            machine.search()
    # The new one first, and then it waited.
    assert machine.launched == [0, 1, 2] and "Waiting for trials that are still running: 1" in caplog.text
    machine.search()
    assert machine.launched == [0, 1, 2, 1]
    assert [trial.state for trial in machine.study.trials] == [TrialState.COMPLETE] * 3


def test_a_folder_and_a_study_have_one_search(conf: None, tmp_path: Path) -> None:
    def again(number: int, overrides: dict[str, str]) -> float:
        with pytest.raises(CompactHydraException, match="another search is running in"):
            machine.search()
        return 0.5

    machine = Machine(tmp_path / "study", again, n_trials=1, storage=f"journal:{tmp_path / 'log'}")
    machine.search("backbone.name=test_resnet,resnet18")
    for override, problem in (
        ("backbone.name=test_resnet,resnet50", "backbone.name: the study study was begun with Categorical"),
        ("callbacks.best.mode=min", "hydra.sweeper.direction: the study study was begun to maximize"),
    ):
        with pytest.raises(CompactHydraException, match=problem):
            machine.search(override)


SEARCH = ["sweep=search", *SMALL, "model=baseline", "callbacks.report.grid=0", "callbacks.progress=null"]
SEARCH += ["trainer.max_epochs=3", "hydra.sweeper.startup_trials=1", "hydra.sweeper.warmup_epochs=0"]


def kill(command: list[str], data: Path, output: Path, seconds: float) -> None:
    """Run the program, and end it with SIGKILL so long after it began its first job."""
    log = output.with_suffix(".log")
    environment = {**os.environ, "FACEATTR_DATA": str(data), "OMP_NUM_THREADS": "1"}
    whole = [sys.executable, "run.py", *command, f"paths.output_dir={quote(str(output))}"]
    with log.open("w") as file:
        process = subprocess.Popen(whole, cwd=ROOT, env=environment, stdout=file, stderr=file)
        while process.poll() is None and "Launching" not in log.read_text():
            time.sleep(0.05)
        time.sleep(seconds)
        process.kill()
        process.wait()


@pytest.mark.slow
def test_a_real_search_killed_at_any_moment(tiny_data: Path, tmp_path: Path) -> None:
    """It ends with the trials, values and prunings of one that was never killed, and each number has one folder."""
    command = [*SEARCH, "hydra.sweeper.n_trials=6"]
    run(*command, data=tiny_data, output=tmp_path / "never", OMP_NUM_THREADS="1")
    draw = random.Random(0)
    kill(command, tiny_data, tmp_path / "killed", draw.uniform(0, 3))
    for _ in range(5):
        kill([*command, "sweep.resume=true"], tiny_data, tmp_path / "killed", draw.uniform(0, 3))
    run(*command, "sweep.resume=true", data=tiny_data, output=tmp_path / "killed", OMP_NUM_THREADS="1")
    (never,) = (tmp_path / "never" / "multirun").iterdir()
    (killed,) = (tmp_path / "killed" / "multirun").iterdir()
    tables = [
        [{key: value for key, value in row.items() if key != "folder"} for row in rows(sweep / "study.csv")]
        for sweep in (never, killed)
    ]
    assert tables[0] == tables[1]
    assert len(tables[0]) == 6 and {row["state"] for row in tables[0]} == {"complete", "pruned"}
    assert sorted(path.name for path in killed.iterdir() if path.is_dir()) == [str(number) for number in range(6)]
    study = optuna.load_study(study_name=killed.name, storage=f"sqlite:///{killed / 'study.db'}")
    for trial in study.trials:
        validations = [row for row in rows(killed / str(trial.number) / "metrics.csv") if row["val/average_precision"]]
        own = [float(row["val/average_precision"]) for row in validations]
        assert list(trial.intermediate_values.values()) == pytest.approx(own, rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_trials_at_once(launcher: str, tiny_data: Path, tmp_path: Path) -> None:
    command = [*SEARCH, "hydra.sweeper.n_trials=4", "hydra.sweeper.n_jobs=2", f"hydra/launcher={launcher}"]
    done = run(*command, data=tiny_data, output=tmp_path, OMP_NUM_THREADS="1")
    (sweep,) = (tmp_path / "multirun").iterdir()
    table = rows(sweep / "study.csv")
    assert len(table) == 4 and {row["state"] for row in table} <= {"complete", "pruned"}
    assert "Best trial:" in done.stdout
