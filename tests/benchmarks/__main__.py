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

from tests.benchmarks.memory import memory
from tests.benchmarks.rows import Row, make_table
from tests.benchmarks.startup import start_up
from tests.benchmarks.step import step
from tests.data.writers import write_celeba

BENCHMARKS: dict[str, Callable[[Path, Path], list[Row]]] = {"start-up": start_up, "memory": memory, "step": step}
IMAGES = 512
"""Of the tiny CelebA; half of them are for training."""


def main() -> None:
    """Run what the command line selects."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description="Measure what the package costs.")
    parser.add_argument("--only", action="append", choices=BENCHMARKS, metavar="NAME", help=", ".join(BENCHMARKS))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every round's figure into FILE")
    arguments = parser.parse_args()

    # In a pipe Rich assumes 80 columns, too few for the table.
    console = Console(width=None if sys.stdout.isatty() else 120)
    rows, load = {}, os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data" / "celeba"
        write_celeba(data, n=IMAGES)
        for name in arguments.only or BENCHMARKS:
            scratch = Path(folder) / name
            scratch.mkdir()
            with console.status(f"measuring {name}"):
                rows[name] = BENCHMARKS[name](data, scratch)
    conditions = {
        "cores": os.cpu_count(),
        "load_before": load,
        "load_after": os.getloadavg()[0],
        "torch": torch.__version__,
        "lightning": lightning.__version__,
    }
    title = f"{os.cpu_count()} cores; load {load:.1f} before, {conditions['load_after']:.1f} after"
    console.print(make_table([row for part in rows.values() for row in part], title))
    if arguments.json:
        plain = {name: [row.to_dict() for row in part] for name, part in rows.items()}
        arguments.json.write_text(json.dumps({"conditions": conditions, "benchmarks": plain}, indent=2) + "\n")


if __name__ == "__main__":
    main()
