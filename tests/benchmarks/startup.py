"""How long the program takes to say what it can do."""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from pathlib import Path

from tests.benchmarks.rows import Row
from tests.runs import ROOT

ROUNDS = 5


def start_up(data: Path, scratch: Path) -> list[Row]:
    """Run ``python run.py --help``. The mark is on wall time, as one waits for it; a busy machine makes it longer."""
    walls, cpus = [], []
    for _ in range(ROUNDS):
        wall, cpu = time.perf_counter(), _cpu_of_children()
        subprocess.run([sys.executable, "run.py", "--help"], cwd=ROOT, check=True, capture_output=True)
        walls.append(time.perf_counter() - wall)
        cpus.append(_cpu_of_children() - cpu)
    return [Row("run.py --help, wall time", "s", walls, at_most=3), Row("run.py --help, CPU time", "s", cpus)]


def _cpu_of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
