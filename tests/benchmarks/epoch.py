"""An epoch end to end, training and validation: our Trainer against the usual Lightning style."""

from __future__ import annotations

import logging
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import LambdaCallback
from torch import Tensor
from torch.nn import functional
from torchmetrics import MetricCollection
from torchmetrics.classification import MultilabelAccuracy, MultilabelF1Score, MultilabelPrecision, MultilabelRecall

from faceattr_lightning.networks.backbone import normalisation
from tests.benchmarks import torchvision_style
from tests.benchmarks.clock import Turn, interleave_processes
from tests.benchmarks.faces import write_photos
from tests.benchmarks.ours import FLIP_ONLY, celeba_config, fit
from tests.benchmarks.rows import Row

BACKBONE, SIZE, BATCH = "lcnet_050", 128, 64
IMAGES = 2048
"""Half of them are for training, a quarter for validation."""


def epoch(data: Path, scratch: Path) -> list[Row]:
    """Compare CPU seconds; a turn lasts from one epoch's start to the next one's, whatever is done between them.

    Our side is ``python run.py model=baseline``, prepared data, checkpoints and report included, with mirror images
    alone as augmentation; the other is `UsualStyle` with Lightning's own defaults: checkpoint, CSV logger, AdamW.
    """
    root = scratch / "data" / "celeba"
    write_photos(root, IMAGES)
    backbone = [f"backbone.name={BACKBONE}", f"data.image_size={SIZE}", f"data.batch_size={BATCH}"]
    config = celeba_config(root, scratch / "ours", "trainer.max_epochs=1000", *backbone, *FLIP_ONLY)
    ours, usual = interleave_processes([partial(turns_of_ours, config), partial(turns_of_usual, root, scratch)])
    name = f"epoch of {BACKBONE}, {SIZE} px, batch {BATCH}, {IMAGES // 2:,} images, against the usual Lightning style"
    return [Row(name, "s", ours.seconds[1:], usual.seconds[1:], at_most=1 / 1.7)]


class UsualStyle(LightningModule):
    """A network, binary cross-entropy, and four metrics that are updated and logged at every step."""

    def __init__(self) -> None:
        super().__init__()
        self.network = timm.create_model(BACKBONE, num_classes=40)
        metrics = MetricCollection(
            [measure(num_labels=40) for measure in (MultilabelAccuracy, MultilabelPrecision, MultilabelRecall)]
            + [MultilabelF1Score(num_labels=40)]
        )
        self.train_metrics, self.val_metrics = metrics.clone(prefix="train/"), metrics.clone(prefix="val/")

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        loss = self._step(batch, "train", self.train_metrics)
        self.log_dict(self.train_metrics, on_step=True, on_epoch=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._step(batch, "val", self.val_metrics)
        self.log_dict(self.val_metrics, on_step=False, on_epoch=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=2e-3)

    def _step(self, batch: tuple[Tensor, Tensor], split: str, metrics: MetricCollection) -> Tensor:
        image, labels = batch
        logits = self.network(image)
        loss = functional.binary_cross_entropy_with_logits(logits, labels.float())
        metrics.update(logits, labels)
        self.log(f"{split}/loss", loss, prog_bar=True)
        return loss


def turns_of_ours(config: dict[str, Any], turn: Turn) -> None:
    """Train and validate by our Trainer, an epoch a turn."""
    fit(config, None, [LambdaCallback(on_train_epoch_start=lambda *_: turn())])


def turns_of_usual(root: Path, scratch: Path, turn: Turn) -> None:
    """Train and validate `UsualStyle` on torchvision's CelebA with its usual transforms, an epoch a turn."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    loaders = [
        torchvision_style.loader(root.parent, split, SIZE, normalisation(BACKBONE), BATCH)
        for split in ("train", "valid")
    ]
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1000,
        default_root_dir=scratch / "usual",
        callbacks=[LambdaCallback(on_train_epoch_start=lambda *_: turn())],
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(UsualStyle(), *loaders)
