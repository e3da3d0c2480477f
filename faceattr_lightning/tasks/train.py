"""``task=train``: fit, keep the best checkpoint, evaluate it, report."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator
from typing import Any

from lightning import Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint, WeightAveraging

from faceattr_lightning.callbacks.last_checkpoint import LastCheckpoint
from faceattr_lightning.checkpoint import CHECKPOINT_KEY, read_checkpoint
from faceattr_lightning.data.module import FaceDataModule
from faceattr_lightning.errors import ConfigError
from faceattr_lightning.instantiate import build, locate
from faceattr_lightning.models.module import AttributeModule
from faceattr_lightning.networks.backbone import normalisation
from faceattr_lightning.strategy import Process, process_count
from faceattr_lightning.tasks.checkpoint import check_weights, checkpoint_to_go_on_from
from faceattr_lightning.tasks.trainer import make_trainer

log = logging.getLogger(__name__)


def train(config: dict[str, Any], ranks: list[Process]) -> float | None:
    """Train a model, then validate, test and report its best checkpoint.

    Args:
        config: the run's configuration as plain data; with ``ckpt_path`` training goes on from that checkpoint.
        ranks: takes the other processes of the job.

    Returns:
        the best value of the metric that the checkpoint ``best`` is chosen by.
    """
    seed_everything(config["seed"], workers=True, verbose=False)
    datamodule = build(config["data"])
    resumed, checkpoint = None, None
    if config["ckpt_path"] is not None:
        resumed = checkpoint_to_go_on_from(config)
        config["ckpt_path"] = str(resumed)
        checkpoint = read_checkpoint(resumed)
        check_same_run(checkpoint, config)
        datamodule.first_step = steps_done(checkpoint)
        log.info("Going on from %s: epoch %d, step %d", resumed, *datamodule.first_step)
    datamodule.prepare_data()
    datamodule.setup()
    datamodule.check_batches(process_count(config["trainer"]))
    model = make_model(config, datamodule)
    if resumed is None or checkpoint is None:
        model.load_pretrained(config["backbone"]["pretrained"])
    else:
        check_attributes(checkpoint, model)
        check_weights(resumed, checkpoint, model)
    with make_trainer(config, model, ranks, checkpoint) as trainer:
        trainer.fit(model, datamodule=datamodule, ckpt_path=resumed, weights_only=True)
        best = best_checkpoint(trainer)
        # It would put the unaveraged weights into the model that is tested; the checkpoint holds the averaged ones.
        trainer.callbacks = [entry for entry in trainer.callbacks if not isinstance(entry, WeightAveraging)]  # type: ignore[attr-defined]
        for evaluate in (trainer.validate, trainer.test):
            evaluate(model, datamodule=datamodule, ckpt_path=best, weights_only=True, verbose=False)
        scores = (entry.best_model_score for entry in monitored(trainer))
        return next((float(score) for score in scores if score is not None), None)


def epochs_done(checkpoint: dict[str, Any]) -> int:
    """Return how many epochs a checkpoint's training has ended."""
    return int(checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"])


def steps_done(checkpoint: dict[str, Any]) -> tuple[int, int]:
    """Return the epoch that training goes on with, and how many of its steps are done."""
    loop = checkpoint["loops"]["fit_loop"]
    epoch = loop["epoch_progress"]["current"]
    inside = epoch["started"] > epoch["processed"]
    return int(epoch["processed"]), int(loop["epoch_loop.batch_progress"]["current"]["processed"]) if inside else 0


_FREE = frozenset(
    ("root", "cache_dir", "prepared", "landmark_file", "mask_checkpoint", "num_workers", "pretrained", "batch_size")
)
"""Keys of which another machine may need others: where the files are, and how they are read; the batch of all processes
together has to stay."""
LEARNING_CALLBACKS = ("average", "progressive")
"""Keys of ``callbacks`` that change what is learned."""
_BOUND: dict[str, dict[str, Any]] = {
    "trainer": {
        "precision": "auto",
        "accumulate_grad_batches": 1,
        "gradient_clip_val": None,
        "gradient_clip_algorithm": None,
        "check_val_every_n_epoch": 1,
        "val_check_interval": None,
        "limit_train_batches": None,
    },
    "callbacks": dict.fromkeys(LEARNING_CALLBACKS),
}
"""Of these parts only the keys that change what is learned, and what they are where they are not set."""


def check_same_run(checkpoint: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise a ConfigError unless a run goes on with what it was begun with, and to an end that it has not passed.

    With ``strict_resume=false`` differences are said, not refused.
    """
    own = checkpoint[CHECKPOINT_KEY]
    before = own["config"]
    # With a rule that looks at it, another batch a process would be another learning rate.
    rule = (now["model"].get("schedule") or {}).get("batch_rule", "none")
    free = _FREE if rule == "none" else _FREE - {"batch_size"}
    parts = [(part, before[part], now[part]) for part in ("model", "backbone", "data", "weighting", "calibration")]
    for part, unset in _BOUND.items():
        then, wanted = ({key: (one[part] or {}).get(key, unset[key]) for key in unset} for one in (before, now))
        parts.append((part, then, wanted))
    differences = [
        f"{path}: the checkpoint was trained with {then!r}, not {wanted!r}"
        for part, then, wanted in parts
        for path, then, wanted in _differing(then, wanted, part, free)
    ]
    if before["seed"] != now["seed"]:
        differences.append(f"seed: the checkpoint was trained with {before['seed']}, not {now['seed']}")
    had, has = own.get("effective_batch_size", effective_batch_size(before)), effective_batch_size(now)
    if had != has:
        differences.append(f"data.batch_size: a step of all processes took {had} images, not {has}")
    if not now["strict_resume"]:
        for difference in differences:
            log.warning("%s.", difference)
        differences = []
    problems = [f"{one}; repeat the overrides of the run, or add strict_resume=false." for one in differences]
    done, last = epochs_done(checkpoint), now["trainer"]["max_epochs"]
    if last is not None and -1 < last < done:
        problems.append(f"trainer.max_epochs: the checkpoint has {done} epochs behind it, not at most {last}.")
    if problems:
        raise ConfigError(problems)


def _differing(before: Any, now: Any, path: str, free: frozenset[str]) -> Iterator[tuple[str, Any, Any]]:
    """Yield the path and both values of what differs; a key that the checkpoint's version did not know is none."""
    if not isinstance(before, dict) or not isinstance(now, dict):
        if before != now:
            yield path, before, now
        return
    for key in sorted(before.keys() - free):
        yield from _differing(before[key], now.get(key), f"{path}.{key}", free)


def effective_batch_size(config: dict[str, Any]) -> int:
    """Return how many images a step of the optimiser takes, over all processes."""
    accumulated = config["trainer"].get("accumulate_grad_batches") or 1
    return int(config["data"]["batch_size"]) * process_count(config["trainer"]) * int(accumulated)


def check_attributes(checkpoint: dict[str, Any], model: AttributeModule) -> None:
    """Raise a ConfigError unless the data still has the attributes that the checkpoint was trained with."""
    before, now = checkpoint[CHECKPOINT_KEY]["attribute_names"], model.attribute_names
    if before != now:
        gone = [name for name in before if name not in now]
        new = [name for name in now if name not in before]
        found = "; ".join(
            f"{text} {', '.join(names[:5])}" for text, names in (("it lacks", gone), ("new are", new)) if names
        )
        raise ConfigError(
            [f"data: its attributes are not those of the checkpoint: {found or 'they have another order'}."]
        )


def monitored(trainer: Trainer) -> list[ModelCheckpoint]:
    """Return the callbacks that keep the checkpoint that is best by a metric."""
    saved = [entry for entry in trainer.checkpoint_callbacks if isinstance(entry, ModelCheckpoint)]
    return [entry for entry in saved if entry.monitor is not None]


def best_checkpoint(trainer: Trainer) -> str | None:
    """Return the best checkpoint's path; without one that is monitored the last's, without any ``None``."""
    best = [entry.best_model_path for entry in monitored(trainer)]
    last = [str(entry.path) for entry in trainer.checkpoint_callbacks if isinstance(entry, LastCheckpoint)]
    return next((path for path in (*best, *last) if path), None)


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
        "landmarks": datamodule.landmark_count(),
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
