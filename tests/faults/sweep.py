"""A sweep of which a tenth of the jobs fails; then the same command with ``sweep.resume=true``, the fault mended."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

from tests.runs import rows, run, summary
from tests.test_sweeps import BROKEN, JOB, the_sweep


def main(jobs: int, data: Path, output: Path) -> bool:
    """Print jobs run, collected, failed and run again.

    Args:
        jobs: in all; every tenth fails.
        data: the folder that holds ``celeba``.
        output: folder for the runs.

    Returns:
        whether in the end every job has its result, and those that had one were left alone.
    """
    failing = [str(seed) for seed in range(0, jobs, 10)]
    command = ["-m", *JOB, "data.image_size=32", BROKEN, f"seed=range(0,{jobs})"]
    before = _sweep(command, data, output, FACEATTR_BREAK=f"raise:{','.join(failing)}")
    again = _sweep([*command, "sweep.resume=true"], data, output)
    ran = [job for job, written in again.items() if before.get(job) != written]
    results = [row for row in rows(the_sweep(output) / "sweep.csv") if row["state"] == "finished" and row["accuracy"]]
    right = all(
        float(row["accuracy"]) == summary(the_sweep(output) / row["job"])["accuracy"] and row["seed"] == row["job"]
        for row in results
    )
    print(f"run again: {len(ran)} ({', '.join(ran)}); with their own results in the table: {len(results)} of {jobs}")
    return right and ran == failing and len(results) == jobs


def _sweep(command: list[str], data: Path, output: Path, **environment: str) -> dict[str, int]:
    """Run a sweep, print what became of its jobs, and return when each finished one wrote its report."""
    began = time.monotonic()
    finished = run(*command, data=data, output=output, check=False, timeout=None, **environment)
    sweep = the_sweep(output)
    table = rows(sweep / "sweep.csv")
    states = Counter(row["state"] for row in table)
    reasons = Counter(row["reason"] for row in table if row["reason"])
    print(
        f"exit status {finished.returncode} after {time.monotonic() - began:.0f} s; jobs in the table: {len(table)}; "
        f"{', '.join(f'{state}: {count}' for state, count in states.items())}; "
        f"reasons: {', '.join(f'{count} x {reason}' for reason, count in reasons.items()) or 'none'}",
        flush=True,
    )
    reports = {
        row["job"]: sweep / row["job"] / "report" / "summary.json" for row in table if row["state"] == "finished"
    }
    return {job: path.stat().st_mtime_ns for job, path in reports.items()}
