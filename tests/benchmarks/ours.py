"""Our side as ``python run.py`` makes it: the configuration, the data module, the model and the Trainer."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from lightning import Callback, seed_everything
from omegaconf import OmegaConf

from faceattr_lightning.__main__ import CONF
from faceattr_lightning.allocator import keep_freed_memory
from faceattr_lightning.data.celeba import CelebA
from faceattr_lightning.data.module import FaceDataModule, FileOptions
from faceattr_lightning.instantiate import build
from faceattr_lightning.models.module import AttributeModule
from faceattr_lightning.processes import quote
from faceattr_lightning.tasks.train import make_model
from faceattr_lightning.tasks.trainer import make_trainer

FLIP = {"flip": 0.5, "scale": 0.0, "shift": 0.0, "brightness": 0.0, "contrast": 0.0, "saturation": 0.0}
"""The augmentation of the other sides: a mirror image, and nothing else."""
FLIP_ONLY = [f"data.augmentation.{name}={value}" for name, value in FLIP.items()]


def celeba(root: Path, size: int, cache: Path | None, augmentation: dict[str, float] | None) -> CelebA:
    """Return a CelebA that is set up, at 64 images a batch.

    Args:
        root: the data set's folder.
        size: of the network's input in pixels.
        cache: where prepared data goes; ``None`` decodes the JPEGs each time.
        augmentation: of `FaceDataModule`.
    """
    storage: FileOptions = {"prepared": False} if cache is None else {"cache_dir": str(cache)}
    datamodule = CelebA(root=str(root), image_size=size, augmentation=augmentation, num_workers=0, **storage)
    datamodule.prepare_data()
    datamodule.setup()
    return datamodule


def prepared_in(folder: Path) -> list[str]:
    """Return the overrides of a run that keeps prepared data in ``folder``, not in the user's cache."""
    return ["++data.prepared=true", f"++data.cache_dir={quote(str(folder / 'cache'))}"]


def compose_config(*overrides: str) -> dict[str, Any]:
    """Return the program's configuration for overrides as plain data."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config: dict[str, Any] = OmegaConf.to_container(compose("config", list(overrides)), resolve=True)  # type: ignore[assignment]
    return config


def celeba_config(data: Path, run_dir: Path, *overrides: str) -> dict[str, Any]:
    """Return the configuration of a run on CelebA on one CPU thread, from prepared data.

    All is as in ``python run.py model=baseline data=celeba``, drawn progress bar included.

    Args:
        data: the data set's folder.
        run_dir: for what loggers and callbacks write; prepared data stands beside it.
        overrides: come last.
    """
    config = compose_config(
        "model=baseline",
        "data=celeba",
        f"data.root={quote(str(data))}",
        f"paths.run_dir={quote(str(run_dir))}",
        "trainer.accelerator=cpu",
        *prepared_in(run_dir.parent),
        *overrides,
    )
    # As in a terminal: without one, Rich draws nothing and the bar is free.
    config["callbacks"]["progress"]["console_kwargs"] = {"file": io.StringIO(), "force_terminal": True, "width": 120}
    return config


def fit(config: dict[str, Any], epochs: int | None, callbacks: Sequence[Callback] = ()) -> None:
    """Train as ``task=train`` does, without its final test.

    Args:
        config: of the run.
        epochs: so many of them, and one step more, at whose start the last epoch's work is complete; ``None`` for as
            many as the configuration says.
        callbacks: after the program's own.
    """
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if config["keep_freed_memory"]:
        keep_freed_memory()
    datamodule, model = make(config)
    if epochs is not None:
        config["trainer"] |= {"max_epochs": -1, "max_steps": epochs * len(datamodule.train_dataloader()) + 1}
    with make_trainer(config, model, []) as trainer, warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*does not have many workers.*")
        trainer.callbacks.extend(callbacks)  # type: ignore[attr-defined]
        trainer.fit(model, datamodule=datamodule)


def make(config: dict[str, Any]) -> tuple[FaceDataModule, AttributeModule]:
    """Return the data module, set up, and the model of a configuration."""
    seed_everything(config["seed"], verbose=False)
    datamodule: FaceDataModule = build(config["data"])
    datamodule.prepare_data()
    datamodule.setup()
    return datamodule, make_model(config, datamodule)
