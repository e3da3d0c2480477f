"""``task=train``: fit, keep the best checkpoint, evaluate it, report."""

from __future__ import annotations

import inspect
import logging
from typing import Any

from lightning import Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint, WeightAveraging

from faceattr_lightning.data.module import FaceDataModule
from faceattr_lightning.errors import ConfigError
from faceattr_lightning.instantiate import build, locate
from faceattr_lightning.models.backbone import normalisation
from faceattr_lightning.models.module import CHECKPOINT_KEY, AttributeModule
from faceattr_lightning.strategy import Process
from faceattr_lightning.tasks.checkpoint import check_weights, newest_checkpoint, read_checkpoint
from faceattr_lightning.tasks.trainer import make_trainer

log = logging.getLogger(__name__)


def train(config: dict[str, Any], ranks: list[Process]) -> None:
    """Train a model, then validate, test and report its best checkpoint.

    Args:
        config: the run's configuration as plain data; with ``ckpt_path`` training goes on from that checkpoint.
        ranks: takes the other processes of the job.
    """
    seed_everything(config["seed"], workers=True, verbose=False)
    datamodule = build(config["data"])
    resumed, checkpoint = None, None
    if config["ckpt_path"] is not None:
        resumed = newest_checkpoint(config["ckpt_path"], config["paths"]["output_dir"])
        config["ckpt_path"] = str(resumed)
        checkpoint = read_checkpoint(resumed)
        check_same_run(checkpoint, config)
        datamodule.first_epoch = epochs_done(checkpoint)
    datamodule.prepare_data()
    datamodule.setup()
    model = make_model(config, datamodule)
    if resumed is None or checkpoint is None:
        model.load_pretrained(config["backbone"]["pretrained"])
    else:
        check_weights(resumed, checkpoint, model)
    with make_trainer(config, model, ranks, checkpoint) as trainer:
        trainer.fit(model, datamodule=datamodule, ckpt_path=resumed, weights_only=True)
        best = best_checkpoint(trainer)
        # It would put the unaveraged weights into the model that is tested; the checkpoint holds the averaged ones.
        trainer.callbacks = [entry for entry in trainer.callbacks if not isinstance(entry, WeightAveraging)]  # type: ignore[attr-defined]
        for evaluate in (trainer.validate, trainer.test):
            evaluate(model, datamodule=datamodule, ckpt_path=best, weights_only=True, verbose=False)


def epochs_done(checkpoint: dict[str, Any]) -> int:
    """Return how many epochs a checkpoint's training has ended."""
    return int(checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"])


def check_same_run(checkpoint: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise a ConfigError unless a run goes on with what it was begun with, and to an end that it has not passed."""
    before = checkpoint[CHECKPOINT_KEY]["config"]
    # Where the files are, and how they are read, may change on another machine.
    free = {"root", "cache_dir", "prepared", "landmark_file", "mask_checkpoint", "num_workers", "pretrained"}

    def bound(node: Any) -> Any:
        return {key: bound(value) for key, value in node.items() if key not in free} if isinstance(node, dict) else node

    problems = [
        f"{part}.{key}: the checkpoint was trained with {before[part].get(key)!r}, not {now[part].get(key)!r}; "
        "repeat the overrides of the run."
        for part in ("model", "backbone", "data", "weighting", "calibration")
        for key in sorted(before[part].keys() | now[part].keys())
        if key not in free and bound(before[part].get(key)) != bound(now[part].get(key))
    ]
    done, wanted = epochs_done(checkpoint), now["trainer"]["max_epochs"]
    if wanted is not None and -1 < wanted < done:
        problems.append(f"trainer.max_epochs: the checkpoint has {done} epochs behind it, not at most {wanted}.")
    if problems:
        raise ConfigError(problems)


def best_checkpoint(trainer: Trainer) -> str | None:
    """Return the best checkpoint's path; without one that is monitored the last's, without any ``None``."""
    saved = [entry for entry in trainer.checkpoint_callbacks if isinstance(entry, ModelCheckpoint)]
    saved.sort(key=lambda entry: entry.monitor is None)
    return next((entry.best_model_path for entry in saved if entry.best_model_path), None)


def make_model(config: dict[str, Any], datamodule: FaceDataModule) -> AttributeModule:
    """Make the LightningModule of a configuration for the attributes and landmarks that its data has."""
    node, name = config["model"], config["backbone"]["name"]
    mean, std = normalisation(name)
    preprocessing = datamodule.preprocessing(mean, std)
    facts = {
        "attribute_names": datamodule.attribute_names,
        "databases": list(datamodule.table.databases),
        "labelled": datamodule.labelled_attributes(),
        "age_groups": list(datamodule.table.age_groups),
        # Of a file without a row for any training image there is nothing to learn.
        "landmarks": len(preprocessing.template),
        "preprocessing": preprocessing.to_dict(),
        "backbone": config["backbone"],
        "weighting": config["weighting"],
        "calibration": config["calibration"],
    }
    known = inspect.signature(locate(node["_target_"])).parameters
    model: AttributeModule = build(node, **{key: value for key, value in facts.items() if key in known})
    model.run_config = config
    # Here, not when training starts: weight averaging has copied the buffers by then.
    model.train_prevalence.copy_(datamodule.training_prevalence())
    model.train_age_groups.copy_(datamodule.training_age_groups())
    return model
