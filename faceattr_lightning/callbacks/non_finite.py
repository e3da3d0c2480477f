"""What happens to a step whose loss or gradients are not finite."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from lightning import Callback, Trainer
from torch import Tensor, nn

from faceattr_lightning.errors import FaceAttrError
from faceattr_lightning.files import write_text

if TYPE_CHECKING:
    from faceattr_lightning.data.batch import Batch
    from faceattr_lightning.models.module import AttributeModule

log = logging.getLogger(__name__)

_MOST_IN_A_ROW = 10
_MOST_PARAMETERS = 10


class NonFinite(Callback):
    """Keeps a step whose loss or gradients are NaN or infinite away from the weights.

    ``stop`` ends the run before the step, and writes ``non_finite_batch.json`` into its folder: epoch, step, learning
    rate, the parameters whose gradients are not finite, those nearest to the loss first, and for each process the loss
    and the images of the step's batches. ``skip`` leaves the step out: no weight, no moment of the optimiser, no batch
    statistic and nothing of the task weighting changes; order, learning rate and the count of steps go on. It is logged
    as ``train/skipped_steps``, the number since training began. More than ten steps in a row stop the run all the same.

    All ranks decide alike: on what any of them has found. With ``trainer.precision=16-mixed`` infinite gradients of a
    finite loss are the affair of the gradient scaler, which leaves such steps out to find its scale.

    It has to stand behind the model's own callbacks and before any other: it undoes what the task weighting made of the
    step, before weight averaging or a checkpoint sees it.

    Args:
        run_dir: the run's folder.
        action: what to do.

    Raises:
        FaceAttrError: in training, for ``stop``; or for ``skip`` if it does not get better.
    """

    def __init__(self, run_dir: str, action: Literal["stop", "skip"] = "stop") -> None:
        self.path = Path(run_dir) / "non_finite_batch.json"
        self.action = action
        self.skipped = 0
        """Steps that were left out, since training began."""
        self._in_a_row = 0
        self._skip = False
        # Of the batches of the present step, of which there are several where gradients are accumulated.
        self._batches: list[tuple[int, Tensor]] = []
        self._losses: list[Tensor] = []
        self._buffers: list[Tensor] = []
        self._before: list[Tensor] = []
        self._means_before: tuple[Tensor | None, int] = (None, 0)

    def state_dict(self) -> dict[str, Any]:
        return {"skipped": self.skipped, "in_a_row": self._in_a_row}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # The best checkpoint, which is opened after training, knows fewer.
        if state_dict["skipped"] > self.skipped:
            self.skipped, self._in_a_row = state_dict["skipped"], state_dict["in_a_row"]

    def on_train_start(self, trainer: Trainer, pl_module: AttributeModule) -> None:  # type: ignore[override]
        if self.action == "skip":
            self._buffers = list(pl_module.buffers())
            self._before = [buffer.clone() for buffer in self._buffers]

    @torch.no_grad()
    def on_train_batch_start(  # type: ignore[override]
        self, trainer: Trainer, pl_module: AttributeModule, batch: Batch, batch_idx: int
    ) -> None:
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self._batches, self._losses = [], []
            for before, buffer in zip(self._before, self._buffers, strict=True):
                before.copy_(buffer)
            self._means_before = pl_module._sums, pl_module._count
        self._batches.append((batch_idx, batch["index"]))

    def on_before_backward(self, trainer: Trainer, pl_module: AttributeModule, loss: Tensor) -> None:  # type: ignore[override]
        self._losses.append(loss.detach())

    def on_before_optimizer_step(  # type: ignore[override]
        self, trainer: Trainer, pl_module: AttributeModule, optimizer: torch.optim.Optimizer
    ) -> None:
        gradients = [parameter.grad for parameter in pl_module.parameters() if parameter.grad is not None]
        # On a CPU a fifteenth of the cost of `isfinite`. Of gradients beyond 1e19 it is infinite too, which is as bad.
        norm = nn.utils.get_total_norm(gradients)
        wrong = ~torch.stack([torch.stack(self._losses).isfinite().all(), norm.isfinite()])
        if trainer.world_size > 1:
            # Averaged gradients are the same on every rank, a loss is not.
            total = trainer.strategy.reduce(wrong.float(), reduce_op="sum")
            assert isinstance(total, Tensor)
            wrong = total > 0
        # The one moment at which the device is waited for.
        wrong_loss, wrong_gradients = wrong.tolist()
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        if not wrong_loss and (not wrong_gradients or scaler is not None):
            self._in_a_row = 0
            return
        self._in_a_row += 1
        if self.action == "stop" or self._in_a_row > _MOST_IN_A_ROW:
            self._stop(trainer, pl_module, optimizer, wrong_loss)
        self.skipped += 1
        if self.skipped == 1 and trainer.is_global_zero:
            log.warning(
                "Epoch %d, step %d: %s not finite; the step is left out (callbacks.non_finite.action=skip). Further "
                "ones are counted as train/skipped_steps.",
                trainer.current_epoch,
                trainer.global_step,
                "the loss is" if wrong_loss else "the gradients are",
            )
        pl_module.zero_grad()  # to None, of which an optimiser does not even decay the weight
        self._skip = True

    @torch.no_grad()
    def on_train_batch_end(  # type: ignore[override]
        self, trainer: Trainer, pl_module: AttributeModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        if not self._skip:
            return
        self._skip = False
        for before, buffer in zip(self._before, self._buffers, strict=True):
            buffer.copy_(before)
        pl_module._sums, pl_module._count = self._means_before
        weighting = pl_module.weighting
        # It counts its steps beside the buffer that was put back.
        weighting.on_train_start(trainer, pl_module)
        if weighting._remembered:
            weighting.remember()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: AttributeModule) -> None:  # type: ignore[override]
        if self.action == "skip":
            pl_module.log("train/skipped_steps", float(self.skipped))

    def on_train_end(self, trainer: Trainer, pl_module: AttributeModule) -> None:  # type: ignore[override]
        if self.skipped and trainer.is_global_zero:
            log.warning("%d of %d steps were left out: not finite.", self.skipped, trainer.global_step)

    def _stop(
        self, trainer: Trainer, model: AttributeModule, optimizer: torch.optim.Optimizer, wrong_loss: bool
    ) -> None:
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        scale = 1.0 if scaler is None else scaler.get_scale()
        losses = [float(loss) * trainer.accumulate_grad_batches / scale for loss in self._losses]
        table = trainer.datamodule.table  # type: ignore[attr-defined]
        batches = []
        for (number, index), loss in zip(self._batches, losses, strict=True):
            rows = index.tolist()
            # JSON knows no NaN.
            shown = loss if math.isfinite(loss) else str(loss)
            batches.append({"batch": number, "loss": shown, "rows": rows, "files": [table.files[row] for row in rows]})
        own = {"rank": trainer.global_rank, "batches": batches}
        ranks: list[Any] = [own]
        if trainer.world_size > 1:
            ranks = [None] * trainer.world_size
            torch.distributed.all_gather_object(ranks, own)
        rate = optimizer.param_groups[0]["lr"]
        wrong = [
            name
            for name, parameter in reversed(list(model.named_parameters()))
            if parameter.grad is not None and not parameter.grad.isfinite().all()
        ]
        content = {
            "epoch": trainer.current_epoch,
            "step": trainer.global_step,
            "learning_rate": rate,
            "parameters": wrong[:_MOST_PARAMETERS],
            "parameters_in_all": len(wrong),
            "root": str(table.root),
            "ranks": ranks,
        }
        if trainer.is_global_zero:
            write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", self.path)
        found = [batch["loss"] for rank in ranks for batch in rank["batches"] if isinstance(batch["loss"], str)]
        what = f"the loss is {', '.join(dict.fromkeys(found))}" if wrong_loss else "the gradients are not finite"
        advice = (
            f"{_MOST_IN_A_ROW + 1} steps in a row were such."
            if self.action == "skip"
            else "callbacks.non_finite.action=skip leaves such steps out."
        )
        raise FaceAttrError(
            f"Epoch {trainer.current_epoch}, step {trainer.global_step}: {what}. The weights are those before the "
            f"step; its images stand in {self.path}. Look at them, lower model.optimizer.lr (here {rate:.2g}) or take "
            f"trainer.precision=32-true; {advice}"
        )
