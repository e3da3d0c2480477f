"""Failures of the system, in words that say what to do."""

from __future__ import annotations

import errno
import os
import re
import shutil
from pathlib import Path

import torch

from faceattr_lightning.errors import FaceAttrError

_GO_ON = "A training goes on with ckpt_path=last."
_NO_SHARED_MEMORY = (
    "insufficient shared memory",
    "out of shared memory",
    "unable to open shared memory object",
    "unable to write to file </torch_",
    "unable to allocate shared memory",
)
_PEER_ENDED = (
    "closed by peer",
    "reset by peer",
    "broken pipe",
    "timed out",
    "timeout",
    "remote process exited",
    "failed to connect",
)


def explain(error: BaseException) -> str | None:
    """Return in words of a user what failed and what to do; ``None`` for any other error, whose traceback says more.

    Known are a loader process that was killed, too little memory of a GPU, of the machine or of the kind that processes
    share, a full disk, a file that can't be written, and another process of the job that has ended.
    """
    if isinstance(error, FaceAttrError):
        return None
    text = str(error)
    # Torch's texts: it has no types for most of these.
    if isinstance(error, (RuntimeError, OSError)) and any(part in text for part in _NO_SHARED_MEMORY):
        return (
            "The memory that loader processes share with training (/dev/shm) is too small. Lower data.num_workers "
            "(0 needs none) or data.batch_size, or enlarge it; a container takes --shm-size=8g or --ipc=host. " + _GO_ON
        )
    killed = re.match(
        r"DataLoader worker \(pid\S* ([\d, ]+)\) (?:is killed by signal: (\w+)|exited unexpectedly)", text
    )
    if isinstance(error, RuntimeError) and killed:
        how = f"signal {killed[2]}" if killed[2] else "it ended without a word"
        return (
            f"A process that loads data (pid {killed[1]}) was killed ({how}), as the system does when memory runs out. "
            f"Lower data.num_workers or data.batch_size, or free memory. {_GO_ON}"
        )
    if isinstance(error, torch.OutOfMemoryError):
        return (
            f"The GPU's memory is full: {_first_sentence(text)} Lower data.batch_size, with "
            "++trainer.accumulate_grad_batches=2 for the same effective batch, or data.image_size, or take "
            f"trainer.precision=bf16-mixed. {_GO_ON}"
        )
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "DefaultCPUAllocator" in text):
        return f"The machine's memory is full. Lower data.batch_size, data.image_size or data.num_workers. {_GO_ON}"
    if isinstance(error, OSError):
        return _explain_file(error)
    if _is_distributed(error) and any(part in text.lower() for part in _PEER_ENDED):
        return (
            "Another process of this job has ended or can't be reached; its own message says why "
            f"({_first_sentence(text)}) {_GO_ON}"
        )
    return None


def _is_distributed(error: BaseException) -> bool:
    known = torch.distributed.is_available() and isinstance(error, torch.distributed.DistError)
    # Gloo raises plain RuntimeErrors that begin with the place in its own code.
    return known or (isinstance(error, RuntimeError) and "gloo" in str(error))


def _explain_file(error: OSError) -> str | None:
    file = error.filename2 or error.filename
    named = f" {file}" if file is not None else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"There is no space left to write{named or ' a file'}{_free_space(file)}. Free some, or choose another "
            f"paths.output_dir, paths.cache_dir or TMPDIR. {_GO_ON}"
        )
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM) and file is not None:
        reason = os.strerror(error.errno)
        if error.errno != errno.EROFS and os.path.exists(file) and not os.access(file, os.R_OK):
            return f"{file} can't be read ({reason}). Let the user of this program read it. {_GO_ON}"
        return (
            f"{file} can't be written ({reason}). Let the user of this program write there, or choose another "
            f"paths.output_dir or paths.cache_dir. {_GO_ON}"
        )
    return None


def _free_space(file: str | bytes | int | None) -> str:
    if not isinstance(file, str):
        return ""
    try:
        return f" ({shutil.disk_usage(Path(file).parent).free / 1e6:,.1f} MB free)"
    except OSError:
        return ""


def _first_sentence(text: str) -> str:
    line = (text.strip().splitlines() or [""])[0]
    return line.partition(". ")[0].rstrip(".") + "."
