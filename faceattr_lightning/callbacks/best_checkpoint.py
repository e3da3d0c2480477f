"""The best checkpoint, also of a run that was interrupted."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_only


class BestCheckpoint(ModelCheckpoint):
    """A `ModelCheckpoint` that takes the best epoch so far along into the folder of the run that goes on.

    Lightning forgets it when the folder is another one; the first epoch after the interruption would count as best.
    """

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        before = Path(state_dict["best_model_path"])
        if self.dirpath is None or state_dict.get("dirpath") == self.dirpath or not before.is_file():
            return
        here = Path(self.dirpath) / before.name
        if rank_zero_only.rank == 0:  # type: ignore[attr-defined]
            here.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(before, here)
        score = state_dict["best_model_score"]
        self.best_model_path = self.kth_best_model_path = str(here)
        self.best_model_score = self.kth_value = score
        self.best_k_models = {str(here): score}
