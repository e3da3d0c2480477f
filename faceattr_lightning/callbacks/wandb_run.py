"""The W&B run: how it starts, and its id in the checkpoint, so that a resumed run goes on in the same run."""

from __future__ import annotations

from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger

from faceattr_lightning.errors import ConfigError


def start_run(logger: WandbLogger, config: dict[str, Any]) -> None:
    """Start the logger's run with the configuration, and with epochs on the x axis of every curve.

    Ranks other than the first have no run, and do nothing.

    Raises:
        ConfigError: there is no account, or no way to the server.
    """
    import wandb

    try:
        run: Any = logger.experiment
    except wandb.Error as error:
        raise ConfigError(
            [f"logger.wandb: {error} Without an account or a network, set the variable WANDB_MODE=offline."]
        ) from error
    logger.log_hyperparams(config)
    # Lightning's own choice is its count of steps, which means little beside values of whole epochs.
    run.define_metric("trainer/global_step", hidden=True)
    run.define_metric("epoch", hidden=True)
    run.define_metric("*", step_metric="epoch", step_sync=True)


class WandbRun(Callback):
    """Remembers the run's id, also while training goes on without W&B; `saved_id` reads it from a checkpoint."""

    def __init__(self) -> None:
        self._id: str | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        versions = (logger.version for logger in trainer.loggers if isinstance(logger, WandbLogger))
        self._id = next(versions, self._id)

    def state_dict(self) -> dict[str, Any]:
        return {"id": self._id}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._id = self._id or state_dict["id"]

    @classmethod
    def saved_id(cls, checkpoint: dict[str, Any]) -> str | None:
        """Return the run's id in a checkpoint, ``None`` if it was made without W&B."""
        state: dict[str, Any] = checkpoint.get("callbacks", {}).get(cls.__qualname__, {})
        return state.get("id")
