"""The choice of ``trainer.precision=auto``."""

from __future__ import annotations

import logging

import torch
from torch import nn

log = logging.getLogger(__name__)

AUTO = "auto"


def choose_precision(precision: str | int | None, accelerator: str, network: nn.Module) -> str | int | None:
    """Return the precision for a Trainer; anything but ``auto`` as it is.

    A rule and no measurement, so that a seed gives the same weights again: bfloat16 (``bf16-mixed``; weights, losses
    and logits stay in 32 bits) where the machine multiplies it in hardware. On a CPU the network must have no depthwise
    convolution either: those do not gain there, and what is converted for them costs.

    Args:
        precision: as for the Trainer, or ``auto``.
        accelerator: ``cpu``, ``gpu`` or another of the Trainer's names.
        network: that is trained.
    """
    if precision != AUTO:
        return precision
    reason = _against_bfloat16(accelerator, network)
    chosen = "32-true" if reason else "bf16-mixed"
    why = reason or f"the {'CPU' if accelerator == 'cpu' else 'GPU'} multiplies bfloat16 in hardware"
    log.info("Precision: %s, since %s; trainer.precision= chooses another.", chosen, why)
    return chosen


def _against_bfloat16(accelerator: str, network: nn.Module) -> str | None:
    """Return what speaks against bfloat16, or ``None``."""
    if accelerator == "cpu":
        able = torch.cpu.get_capabilities()
        if not (able.get("amx_bf16") or able.get("avx512_bf16")):
            return "the CPU does not multiply bfloat16 in hardware"
        if any(isinstance(layer, nn.Conv2d) and 1 < layer.groups == layer.in_channels for layer in network.modules()):
            return "the network has depthwise convolutions, which don't gain from bfloat16 on a CPU"
        return None
    if accelerator in ("gpu", "cuda") and torch.cuda.is_available():
        return None if torch.cuda.is_bf16_supported(including_emulation=False) else "the GPU has no bfloat16"
    return f"bfloat16 is not known to gain on {accelerator}"
