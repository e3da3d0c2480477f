"""What a network costs: parameters, operations, memory and time."""

from __future__ import annotations

import os
import platform
import sys
import time
from pathlib import Path
from typing import TypedDict

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

_LARGE = 0.1
_OWN = "(itself)"


class Part(TypedDict):
    """A part of a network.

    Keys:
        name: dotted, as in the network's state; of what a part holds or computes outside of its own parts ``(itself)``.
        type: its class.
        parameters: how many numbers are in its parameters.
        trainable: how many of them are trained.
        gmacs: 1e9 multiply-accumulate operations for one image; see `summarise`.
        parts: what it consists of, where it is large, else empty; they add up to it.
    """

    name: str
    type: str
    parameters: int
    trainable: int
    gmacs: float
    parts: list[Part]


def processor() -> str:
    """Return the processor's name; Linux's, or what Python knows."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def machine(device: torch.device) -> str:
    """Return the name of what computes: of a GPU, or the processor's, its vector instructions and cores."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{processor()}, {torch.backends.cpu.get_cpu_capability()}, {os.cpu_count()} cores"


def clock() -> tuple[float, float]:
    """Return the seconds of the wall and of this process's CPU time, each from a beginning of its own."""
    return time.perf_counter(), time.process_time()


def summarise(network: nn.Module, image_size: int) -> Part:
    """Count the parameters of a network and its parts, and the operations of a forward pass in evaluation mode.

    Operations are those that torch's ``FlopCounterMode`` counts, convolutions, matrix products and attention; it counts
    a multiplication and an addition each, so GMACs are half of that. Activations, normalisation and pooling are left
    out. Ours: a part is split further where it has more than a tenth of all parameters or operations.

    Args:
        network: takes images float (B, 3, H, W) in the range 0 to 255; is left in evaluation mode.
        image_size: height and width of the image in pixels.

    Returns:
        the network as a part named ``""``.
    """
    network.eval()
    device = next(network.parameters()).device
    # The counter does not know the one operation that attention becomes in evaluation.
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        # Compiled code has no parts that could be counted.
        with torch.compiler.set_stance("force_eager"), FlopCounterMode(display=False) as counter, torch.no_grad():
            network(torch.zeros(1, 3, image_size, image_size, device=device))
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
    flops = {name: sum(counts.values()) for name, counts in counter.get_flop_counts().items()}
    macs = _macs(network, type(network).__name__, "", flops)
    return _part(network, "", macs, (max(1, _count(network)), max(1, macs[""])), split=True)


def _macs(module: nn.Module, called: str, name: str, flops: dict[str, int]) -> dict[str, int]:
    """Return the operations of a module and of each module in it by dotted name.

    Args:
        module: any in the network.
        called: its name in ``flops``.
        name: its name in the network.
        flops: of each module that was called, with what it called; a module's other methods leave no entry.
    """
    found: dict[str, int] = {}
    children = 0
    for key, child in module.named_children():
        inner = f"{name}.{key}".lstrip(".")
        found |= _macs(child, f"{called}.{key}", inner, flops)
        children += found[inner]
    found[name] = flops[called] // 2 if called in flops else children
    return found


def _part(module: nn.Module, name: str, macs: dict[str, int], all_of: tuple[int, int], split: bool) -> Part:
    parameters = _count(module)
    part: Part = {
        "name": name,
        "type": type(module).__name__,
        "parameters": parameters,
        "trainable": _count(module, trainable=True),
        "gmacs": macs[name] / 1e9,
        "parts": [],
    }
    children = [(f"{name}.{key}".lstrip("."), child) for key, child in module.named_children()]
    if not split or not children:
        return part
    # What only wraps one module is no part that tells anything.
    alone = len(children) == 1
    part["parts"] = [
        _part(
            child,
            inner,
            macs,
            all_of,
            split=alone or (name == "" and max(_count(child) / all_of[0], macs[inner] / all_of[1]) > _LARGE),
        )
        for inner, child in children
    ]
    own: Part = {
        "name": f"{name} {_OWN}".lstrip(),
        "type": part["type"],
        "parameters": parameters - sum(_count(child) for _, child in children),
        "trainable": part["trainable"] - sum(_count(child, trainable=True) for _, child in children),
        "gmacs": (macs[name] - sum(macs[inner] for inner, _ in children)) / 1e9,
        "parts": [],
    }
    if own["parameters"] or own["gmacs"]:
        part["parts"].append(own)
    return part


def _count(module: nn.Module, trainable: bool = False) -> int:
    return sum(one.numel() for one in module.parameters() if one.requires_grad or not trainable)


def peak_memory(device: torch.device) -> int | None:
    """Return the most bytes that were in use at once: of a GPU by this process's tensors, else by this process itself.

    It counts from the process's start, so a sweep's job without a process of its own has those before it in the number.
    ``None`` where the system does not tell.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():
        # Not getrusage, whose peak is no less than that of the process that started this one.
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(lines["VmHWM"].split()[0]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return None
    # In bytes on macOS, in kilobytes elsewhere.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
