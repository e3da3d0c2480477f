"""Compiling the network."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning import Callback, Trainer

if TYPE_CHECKING:
    from faceattr_lightning.models.module import AttributeModule


class CompileNetwork(Callback):
    """Compiles the network in place (`torch.nn.Module.compile`), so that the names in a checkpoint stay what they are.

    Args:
        mode: of `torch.compile`.
        dynamic: whether sizes may change without compiling anew; ``None`` decides by what happens.
    """

    def __init__(self, mode: str = "default", dynamic: bool | None = None) -> None:
        self.mode, self.dynamic = mode, dynamic

    def setup(self, trainer: Trainer, pl_module: AttributeModule, stage: str) -> None:  # type: ignore[override]
        if stage == "fit":
            pl_module.network.compile(mode=self.mode, dynamic=self.dynamic)
