"""Ending a trial of a search that looks hopeless."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from lightning import Callback, LightningModule, Trainer

from faceattr_lightning.callbacks.stage import fitting
from faceattr_lightning.errors import ConfigError
from faceattr_lightning.search import PRUNED, Pruner, make_pruner, open_storage, trial_of

if TYPE_CHECKING:
    from optuna import Trial

log = logging.getLogger(__name__)


class Prune(Callback):
    """Reports a metric to the trial's study after each validation, and ends training when the pruner says so.

    The run is a finished one, with its best checkpoint and its report; the trial gets the attribute ``pruned``, the
    epoch, by which the search knows. A run that goes on reports no epoch twice, and ends at the same epoch if it was
    pruned. Of several validations in an epoch the first counts. A study that can't be reached is warned of, and prunes
    nothing.

    The search itself puts this into the configuration of each of its jobs; the same for all of them, since the table of
    a sweep shows what differs. The trial's number is the name of the run's folder.

    Args:
        storage: of the study, see `faceattr_lightning.search.open_storage`.
        study: its name.
        monitor: the metric.
        pruner: which; see `faceattr_lightning.search.make_pruner`.
        startup_trials: trials before the median is one.
        warmup_epochs: epochs in which the trial is not pruned.

    Raises:
        ConfigError: in training: the metric is not logged.
    """

    def __init__(
        self,
        storage: str,
        study: str,
        monitor: str = "val/average_precision",
        pruner: Pruner = "median",
        startup_trials: int = 5,
        warmup_epochs: int = 1,
    ) -> None:
        self.storage, self.study = storage, study
        self.monitor = monitor
        self.pruner: Pruner = pruner
        self.startup_trials, self.warmup_epochs = startup_trials, warmup_epochs
        self._trial: Trial | None = None
        self._reported: set[int] = set()
        # After which epoch.
        self._pruned: int | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Here, not before: the processes of a job are told apart from here on, and a connection can't be shared.
        if trainer.is_global_zero:
            self._open(int(Path(trainer.default_root_dir).name))
        # A run that was killed before the checkpoint of that epoch has the epoch before it once more.
        if trainer.strategy.broadcast(self._pruned is not None and trainer.current_epoch > self._pruned):
            trainer.should_stop = True

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not fitting(trainer):
            return
        value = trainer.callback_metrics.get(self.monitor)
        if value is None:
            known = ", ".join(sorted(name for name in trainer.callback_metrics if name.startswith("val/")))
            raise ConfigError([f"callbacks.prune.monitor: nothing logs {self.monitor}. Known: {known}."])
        epoch = trainer.current_epoch
        last = epoch + 1 == trainer.max_epochs or trainer.global_step == trainer.max_steps
        pruned = trainer.is_global_zero and self._report(epoch, float(value), last)
        if trainer.strategy.broadcast(pruned):
            trainer.should_stop = True
            if trainer.is_global_zero:
                log.info("The trial is pruned after epoch %d: %s %.4f", epoch, self.monitor, float(value))

    def _open(self, number: int) -> None:
        """Open the study, and learn what it knows of the trial."""
        import optuna

        try:
            pruner = make_pruner(self.pruner, self.startup_trials, self.warmup_epochs)
            study = optuna.load_study(study_name=self.study, storage=open_storage(self.storage), pruner=pruner)
            before = study.get_trials()[number]
            self._trial = trial_of(study, number)
        except Exception as error:  # of any database's driver
            log.warning("The study can't be opened; this trial is not pruned. %s", error)
            return
        self._reported = set(before.intermediate_values)
        self._pruned = before.user_attrs.get(PRUNED)

    def _report(self, epoch: int, value: float, last: bool) -> bool:
        """Report a value, and return whether the trial is to end."""
        if self._trial is None:
            return False
        try:
            if epoch not in self._reported:
                self._trial.report(value, epoch)
                self._reported.add(epoch)
            # After the last epoch nothing is left to be spared: the trial is a complete one.
            if self._pruned is None and not last and self._trial.should_prune():
                self._trial.set_user_attr(PRUNED, epoch)
                self._pruned = epoch
        except Exception as error:  # of any database's driver; a training of hours does not end for that
            log.warning("Epoch %d is not reported to the study. %s", epoch, error)
        return self._pruned is not None and epoch >= self._pruned
