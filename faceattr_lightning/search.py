"""A search's study in Optuna: its storage, its space in Hydra's sweep grammar, and what is checked before it begins.

Optuna is imported where it is used: sweeps without a search do not need it.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from faceattr_lightning.errors import ConfigError

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.distributions import BaseDistribution
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler
    from optuna.storages import BaseStorage

Direction = Literal["max", "min"]
Sampler = Literal["tpe", "random"]
Pruner = Literal["median", "hyperband", "none"]

PRUNED = "pruned"
"""The attribute of a trial that `faceattr_lightning.callbacks.prune.Prune` has ended: after which epoch."""
FOLDER = "folder"
"""The attribute of a trial that says where its job writes."""

_JOURNAL = "journal:"
_LOCK_TIMEOUT = 60
"""Seconds for which a process waits while another one writes into an SQLite file."""
_ATTEMPTS = 20
"""To open a database whose tables several machines make at the same time: Optuna's own making fails for all but one."""


def check_search(config: DictConfig, arguments: Sequence[str]) -> Iterator[str]:
    """Yield every problem of a search that can be seen before its first trial; none for a sweep that is no search.

    Args:
        config: composed from the command line, of its first job, with Hydra's part.
        arguments: the command line's overrides.
    """
    from faceattr_lightning.config import check_call

    if not str(config.hydra.sweeper._target_).endswith(".OptunaSweeper"):
        return
    if config.hydra.runtime.choices.get("task") != "train":
        yield f"task: a search is for task=train, found {config.hydra.runtime.choices.get('task')}."
    if OmegaConf.select(config, "callbacks.best.monitor") is None:
        yield "callbacks.best: a search needs it: its metric is what a trial is judged by."
        return
    try:
        node: Any = OmegaConf.to_container(config.hydra.sweeper, resolve=True)
    except OmegaConfBaseException as error:
        yield f"hydra.sweeper: {str(error).splitlines()[0]}."
        return
    if importlib.util.find_spec("optuna") is None:
        yield "hydra.sweeper: the package optuna is not installed; run: pip install 'faceattr-lightning[search]'."
        return
    problems = [*check_call("hydra.sweeper", node)]
    if not problems:
        problems = [
            f"hydra.sweeper.{key}: expected a number of at least {least}, found {node[key]}."
            for key, least in (("n_trials", 1), ("n_jobs", 1), ("seed", 0), ("startup_trials", 0), ("warmup_epochs", 0))
            if node[key] < least
        ]
        checks: list[Callable[[], object]] = [lambda: search_space(given_overrides(node["params"], arguments))]
        if node["storage"] is not None:
            checks.append(lambda: open_storage(node["storage"]))
        for check in checks:
            try:
                check()
            except ConfigError as error:
                problems += error.problems
    yield from problems


def given_overrides(params: Mapping[str, Any] | None, arguments: Sequence[str]) -> list[Override]:
    """Return the overrides of a job's keys that a sweep's file and the command line give, in this order.

    Raises:
        ConfigError: Hydra can't read one.
    """
    given = [*(f"{key}={value}" for key, value in (params or {}).items()), *arguments]
    try:
        overrides = OverridesParser.create(GlobalHydra.instance().config_loader()).parse_overrides(given)
    except HydraException as error:
        raise ConfigError([" ".join(str(error).splitlines()[:2])]) from error
    return [override for override in overrides if not override.is_hydra_override()]


def open_storage(url: str) -> BaseStorage:
    """Open a storage of Optuna's: the URL of a database, or ``journal:FILE``.

    Raises:
        ConfigError: it can't be opened, or lives in the memory of one process.
    """
    import optuna
    from optuna.storages import JournalStorage, RDBStorage
    from optuna.storages.journal import JournalFileBackend

    # What it says of studies and trials, the search says in its own words.
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if url in ("sqlite://", "sqlite:///", "sqlite:///:memory:"):
        raise ConfigError([f"hydra.sweeper.storage: {url} is in memory, where jobs don't see it; name a file."])
    attempt = 0
    while True:
        try:
            if url.startswith(_JOURNAL):
                return JournalStorage(JournalFileBackend(url.removeprefix(_JOURNAL)))
            arguments = {"connect_args": {"timeout": _LOCK_TIMEOUT}} if url.startswith("sqlite") else None
            return RDBStorage(url, arguments)
        except Exception as error:  # of SQLAlchemy, of any database's driver, or of the file system
            attempt += 1
            if attempt < _ATTEMPTS and (type(error).__name__ == "IntegrityError" or "already exists" in str(error)):
                time.sleep(0.2)
                continue
            # The URL may hold a password.
            reason = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
            expected = "a URL such as sqlite:////folder/study.db or postgresql://host/db, journal:FILE, or null"
            raise ConfigError([f"hydra.sweeper.storage: can't be opened ({reason}); expected {expected}."]) from error


