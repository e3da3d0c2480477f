"""What task weighting and threshold calibration have in common."""

from __future__ import annotations

from lightning import Callback
from torch import Tensor, nn


class FittedState(nn.Module, Callback):
    """A callback whose buffers are part of the model: they travel in the checkpoint beside the weights.

    Weight averaging puts an average of weights and buffers into the model for the length of a validation. What is
    fitted meanwhile has to reach both, the averaged model and the one that goes on training: the callback runs before
    the averaging one takes its copy back, and calls `remember`; the model then calls `keep`. What is fitted between
    validations reaches the averaged model in the same way, the other way round.
    """

    def __init__(self) -> None:
        super().__init__()
        self._remembered: dict[str, Tensor] = {}

    def remember(self) -> None:
        """Take down the buffers as they are now."""
        self._remembered = {name: buffer.clone() for name, buffer in self.named_buffers()}

    def keep(self) -> None:
        """Write back what was remembered, if anything was since the last call."""
        for name, value in self._remembered.items():
            self.get_buffer(name).copy_(value)
        self._remembered = {}
