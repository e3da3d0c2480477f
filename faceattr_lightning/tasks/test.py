"""``task=test``: evaluate a checkpoint and report, without training."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from lightning import seed_everything

from faceattr_lightning.data.module import FaceDataModule
from faceattr_lightning.errors import ConfigError
from faceattr_lightning.instantiate import build, check_class
from faceattr_lightning.models.module import AttributeModule
from faceattr_lightning.networks.load import LoadedNetwork
from faceattr_lightning.processes import is_first_process
from faceattr_lightning.strategy import Process
from faceattr_lightning.tasks.checkpoint import load_model, newest_checkpoint
from faceattr_lightning.tasks.run_folder import save_config
from faceattr_lightning.tasks.trainer import make_trainer

log = logging.getLogger(__name__)

_OF_CHECKPOINT = ("model", "backbone", "weighting", "calibration")
_PLACES = ("root", "landmark_file", "cache_dir")


def test(config: dict[str, Any], ranks: list[Process]) -> None:
    """Validate, test and report the checkpoint that ``ckpt_path`` names (``best`` if none is given).

    Model, backbone, thresholds and preprocessing are the checkpoint's. So is the data set, unless the command line
    chooses one (``data=``) or changes its keys (``data.batch_size=``).

    Args:
        config: the job's configuration as plain data.
        ranks: takes the other processes of the job.
    """
    model, datamodule, path = prepare_test(config)
    with make_trainer(config, model, ranks) as trainer:
        for evaluate in (trainer.validate, trainer.test):
            evaluate(model, datamodule=datamodule, ckpt_path=path, weights_only=True, verbose=False)


def open_checkpoint(config: dict[str, Any]) -> tuple[AttributeModule, Path]:
    """Load the checkpoint that ``ckpt_path`` names, and put it, and the data it is to meet, into the configuration and
    the run's folder; see `test`.

    Returns:
        the model and the checkpoint's file.
    """
    path = find_checkpoint(config)
    model = load_model(path)
    take_over(config, model.run_config, path)
    return model, path


def find_checkpoint(config: dict[str, Any]) -> Path:
    """Return the checkpoint, or the model folder, that ``ckpt_path`` names, with all seeds set; see `test`."""
    seed_everything(config["seed"], workers=True, verbose=False)
    path = newest_checkpoint(config["ckpt_path"] or "best", config["paths"]["output_dir"])
    log.info("Checkpoint: %s", path)
    return path


def take_over(config: dict[str, Any], trained: dict[str, Any], path: Path) -> None:
    """Put what a checkpoint was trained with, and the data it is to meet, into the configuration and the run's folder.

    Args:
        config: this call's.
        trained: the checkpoint's.
        path: of the checkpoint, or of a model folder, which does not say where its data was.
    """
    missing = [section for section in (*_OF_CHECKPOINT, "data") if section not in trained]
    if missing:
        raise ConfigError([f"ckpt_path: {path} is damaged: its config lacks {', '.join(missing)}. Take another file."])
    for section in _OF_CHECKPOINT:
        config[section] = trained[section]
    present, data = config["data"], trained["data"]
    try:
        # It may be a stranger's, and is called.
        for node in (data, *(data.get("members") or {}).values()):
            check_class(node["_target_"], FaceDataModule)
    except ImportError as error:
        raise ConfigError([f"ckpt_path: {path} was trained on a data set that is not there ({error})."]) from error
    if path.is_dir() and present["_target_"] == data["_target_"]:
        data = {**data, **{key: present[key] for key in _PLACES if key in present}}
    config["data"] = chosen_data(present, data, list(HydraConfig.get().overrides.task))
    config["ckpt_path"] = str(path)
    if is_first_process():
        save_config(config, Path(config["paths"]["run_dir"]))


def prepare_test(config: dict[str, Any]) -> tuple[AttributeModule, FaceDataModule, Path]:
    """Open the checkpoint as `open_checkpoint` does, and its data, ready to be read."""
    model, path = open_checkpoint(config)
    datamodule = build(config["data"])
    datamodule.prepare_data()
    datamodule.setup()
    check_fit(model, datamodule)
    return model, datamodule, path


def chosen_data(present: dict[str, Any], trained: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """Return the data node to test on.

    Args:
        present: the node of this call's configuration.
        trained: the node that the checkpoint was trained with.
        overrides: this call's command line.

    Returns:
        ``present`` if the call chooses another data set or an experiment, else ``trained`` with the call's single
        changes, such as ``data=celeba data.root=/elsewhere``.
    """
    keys = [override.lstrip("+~").partition("=")[0] for override in overrides]
    if "experiment" in keys or ("data" in keys and present["_target_"] != trained["_target_"]):
        return present
    chosen = copy.deepcopy(trained)
    for key in keys:
        if key.startswith("data."):
            _take(chosen, present, key.split(".")[1:])
    return chosen


def _take(chosen: dict[str, Any], present: Mapping[str, Any], path: Sequence[str]) -> None:
    """Set what ``path`` names to what it is in ``present``, and nothing beside it."""
    key, *rest = path
    if key not in present:
        return
    if rest and isinstance(present[key], Mapping) and isinstance(chosen.get(key), dict):
        _take(chosen[key], present[key], rest)
    else:
        chosen[key] = present[key]


def check_fit(model: AttributeModule | LoadedNetwork, datamodule: FaceDataModule) -> None:
    """Raise a ConfigError unless the data has the model's attributes, in its order, and images of its size."""
    problems = []
    if datamodule.attribute_names != model.attribute_names:
        missing = [name for name in model.attribute_names if name not in datamodule.attribute_names]
        problems.append(
            "data: its attributes are not the checkpoint's"
            + (
                f"; it lacks {', '.join(missing[:5])}"
                if missing
                else "; it has more, or another order: set data.attributes"
            )
            + "."
        )
    there = list(datamodule.table.age_groups)
    if model.age_groups and there and there != model.age_groups:
        problems.append(
            f"data: its age groups ({', '.join(there)}) are not the checkpoint's ({', '.join(model.age_groups)})."
        )
    if datamodule.image_size != model.preprocessing.image_size:
        problems.append(
            "data.image_size: the checkpoint was trained at "
            f"{model.preprocessing.image_size} pixels, not {datamodule.image_size}; "
            f"set data.image_size={model.preprocessing.image_size}."
        )
    same_frame = datamodule.table.image_size == model.preprocessing.source_size
    if same_frame and datamodule.crop != model.preprocessing.crop:
        problems.append(
            f"data.crop: the checkpoint was trained with {list(model.preprocessing.crop)}, not {list(datamodule.crop)}."
        )
    if problems:
        raise ConfigError(problems)
