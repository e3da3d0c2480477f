"""``task=calibrate``: fit the thresholds of a checkpoint anew, without training, then test it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from faceattr_lightning.callbacks.threshold_calibration import ThresholdCalibrator
from faceattr_lightning.checkpoint import read_checkpoint
from faceattr_lightning.checkpoint_io import write_checkpoint
from faceattr_lightning.models.module import AttributeModule
from faceattr_lightning.processes import is_first_process
from faceattr_lightning.strategy import Process
from faceattr_lightning.tasks.run_folder import save_config
from faceattr_lightning.tasks.test import prepare_test
from faceattr_lightning.tasks.trainer import make_trainer

log = logging.getLogger(__name__)


def calibrate(config: dict[str, Any], ranks: list[Process]) -> None:
    """Fit ``calibration`` on the validation split, write ``checkpoints/best.ckpt`` with its thresholds, and test that.

    Everything but the calibration, and the data if the command line chooses any, is the checkpoint's of ``ckpt_path``
    (``best`` if none is given), which stays as it is.

    Args:
        config: the job's configuration as plain data.
        ranks: takes the other processes of the job.
    """
    calibration = config["calibration"]
    model, datamodule, path = prepare_test(config)
    # Here and in the run's folder, in place of the checkpoint's.
    model.calibrator = model.make_calibrator(calibration)
    model.run_config["calibration"] = config["calibration"] = calibration
    if is_first_process():
        save_config(config, Path(config["paths"]["run_dir"]))
    written = Path(config["paths"]["run_dir"]) / "checkpoints" / "best.ckpt"
    with make_trainer(config, model, ranks) as trainer:
        # Before the report is told of the validation.
        model.calibrator.refits = True
        trainer.validate(model, datamodule=datamodule, verbose=False)
        if trainer.is_global_zero:
            write_calibrated(path, written, model)
        trainer.strategy.barrier()
        log.info("Calibrated: %s", written)
        trainer.test(model, datamodule=datamodule, ckpt_path=written, weights_only=True, verbose=False)


def write_calibrated(source: Path, path: Path, model: AttributeModule) -> None:
    """Write a copy of a checkpoint with a model's calibrator in place of its own; whole or not at all."""
    checkpoint = read_checkpoint(source)
    state = {name: tensor for name, tensor in checkpoint["state_dict"].items() if not name.startswith("calibrator.")}
    own: ThresholdCalibrator = model.calibrator
    # A calibrator has no state but its tensors; Lightning would miss the one that was there.
    checkpoint["callbacks"] = {key: state for key, state in checkpoint["callbacks"].items() if "Calibrator" not in key}
    checkpoint["state_dict"] = state | {f"calibrator.{name}": tensor for name, tensor in own.state_dict().items()}
    checkpoint["hyper_parameters"]["calibration"] = model.run_config["calibration"]
    model.on_save_checkpoint(checkpoint)
    write_checkpoint(checkpoint, path)
