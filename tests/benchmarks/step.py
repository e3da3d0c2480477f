"""A training epoch of our Trainer against a bare PyTorch loop over the same network and batches."""

from __future__ import annotations

import io
import itertools
import logging
import statistics
import time
import warnings
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from lightning import Callback, LightningModule, Trainer, seed_everything
from omegaconf import OmegaConf
from torch import Tensor, nn

from faceattr_lightning.__main__ import CONF
from faceattr_lightning.data.augment import augment
from faceattr_lightning.data.module import FaceDataModule
from faceattr_lightning.instantiate import build
from faceattr_lightning.models.losses import attribute_bce
from faceattr_lightning.models.module import AttributeModule, learning_rate_factor
from faceattr_lightning.strategy import quote
from faceattr_lightning.tasks.train import make_model
from faceattr_lightning.tasks.trainer import make_trainer
from tests.benchmarks.rows import Row

WARM_UP = 1
"""Epochs that are not counted: kernels are chosen and the optimiser's state is made in them."""


def step(data: Path, scratch: Path) -> list[Row]:
    """Compare CPU seconds on one thread.

    A real backbone gives the ratio that a user pays; a tiny one, whose own step is next to nothing, the Trainer's cost
    itself.
    """
    torch.set_num_threads(1)
    real = ["backbone=resnet18", "data.image_size=112", "data.batch_size=32"]
    tiny = ["backbone.name=test_resnet", "data.image_size=64", "data.batch_size=8"]
    real_ours, real_bare = measure(data, scratch / "real", 5, real)
    ours, bare = measure(data, scratch / "tiny", 9, tiny)
    difference = [own - other for own, other in zip(ours, bare, strict=True)]
    return [
        Row("step of resnet18, 112 px, batch 32", "ms", real_ours, real_bare, at_most=1.10),
        Row("step of test_resnet, 64 px, batch 8", "ms", ours, bare),
        Row("the Trainer's own cost of such a step", "ms", difference),
    ]


def measure(data: Path, run_dir: Path, rounds: int, overrides: list[str]) -> tuple[list[float], list[float]]:
    """Return the CPU milliseconds a step of our Trainer and of the bare loop, a value per epoch.

    Everything is as in ``python run.py model=baseline data=celeba``, drawn progress bar included, except that nothing
    is validated or saved: the bare loop does neither.

    Args:
        data: the folder of the data set.
        run_dir: for what the logger writes.
        rounds: epochs to count.
        overrides: of the configuration.
    """
    config = compose_config(
        "model=baseline",
        "data=celeba",
        f"data.root={quote(str(data))}",
        f"paths.run_dir={quote(str(run_dir))}",
        "trainer.accelerator=cpu",
        "trainer.max_epochs=-1",
        "++trainer.limit_val_batches=0",
        *overrides,
    )
    for callback in config["callbacks"].values():
        if callback["_target_"].endswith("RunCheckpoint"):
            callback |= {"save_top_k": 0, "save_last": False}
    # As in a terminal: without one, Rich draws nothing and the bar is free.
    config["callbacks"]["progress"]["console_kwargs"] = {"file": io.StringIO(), "force_terminal": True, "width": 120}
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    seed_everything(config["seed"], verbose=False)
    datamodule = build(config["data"])
    datamodule.setup()
    model = make_model(config, datamodule)
    steps = len(datamodule.train_dataloader())
    # One step more, at whose start the last epoch's work is complete.
    config["trainer"]["max_steps"] = (WARM_UP + rounds) * steps + 1
    with make_trainer(config, model, []) as trainer, warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*does not have many workers.*")
        trainer.callbacks.append(interleaved := Interleaved(datamodule))
        trainer.fit(model, datamodule=datamodule)
    return interleaved.per_epoch(steps)


def compose_config(*overrides: str) -> dict[str, Any]:
    """Return the program's configuration for overrides as plain data."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config: dict[str, Any] = OmegaConf.to_container(compose("config", list(overrides)), resolve=True)  # type: ignore[assignment]
    return config


class Interleaved(Callback):
    """Takes a bare step between any two of the Trainer's, and the CPU time of both.

    Steps alternate, not epochs: neighbours on a busy machine change within seconds. A Trainer's step lasts from one
    batch's start to the next one's, so that loading, augmentation and the end of an epoch are in it, as they are in a
    step of the bare loop.

    Args:
        datamodule: of both sides.
    """

    def __init__(self, datamodule: FaceDataModule) -> None:
        self.ours: list[float] = []
        self.bare: list[float] = []
        self._datamodule = datamodule
        self._started = float("nan")

    def on_fit_start(self, trainer: Trainer, pl_module: AttributeModule) -> None:  # type: ignore[override]
        self._network = deepcopy(pl_module.network)
        total = int(trainer.estimated_stepping_batches)
        self._loop = bare_loop(self._network, self._datamodule, pl_module, total, trainer.gradient_clip_val)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        now = time.process_time()
        if trainer.global_step > 0:
            self.ours.append(now - self._started)
        if trainer.global_step == trainer.max_steps - 1:
            check_same(pl_module.network.state_dict(), self._network.state_dict())
        now = time.process_time()
        next(self._loop)
        self._started = time.process_time()
        self.bare.append(self._started - now)

    def per_epoch(self, steps: int) -> tuple[list[float], list[float]]:
        """Return mean milliseconds a step, ours and bare, of each epoch after the warm-up."""
        starts = range(WARM_UP * steps, len(self.ours), steps)
        ours, bare = (
            [1000 * statistics.mean(times[start : start + steps]) for start in starts]
            for times in (self.ours, self.bare)
        )
        return ours, bare


def bare_loop(
    network: nn.Module, datamodule: FaceDataModule, model: AttributeModule, total: int, clip: float
) -> Iterator[None]:
    """Train a network as ``model`` is trained, without Lightning; yields after each step.

    Args:
        network: is trained.
        datamodule: loader and augmentation.
        model: says which optimiser, schedule and weights of the loss; nothing of it is called.
        total: steps of the schedule.
        clip: greatest norm of the gradient.
    """
    assert datamodule.augmentation is not None
    parameters = list(network.parameters())
    weights = model.weighting.weights.clone()
    name, warmup = model.schedule["name"], model.schedule["warmup"]
    optimizer = build(model.optimizer_node, parameters)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate_factor(name, step / total, warmup)
    )
    loader = datamodule.train_dataloader()
    network.train()
    for epoch in itertools.count():
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        for batch in loader:
            batch = augment(batch, datamodule.augmentation)
            loss = (weights * attribute_bce(network(batch["image"])["logits"], batch["attributes"])).sum()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, clip)
            optimizer.step()
            scheduler.step()
            yield


def check_same(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    """Make sure that the sides did the same work: after the same steps they have the same weights, bit for bit."""
    for name, tensor in first.items():
        if not torch.equal(tensor, second[name]):
            raise RuntimeError(f"The two sides did not train alike: they differ in {name}.")
