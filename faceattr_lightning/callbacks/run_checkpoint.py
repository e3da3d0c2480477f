"""A run's checkpoints, also of a run that goes on from another one's folder."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_only

from faceattr_lightning.files import whole_file

log = logging.getLogger(__name__)


class RunCheckpoint(ModelCheckpoint):
    """A `ModelCheckpoint` whose file and score so far come along into the folder of the run that goes on.

    Lightning forgets them when the folder is another one; the first epoch after the interruption would count as best.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self._stage, self._resumed = stage, trainer.ckpt_path

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # Lightning also calls this to validate and test the best checkpoint, whose file every rank is reading then.
        if self._stage != "fit" or not state_dict["best_model_path"]:
            return
        before = Path(state_dict["best_model_path"])
        # A folder that was moved or copied: the best lies beside the checkpoint that training goes on from.
        beside = Path(self._resumed or "").parent / before.name
        source = next((path for path in (before, beside) if path.is_file()), None)
        if source is None:
            log.warning(
                "The checkpoint of the best epoch so far is neither %s nor %s: the best from here on counts.",
                before,
                beside,
            )
            return
        here = Path(str(self.dirpath)) / before.name
        if rank_zero_only.rank == 0 and source.resolve() != here.resolve():  # type: ignore[attr-defined]
            here.parent.mkdir(parents=True, exist_ok=True)
            # With a new time, so that it belongs to the newest run, and whole or not at all.
            with whole_file(here) as partial:
                shutil.copyfile(source, partial)
        self.best_model_path = self.kth_best_model_path = str(here)
        self.best_model_score, self.kth_value = state_dict["best_model_score"], state_dict["kth_value"]
        self.best_k_models = {str(here): self.best_model_score} if state_dict["best_k_models"] else {}
