"""How long the program takes to say what it can do, and to have taken its first step."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer

from tests.benchmarks.clock import ROUNDS
from tests.benchmarks.ours import prepared_in
from tests.benchmarks.rows import Row
from tests.runs import ROOT, SMALL, SMALL_DMM, run


def start_up(data: Path, scratch: Path) -> list[Row]:
    """Run ``python run.py --help``, and a run up to the end of its first training step.

    The mark is on wall time, as one waits for it; a busy machine makes it longer.
    """
    leave = "++callbacks.leave={_target_: tests.benchmarks.startup.LeaveAfterFirstStep}"
    commands: dict[str, Callable[[], Any]] = {
        "run.py --help": lambda: subprocess.run(
            [sys.executable, "run.py", "--help"], cwd=ROOT, check=True, capture_output=True
        ),
        "run.py up to the end of the first training step": lambda: run(
            *SMALL, *SMALL_DMM, leave, *prepared_in(scratch), data=data.parent, output=scratch, OMP_NUM_THREADS="1"
        ),
    }
    rows = []
    for name, command in commands.items():
        walls, cpus = [], []
        for _ in range(ROUNDS):
            wall, cpu = time.perf_counter(), _cpu_of_children()
            command()
            walls.append(time.perf_counter() - wall)
            cpus.append(_cpu_of_children() - cpu)
        at_most = 3 if name.endswith("--help") else None
        rows += [Row(f"{name}, wall time", "s", walls, at_most=at_most), Row(f"{name}, CPU time", "s", cpus)]
    return rows


def _cpu_of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


class LeaveAfterFirstStep(Callback):
    """Ends the process at once."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        os._exit(0)
