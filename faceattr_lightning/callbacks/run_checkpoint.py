"""A run's checkpoints, also of a run that goes on from another one's folder."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_only


class RunCheckpoint(ModelCheckpoint):
    """A `ModelCheckpoint` whose file and score so far come along into the folder of the run that goes on.

    Lightning forgets them when the folder is another one; the first epoch after the interruption would count as best.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self._stage = stage

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # Lightning also calls this to validate and test the best checkpoint, whose file every rank is reading then.
        if self._stage != "fit":
            return
        before = Path(state_dict["best_model_path"])
        if self.dirpath is None or state_dict["dirpath"] == self.dirpath or not before.is_file():
            super().load_state_dict(state_dict)
            return
        here = Path(self.dirpath) / before.name
        if rank_zero_only.rank == 0:  # type: ignore[attr-defined]
            here.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(before, here)
        self.best_model_path = self.kth_best_model_path = str(here)
        self.best_model_score, self.kth_value = state_dict["best_model_score"], state_dict["kth_value"]
        self.best_k_models = {str(here): self.best_model_score} if state_dict["best_k_models"] else {}