def open_study(storage: str, name: str, direction: Direction, space: Mapping[str, BaseDistribution]) -> Study:
    """Open a study, or begin it.

    Raises:
        ConfigError: the storage can't be opened, or the study was begun with another direction or search space.
    """
    import optuna
    from optuna.distributions import check_distribution_compatibility

    wanted: Literal["maximize", "minimize"] = "maximize" if direction == "max" else "minimize"
    study = optuna.create_study(storage=open_storage(storage), study_name=name, direction=wanted, load_if_exists=True)
    problems = {}
    if study.direction.name != wanted.upper():
        problems[""] = f"hydra.sweeper.direction: the study {name} was begun to {study.direction.name.lower()}."
    for trial in study.get_trials(deepcopy=False):
        for key in trial.distributions.keys() & space.keys():
            try:
                check_distribution_compatibility(trial.distributions[key], space[key])
            except ValueError:
                problems[key] = f"{key}: the study {name} was begun with {trial.distributions[key]}, not {space[key]}."
    if problems:
        raise ConfigError([f"{problem} Choose another hydra.sweeper.study_name." for problem in problems.values()])
    return study


def trial_of(study: Study, number: int) -> Trial:
    """Return a trial to go on with; Optuna itself hands it to the process alone that began it."""
    import optuna

    return optuna.Trial(study, study.get_trials(deepcopy=False)[number]._trial_id)


def make_sampler(name: Sampler, startup_trials: int, seed: int, number: int) -> BaseSampler:
    """Return the sampler for one trial.

    One for all would draw the same values once more when a killed search goes on, or on another machine.
    """
    import numpy as np
    from optuna.samplers import RandomSampler, TPESampler

    own = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
    return RandomSampler(seed=own) if name == "random" else TPESampler(n_startup_trials=startup_trials, seed=own)


def make_pruner(name: Pruner, startup_trials: int, warmup_epochs: int) -> BasePruner:
    """Return the pruner; its steps are epochs, counted from 0."""
    from optuna.pruners import HyperbandPruner, MedianPruner, NopPruner

    if name == "median":
        return MedianPruner(n_startup_trials=startup_trials, n_warmup_steps=warmup_epochs)
    return HyperbandPruner(min_resource=max(1, warmup_epochs)) if name == "hyperband" else NopPruner()


def search_space(overrides: Sequence[Override]) -> tuple[dict[str, BaseDistribution], list[str]]:
    """Divide overrides into what is searched, and what is the same for each trial; of one key the last counts.

    Args:
        overrides: of the files first, then of the command line.

    Returns:
        the distribution of each searched key, and the other overrides as they were written.

    Raises:
        ConfigError: a range has no values or unknown tags, or nothing is left to search.
    """
    last = {(override.key_or_group, override.package): override for override in overrides}
    space, fixed, problems = {}, [], []
    for override in last.values():
        if not override.is_sweep_override():
            fixed.append(str(override.input_line))
            continue
        try:
            space[override.get_key_element()] = _distribution(override)
        except ValueError as error:
            problems.append(f"{override.input_line}: {' '.join(str(error).split())}")
    if not space and not problems:
        problems.append("hydra.sweeper.params: nothing to search; give a key an interval(), a range() or a choice().")
    if problems:
        raise ConfigError(problems)
    return space, fixed


def _distribution(override: Override) -> BaseDistribution:
    """Return the distribution of a sweep in Hydra's grammar.

    Raises:
        ValueError: it makes none.
    """
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    sweep: Any = override.value()
    tags: set[str] = getattr(sweep, "tags", set())
    log = "log" in tags
    if tags - {"log"} or (log and not isinstance(sweep, IntervalSweep)):
        raise ValueError(f"found the tags {', '.join(sorted(tags))}; the one known tag is log, of an interval.")
    if isinstance(sweep, IntervalSweep):
        # Hydra's own interval() has floats; int(interval()) has none.
        whole = isinstance(sweep.start, int) and isinstance(sweep.end, int)
        kind = IntDistribution if whole else FloatDistribution
        return kind(sweep.start, sweep.end, log=log)  # type: ignore[arg-type]
    if isinstance(sweep, RangeSweep):
        values: list[Any] = list(override.sweep_iterator())
        if not values:
            raise ValueError("the range has no values.")
        whole = all(isinstance(value, int) for value in values)
        kind = IntDistribution if whole else FloatDistribution
        # Without the end, as ranges are Hydra's.
        return kind(min(values), max(values), step=abs(sweep.step))  # type: ignore[arg-type]
    chosen = list(override.sweep_string_iterator())
    if not chosen:
        raise ValueError("there is nothing to choose from.")
    return CategoricalDistribution(chosen)


def suggest(trial: Trial, space: Mapping[str, BaseDistribution]) -> list[str]:
    """Return a trial's overrides: what it has already, and what the sampler chooses for the rest of the space."""
    for name, distribution in space.items():
        trial._suggest(name, distribution)
    return overrides_of(trial.params)


def overrides_of(params: Mapping[str, Any]) -> list[str]:
    """Return the values of a trial as overrides."""
    return [f"{name}={value}" for name, value in params.items()]


def trial_rows(study: Study) -> list[dict[str, Any]]:
    """Return a row for each trial: number, state, value, each searched key, the epochs that were validated, folder."""
    rows = []
    for trial in study.get_trials(deepcopy=False):
        state = {"FAIL": "failed"}.get(trial.state.name, trial.state.name.lower())
        row = {"trial": trial.number, "state": state, "value": trial.value, **trial.params}
        epochs = None if trial.last_step is None else trial.last_step + 1
        rows.append({**row, "epochs": epochs, "folder": trial.user_attrs.get(FOLDER)})
    return rows


def is_in(folder: Path, attributes: Mapping[str, Any]) -> bool:
    """Return whether a trial's job writes into a sweep's folder."""
    return FOLDER in attributes and Path(attributes[FOLDER]).parent == folder
