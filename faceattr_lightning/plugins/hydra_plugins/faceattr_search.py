"""``sweep=search``: Hydra's sweeper that lets Optuna choose each job's values.

Not hydra-optuna-sweeper, which needs an Optuna below 3 and can't prune. Hydra looks for sweepers in this namespace
package alone, and imports each of its modules whenever it starts: this one imports the rest where it is used.
"""

from __future__ import annotations

import logging
import math
import shlex
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import CompactHydraException
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from faceattr_lightning.errors import ConfigError, FaceAttrError
from faceattr_lightning.going_on import lasting_overrides
from faceattr_lightning.processes import quote
from faceattr_lightning.search import (
    FOLDER,
    PRUNED,
    Direction,
    Pruner,
    Sampler,
    check_search,
    given_overrides,
    is_in,
    make_sampler,
    open_study,
    overrides_of,
    search_space,
    suggest,
    trial_of,
    trial_rows,
)

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.distributions import BaseDistribution

log = logging.getLogger(__name__)

_SECONDS_BETWEEN_LOOKS = 5.0


class OptunaSweeper(Sweeper):
    """Asks Optuna for values, has Hydra's launcher run the jobs, and tells Optuna what came of them.

    A trial's number is the name of its job's folder. The study knows all that matters, so a search that was killed at
    any moment goes on when its command is run in the same folder again: a trial that was running goes on from its last
    checkpoint, under its number and in its folder, and what finished without being told is told.

    Trials of a storage that machines share belong to the search in whose folder they lie; nobody else goes on with
    them. Not by Optuna's heartbeat, which works inside ``Study.optimize`` alone.

    Args:
        n_trials: complete and pruned ones of the study; those that fail count in the command in which they do.
        n_jobs: that are launched together.
        direction: of the metric that the best checkpoint is chosen by.
        storage: see `faceattr_lightning.search.open_storage`; ``None`` for a file in the sweep's folder.
        study_name: ``None`` for the name of the sweep's folder.
        seed: of the sampler.
        sampler: see `faceattr_lightning.search.make_sampler`.
        pruner: see `faceattr_lightning.search.make_pruner`.
        startup_trials: trials before the sampler and the pruner learn from them.
        warmup_epochs: in which no trial is pruned.
        params: the search space, in Hydra's sweep grammar.
    """

    def __init__(
        self,
        n_trials: int,
        n_jobs: int,
        direction: Direction,
        storage: str | None,
        study_name: str | None,
        seed: int,
        sampler: Sampler,
        pruner: Pruner,
        startup_trials: int,
        warmup_epochs: int,
        params: dict[str, Any] | None,
    ) -> None:
        self.n_trials, self.n_jobs = n_trials, n_jobs
        self.direction: Direction = direction
        self.storage, self.study_name = storage, study_name
        self.seed, self.startup_trials, self.warmup_epochs = seed, startup_trials, warmup_epochs
        self.sampler: Sampler = sampler
        self.pruner: Pruner = pruner
        self.params = params
        self.failed: list[JobReturn] = []
        self.launcher: Launcher
        self.config: DictConfig

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config = config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> list[JobReturn]:
        from filelock import FileLock, Timeout

        folder = Path(self.config.hydra.sweep.dir).absolute()
        lock = FileLock(folder / ".search.lock")
        try:
            problems = list(check_search(self.config, arguments))
            if problems:
                raise ConfigError(problems)
            folder.mkdir(parents=True, exist_ok=True)
            with lock.acquire(timeout=0):
                return self._search(arguments, folder)
        except Timeout:
            problem = f"hydra.sweep.dir: another search is running in {folder}. Wait for it, or choose another folder."
            raise CompactHydraException(problem) from None
        except FaceAttrError as error:
            raise CompactHydraException(str(error)) from None

    def _search(self, arguments: Sequence[str], folder: Path) -> list[JobReturn]:
        from optuna.exceptions import StorageInternalError

        space, fixed = search_space(given_overrides(self.params, arguments))
        storage = self.storage or f"sqlite:///{folder / 'study.db'}"
        study = open_study(storage, self.study_name or folder.name, self.direction, space)
        everyone = [*fixed, self._prune(storage, study.study_name)]
        done: list[JobReturn] = []
        try:
            while batch := self._next(study, folder, space):
                # The launcher's own numbers would be those of the batch.
                jobs = [[*everyone, *overrides, f"hydra.sweep.subdir={trial.number}"] for trial, overrides in batch]
                returns = self.launcher.launch(jobs, initial_job_idx=batch[0][0].number)
                for (trial, _), job in zip(batch, returns, strict=True):
                    self._tell(study, trial, job)
                done += returns
        except StorageInternalError as error:
            reason = str(error).splitlines()[0]
            raise ConfigError([f"hydra.sweeper.storage: {reason} The same command in this folder goes on."]) from error
        finally:
            with suppress(StorageInternalError):
                self._show(study, folder, fixed)
        for job in self.failed:
            # Raises what the job did.
            _ = job.return_value
        return done

    def _prune(self, storage: str, study: str) -> str:
        arguments = {
            "storage": quote(storage),
            "study": quote(study),
            "monitor": quote(self.config.callbacks.best.monitor),
            "pruner": self.pruner,
            "startup_trials": self.startup_trials,
            "warmup_epochs": self.warmup_epochs,
        }
        inside = ",".join(f"{key}:{value}" for key, value in arguments.items())
        return f"++callbacks.prune={{_target_:faceattr_lightning.callbacks.prune.Prune,{inside}}}"

    def _next(self, study: Study, folder: Path, space: dict[str, BaseDistribution]) -> list[tuple[Trial, list[str]]]:
        """Return the next trials, with their overrides: those that a killed search left, then new ones."""
        from optuna.trial import TrialState

        from faceattr_lightning.tasks.run_folder import is_occupied

        waited = False
        while True:
            trials = study.get_trials(deepcopy=False)
            left = [
                trial.number
                for trial in trials
                if trial.state == TrialState.RUNNING and (self.storage is None or is_in(folder, trial.user_attrs))
            ]
            # A launcher's workers may outlive the search.
            free = [number for number in left if not is_occupied(folder / str(number))]
            batch = [(trial_of(study, number), ["sweep.resume=true"]) for number in free[: self.n_jobs]]
            counted = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)
            missing = self.n_trials - len(self.failed) - sum(trial.state in counted for trial in trials)
            batch += [(study.ask(), []) for _ in range(min(missing, self.n_jobs - len(batch)))]
            if batch or not left:
                break
            if not waited:
                log.info("Waiting for trials that are still running: %s", ", ".join(map(str, left)))
                waited = True
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        for trial, overrides in batch:
            trial.set_user_attr(FOLDER, str(folder / str(trial.number)))
            study.sampler = make_sampler(self.sampler, self.startup_trials, self.seed, trial.number)
            overrides += suggest(trial, space)
        return batch

    def _tell(self, study: Study, trial: Trial, job: JobReturn) -> None:
        from optuna.trial import TrialState

        if job.status != JobStatus.COMPLETED:
            self.failed.append(job)
            study.tell(trial.number, state=TrialState.FAIL)
            return
        value = job.return_value
        if PRUNED in study.get_trials(deepcopy=False)[trial.number].user_attrs:
            study.tell(trial.number, state=TrialState.PRUNED)
        elif value is None or not math.isfinite(value):
            job.status = JobStatus.FAILED
            job.return_value = CompactHydraException(f"Trial {trial.number} has no value to be judged by: {value}.")
            self.failed.append(job)
            study.tell(trial.number, state=TrialState.FAIL)
        else:
            study.tell(trial.number, value)

    def _show(self, study: Study, folder: Path, fixed: Sequence[str]) -> None:
        """Write ``study.csv``, and print the best trial with a command that repeats it."""
        from rich.console import Console

        from faceattr_lightning.report.files import write_split_csv

        rows = trial_rows(study)
        write_split_csv(rows, folder / "study.csv")
        states = Counter(row["state"] for row in rows)
        console = Console(highlight=False, soft_wrap=True, markup=False)
        console.print(f"Trials: {', '.join(f'{count} {state}' for state, count in states.most_common())}")
        console.print(f"Study: {folder / 'study.csv'}")
        if states["complete"]:
            best = study.best_trial
            metric = self.config.callbacks.best.monitor
            console.print(f"Best trial: {best.number}, {metric} {best.value:.4f}. As a run of its own:")
            kept = lasting_overrides(fixed, "train")
            command = ["python", "run.py", *kept, *overrides_of(best.params), "hydra.mode=RUN"]
            console.print(f"  {shlex.join(command)}")
