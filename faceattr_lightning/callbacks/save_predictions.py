"""What the model said of each image, in a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lightning import Callback, Trainer

from faceattr_lightning.callbacks.stage import fitting
from faceattr_lightning.metrics.saved_predictions import SavedPredictions

if TYPE_CHECKING:
    from faceattr_lightning.data.module import FaceDataModule
    from faceattr_lightning.models.module import AttributeModule


class SavePredictions(Callback):
    """Writes ``report/predictions.npz`` of the test split and ``predictions_validation.npz``, for ``task=compare``.

    Args:
        run_dir: the run's folder.
    """

    def __init__(self, run_dir: str) -> None:
        self.folder = Path(run_dir) / "report"

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: AttributeModule) -> None:  # type: ignore[override]
        if not fitting(trainer) and not trainer.sanity_checking:
            self._write(trainer, pl_module, "predictions_validation.npz")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: AttributeModule) -> None:  # type: ignore[override]
        self._write(trainer, pl_module, "predictions.npz")

    def _write(self, trainer: Trainer, model: AttributeModule, name: str) -> None:
        predictions = model.gathered()
        if not trainer.is_global_zero:
            return
        datamodule: FaceDataModule = trainer.datamodule  # type: ignore[attr-defined]
        rows = predictions.index.numpy()
        SavedPredictions(
            predictions,
            datamodule.table.identity[rows],
            [datamodule.table.files[row] for row in rows],
            model.calibrator.thresholds,
            model.train_prevalence,
            model.attribute_names,
            model.run_config,
        ).write(self.folder / name)
