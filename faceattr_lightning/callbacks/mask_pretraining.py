"""Training of MGMTN's mask network before the rest of the network."""

from __future__ import annotations

import itertools
import logging
from typing import TYPE_CHECKING

import torch
from lightning import Callback, Trainer
from rich.progress import track
from torch.utils.data import DataLoader

from faceattr_lightning.data.batch import Batch
from faceattr_lightning.metrics.cost import clock
from faceattr_lightning.models.losses import mask_iou, mask_loss, summed_over_ranks

if TYPE_CHECKING:
    from faceattr_lightning.models.mgmtn import MGMTN

log = logging.getLogger(__name__)


class MaskPretraining(Callback):
    """Trains the mask network on the training split, and freezes it.

    When a run starts, before weight averaging takes its copy and before DDP decides which parameters are trained; not
    when one is resumed, whose checkpoint has the trained network.

    Args:
        epochs: number of passes over the training split.
        lr: peak of the one-cycle schedule.
    """

    def __init__(self, epochs: int, lr: float) -> None:
        self.epochs, self.lr = epochs, lr

    def setup(self, trainer: Trainer, pl_module: MGMTN, stage: str) -> None:  # type: ignore[override]
        if stage != "fit" or trainer.ckpt_path is not None:
            return
        datamodule = trainer.datamodule  # type: ignore[attr-defined]
        network = pl_module.network.mask_network
        assert network is not None
        device = trainer.strategy.root_device
        network.to(device).requires_grad_(True)
        loader: DataLoader[Batch] = datamodule.train_dataloader()
        limit = trainer.limit_train_batches
        steps = min(len(loader), limit) if isinstance(limit, int) else max(1, int(limit * len(loader)))
        if trainer.max_steps != -1:
            steps = min(steps, trainer.max_steps)
        if not steps:
            return
        wall, cpu = clock()
        optimizer = torch.optim.AdamW(network.parameters(), lr=self.lr)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.lr, total_steps=self.epochs * steps)
        for epoch in range(self.epochs):
            loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
            losses, ious, known = [], [], []
            description = f"Masks, epoch {epoch}/{self.epochs - 1}"
            batches = itertools.islice(loader, steps)
            shown = track(batches, description, steps, disable=not trainer.is_global_zero, transient=True)
            for batch in shown:
                moved = pl_module.transfer_batch_to_device(batch, device, 0)
                moved = datamodule.on_after_batch_transfer(moved, 0)
                logits, masks, valid = pl_module.with_annotations(network(moved["image"]), moved)
                loss = mask_loss(logits, masks, valid)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                for parameter in network.parameters():
                    assert parameter.grad is not None
                    parameter.grad = summed_over_ranks(parameter.grad) / trainer.world_size
                optimizer.step()
                schedule.step()
                losses.append(loss.detach())
                known.append(valid.float().mean())
                ious.append(mask_iou(logits.detach() > 0, masks, valid).nanmean())
            if trainer.is_global_zero:
                loss_mean, iou_mean = float(torch.stack(losses).mean()), float(torch.stack(ious).nanmean())
                share = 100 * float(torch.stack(known).mean())
                log.info(
                    "Mask network, epoch %d: loss %.3f, IoU %.3f on the %.0f %% of training faces whose landmarks all "
                    "lie inside the crop",
                    epoch,
                    loss_mean,
                    iou_mean,
                    share,
                )
        network.requires_grad_(False)
        now = clock()
        pl_module.seconds_before_training = now[0] - wall, now[1] - cpu
