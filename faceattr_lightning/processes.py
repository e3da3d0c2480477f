"""Which process of a job this is, and what several of them call the run that they share.

One program may start all processes (`faceattr_lightning.strategy`), or torchrun or SLURM may; then each runs the whole
command line. Without torch, since the command line is looked at before anything slow is imported.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import parent_process
from typing import Any

from faceattr_lightning.errors import ConfigError

_SHELLS = ("bash", "interactive")
"""Names of a SLURM job, as Lightning has them, in which processes are started by hand."""


def started_by_torchrun() -> bool:
    """Return whether an agent of torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def started_by_srun() -> bool:
    """Return whether this process is a task of a SLURM job step; the batch script itself, or a shell, is none."""
    step = os.environ.get("SLURM_STEP_ID", "")
    return step.isdecimal() and "SLURM_PROCID" in os.environ and os.environ.get("SLURM_JOB_NAME") not in _SHELLS


def is_first_process() -> bool:
    """Return whether this is the job's only process, or the first over all machines: the one that writes files."""
    if started_by_torchrun():
        return os.environ.get("RANK", "0") == "0"
    if started_by_srun() and "LOCAL_RANK" not in os.environ:
        return os.environ["SLURM_PROCID"] == "0"
    return os.environ.get("LOCAL_RANK", "0") == os.environ.get("NODE_RANK", "0") == "0"


def is_restarted() -> bool:
    """Return whether torchrun or SLURM started this job before, and starts it again after a failure or a preemption."""
    counts = (os.environ.get(name, "0") for name in ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"))
    return any(count != "0" for count in counts)


def shared_run_name() -> str | None:
    """Return a name that all processes of a job agree on, also after a restart; ``None`` if one process starts all.

    Raises:
        ConfigError: torchrun was given no name for the job.
    """
    if started_by_torchrun():
        name = os.environ["TORCHELASTIC_RUN_ID"]
        if name == "none":
            raise ConfigError(
                [
                    "torchrun: its processes need a name for the run that they share; add --standalone, or on several "
                    "machines --rdzv-id=NAME, another name for each run."
                ]
            )
        return "torchrun-" + re.sub(r"[^\w.-]", "_", name)
    if started_by_srun():
        job = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
        name = "_".join(map(str, job)) if all(job) else os.environ["SLURM_JOB_ID"]
        return f"slurm-{name}.{os.environ['SLURM_STEP_ID']}"
    return None


def quote(value: str) -> str:
    """Return a value as a quoted string of Hydra's grammar, so that spaces, ``=``, commas and braces stay part of
    it.
    """
    # Backslashes stand for themselves, except before a quote and at the end, where each has to be doubled.
    escaped = re.sub(r"(\\*)('|$)", lambda match: match[1] * 2 + ("\\'" if match[2] else ""), value)
    return f"'{escaped}'"


@contextmanager
def process_pool(initializer: Callable[..., None] | None = None, *arguments: Any) -> Iterator[ProcessPoolExecutor]:
    """Give a pool of new processes, one for each core, which end with this one, however that ends.

    Args:
        initializer: what each process calls first.
        arguments: of it.
    """
    own = multiprocessing.get_start_method(allow_none=True)
    foreign = own is not None and own not in multiprocessing.get_all_start_methods()
    if foreign:
        # A worker of joblib's has one that a new process would ask for, and not find.
        multiprocessing.set_start_method("spawn", force=True)
    try:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(os.cpu_count(), context, _start, (initializer, arguments)) as pool:
            yield pool
    finally:
        if foreign:
            multiprocessing.set_start_method(own, force=True)


def _start(initializer: Callable[..., None] | None, arguments: tuple[Any, ...]) -> None:
    end_with_parent()
    if initializer is not None:
        initializer(*arguments)


def end_with_parent() -> None:
    """Let a process end with the one that started it.

    By itself a pool's would wait for the next task of a killed one for ever.
    """
    parent = parent_process()
    assert parent is not None

    def end() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end, daemon=True).start()
