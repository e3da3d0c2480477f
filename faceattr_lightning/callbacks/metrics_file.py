"""``metrics.csv`` of a run that goes on: each row once, whenever the run was interrupted."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities import rank_zero_only


class RunCSVLogger(CSVLogger):
    """A `CSVLogger` that knows its rows, to write them again where the run goes on; Lightning's begins anew."""

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """Each logged row, with its ``step``."""
        return []

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        super().log_metrics(metrics, step)
        self.rows.append({**metrics, "step": step})

    @rank_zero_only
    def restore(self, rows: list[dict[str, Any]]) -> None:
        """Begin the file anew with the rows of the part of the run before."""
        self.rows.clear()
        for row in rows:
            self.log_metrics({name: value for name, value in row.items() if name != "step"}, row["step"])
        self.save()


class MetricsFile(Callback):
    """Keeps the rows of `RunCSVLogger` in the checkpoint, and writes them again where the run goes on."""

    def __init__(self) -> None:
        self._logger: RunCSVLogger | None = None
        self._epoch_row: list[dict[str, Any]] = []
        self._restored: list[dict[str, Any]] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._logger = next((logger for logger in trainer.loggers if isinstance(logger, RunCSVLogger)), None)

    def state_dict(self) -> dict[str, Any]:
        return {"rows": [*(self._logger.rows if self._logger else []), *self._epoch_row]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._restored = state_dict["rows"]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Not when the state is loaded, as it also is to validate and test the best checkpoint.
        if self._logger is not None and self._restored is not None:
            self._logger.restore(self._restored)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._epoch_row = []

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Lightning logs it after the epoch's checkpoint is written.
        means = {name: float(value) for name, value in trainer.logged_metrics.items() if name.startswith("train/")}
        step = trainer.fit_loop.epoch_loop._batches_that_stepped - 1
        self._epoch_row = [{**means, "epoch": trainer.current_epoch, "step": step}]
