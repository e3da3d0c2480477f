"""Processes that work for a job, wherever the job runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.runs import ROOT

SCRIPT = """
from joblib import Parallel, delayed
from faceattr_lightning.processes import process_pool

def work():
    with process_pool() as pool:
        return list(pool.map(abs, [-1, -2]))

if __name__ == "__main__":
    print(Parallel(n_jobs=2)(delayed(work)() for _ in range(2)), work())
"""


def test_a_job_in_a_worker_of_joblib_has_a_pool(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    finished = subprocess.run(
        [sys.executable, str(script)],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert finished.stdout.strip() == "[[1, 2], [1, 2]] [1, 2]", finished.stderr[-2000:]
