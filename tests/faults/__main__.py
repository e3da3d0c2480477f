"""``python -m tests.faults sweep`` and ``python -m tests.faults kills``: what is lost, in figures.

No tests: they take minutes, and part of their work is chosen by chance.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

from tests.data.writers import write_celeba
from tests.faults import kills, sweep


def main() -> int:
    """Run a script of faults; exit with 1 if anything was lost."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    jobs = commands.add_parser("sweep", help="a sweep of which a tenth of the jobs fails, and is then gone on with")
    jobs.add_argument("--jobs", type=int, default=100)
    killed = commands.add_parser("kills", help="runs that are killed at random moments and gone on with")
    killed.add_argument("--count", type=int, default=50, help="kills in all")
    killed.add_argument("--seed", type=int, default=0, help="of the moments")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="faceattr-faults-") as folder:
        data, output = Path(folder) / "data", Path(folder) / "output"
        write_celeba(data / "celeba", n=96)
        os.environ["FACEATTR_CACHE"] = str(Path(folder) / "cache")
        whole = (
            sweep.main(given.jobs, data, output)
            if given.command == "sweep"
            else kills.main(given.count, given.seed, data, output)
        )
    return 0 if whole else 1


if __name__ == "__main__":
    sys.exit(main())
