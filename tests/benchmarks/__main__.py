"""``python -m tests.benchmarks``: run the benchmarks and print their table; the exit code is 0 whatever it says.

To add a benchmark, write a function that takes the folder of a tiny CelebA and an empty folder of its own and returns
rows, and put it into `BENCHMARKS`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import lightning
import torch
from rich.console import Console

from faceattr_lightning.callbacks.report import git_commit
from faceattr_lightning.metrics.cost import processor
from tests.benchmarks.clock import in_child
from tests.benchmarks.data_path import data_path
from tests.benchmarks.epoch import epoch
from tests.benchmarks.faces import write_photos
from tests.benchmarks.inference import inference
from tests.benchmarks.levers import levers
from tests.benchmarks.memory import memory
from tests.benchmarks.metrics import metrics
from tests.benchmarks.predict_memory import predict_memory
from tests.benchmarks.rows import Row, make_table, medians
from tests.benchmarks.scaling import scaling
from tests.benchmarks.startup import start_up
from tests.benchmarks.step import step
from tests.benchmarks.weighting import weighting

BENCHMARKS: dict[str, Callable[[Path, Path], list[Row]]] = {
    "data-path": data_path,
    "step": step,
    "epoch": epoch,
    "levers": levers,
    "weighting": weighting,
    "metrics": metrics,
    "inference": inference,
    "memory": memory,
    "predict-memory": predict_memory,
    "start-up": start_up,
    "scaling": scaling,
}
IMAGES = 512
"""Of the tiny CelebA; half of them are for training."""


def main() -> None:
    """Run what the command line selects."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description="Measure what the package costs.")
    parser.add_argument("--only", action="append", choices=BENCHMARKS, metavar="NAME", help=", ".join(BENCHMARKS))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every round's figure into FILE")
    parser.add_argument(
        "--compare", type=Path, metavar="FILE", help="show the figures of an earlier --json beside these"
    )
    arguments = parser.parse_args()
    before = medians(json.loads(arguments.compare.read_text())["benchmarks"]) if arguments.compare else None

    # In a pipe Rich assumes 80 columns, too few for the table.
    console = Console(width=None if sys.stdout.isatty() else 180)
    rows, load = {}, os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data" / "celeba"
        write_photos(data, IMAGES)
        for name in arguments.only or BENCHMARKS:
            scratch = Path(folder) / name
            scratch.mkdir()
            with console.status(f"measuring {name}"):
                # None inherits what another one has done to its process, the allocator's settings above all.
                rows[name] = in_child(BENCHMARKS[name], data, scratch)
    conditions = {
        "git_commit": git_commit(),
        "cpu": processor(),
        "cores": os.cpu_count(),
        "load_before": load,
        "load_after": os.getloadavg()[0],
        "torch": torch.__version__,
        "lightning": lightning.__version__,
    }
    title = f"{conditions['cpu']}; {os.cpu_count()} cores; load {load:.1f} before, {conditions['load_after']:.1f} after"
    console.print(make_table([row for part in rows.values() for row in part], title, before))
    if arguments.json:
        plain = {name: [row.to_dict() for row in part] for name, part in rows.items()}
        arguments.json.write_text(json.dumps({"conditions": conditions, "benchmarks": plain}, indent=2) + "\n")


if __name__ == "__main__":
    main()
