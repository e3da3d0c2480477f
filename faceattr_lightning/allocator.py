"""What the C library does with the memory of tensors that are freed on the CPU."""

from __future__ import annotations

import ctypes
import os
import platform

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def keep_freed_memory() -> bool:
    """Let this process keep freed memory for the next tensor, instead of giving it back to the system at once.

    By default glibc maps each large tensor afresh, and the kernel clears its pages at every step: of a training step of
    EfficientNet-Lite0 at 128 pixels on a CPU a third of the time (``python -m tests.benchmarks --only levers``). What
    stays occupied is the most that was needed at a time, some per cent above what it would be. The environment
    variables ``MALLOC_MMAP_MAX_`` and ``MALLOC_TRIM_THRESHOLD_`` of glibc win.

    Returns:
        whether it could be set; it can't without glibc.
    """
    if platform.libc_ver()[0] != "glibc" or {"MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_"} & os.environ.keys():
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))
