"""Runs that are killed at random moments and gone on with, until they end as one that never was killed, or do not."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import torch

from faceattr_lightning.processes import quote
from faceattr_lightning.tasks.run_folder import STATUS_FILE, read_status
from faceattr_lightning.tasks.train import epochs_done
from tests.runs import ROOT, SMALL, SMALL_DMM
from tests.test_resume import assert_same_run

LAST = Path("checkpoints/last.ckpt")
EPOCHS = 3
# Weights of the loss that remember an epoch's losses, and thresholds that remember all epochs.
RUN = [*SMALL, *SMALL_DMM, "weighting=dws", f"trainer.max_epochs={EPOCHS}", "callbacks.last.every_n_steps=2"]


def main(count: int, seed: int, data: Path, output: Path) -> bool:
    """Print how many kills the runs survived.

    Args:
        count: of kills in all.
        seed: of the moments.
        data: the folder that holds ``celeba``.
        output: folder for the runs.

    Returns:
        whether each run ended as one that was never killed.
    """
    moments = random.Random(seed)
    never = output / "never"
    # Twice: the first one prepares the data.
    for folder in (output / "first", never):
        began = _begin(folder, data)
        seconds = _wait(began, folder, None)
        assert seconds is not None, "the run that is not killed was"
    print(f"a run that is never killed takes {seconds:.1f} s after its start-up", flush=True)
    tried, survived, runs = 0, 0, 0
    hit, litter = Counter[str](), list[str]()
    while tried < count:
        folder, kills, ended = output / f"run_{runs}", 0, False
        runs += 1
        while not ended:
            # From a number of checkpoints on, not after a time: how fast a machine is changes while others use it.
            moment = (moments.randrange(6), moments.uniform(0, seconds / 10)) if tried + kills < count else None
            ended = _wait(_begin(folder, data), folder, moment) is not None
            if not ended:
                kills += 1
                hit[_where(folder)] += 1
                ended = _is_finished(folder)
        tried += kills
        try:
            assert_same_run(folder, never)
            survived += kills
        except AssertionError as error:
            print(f"{folder.name} is another run: {str(error).strip().splitlines()[0]}")
        litter += [str(path.relative_to(output)) for path in folder.rglob(".*") if path.name != ".lock"]
        print(f"{folder.name}: {kills} kills; {survived} survived of {tried}", flush=True)
    places = ", ".join(f"{number} {place}" for place, number in hit.items())
    print(f"kills survived: {survived} of {tried}, in {runs} runs ({places})")
    print(f"left behind: {', '.join(litter) or 'nothing'}")
    return survived == tried and not litter


def _begin(folder: Path, data: Path) -> subprocess.Popen[bytes]:
    """Begin a run in a folder, or go on with the one that it holds."""
    command = [sys.executable, "run.py", *RUN, f"paths.output_dir={quote(str(folder.parent))}"]
    command.append(f"hydra.run.dir={quote(str(folder))}")
    if (folder / LAST).exists():
        command.append("ckpt_path=last")
    folder.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f"{folder.name}.log").open("ab") as log:
        return subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, "FACEATTR_DATA": str(data)}, stdout=log, stderr=log
        )


def _wait(process: subprocess.Popen[bytes], folder: Path, moment: tuple[int, float] | None) -> float | None:
    """Wait until a run ends, or kill it so many seconds after it has written so many checkpoints.

    Returns:
        the seconds from the begin of the job to the end of the process, ``None`` if it was killed.
    """
    _wait_for_change(process, folder / STATUS_FILE)
    began = time.monotonic()
    checkpoints, delay = moment or (0, None)
    for _ in range(checkpoints):
        _wait_for_change(process, folder / LAST)
    try:
        code = process.wait(timeout=delay)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()
        return None
    assert code == 0, (folder.parent / f"{folder.name}.log").read_text()[-3000:]
    return time.monotonic() - began


def _wait_for_change(process: subprocess.Popen[bytes], file: Path) -> None:
    """Wait until a file is written, or a process has ended."""

    def written() -> int:
        return file.stat().st_mtime_ns if file.exists() else 0

    before = written()
    while process.poll() is None and written() == before:
        time.sleep(0.002)


def _where(folder: Path) -> str:
    """Return how far a run had come that was killed."""
    if _is_finished(folder):
        return "after its end"
    if not (folder / LAST).exists():
        return "before the first checkpoint"
    last = torch.load(folder / LAST, weights_only=True, mmap=True)
    return "in training" if epochs_done(last) < EPOCHS else "in evaluation and report"


def _is_finished(folder: Path) -> bool:
    status = read_status(folder)
    return status is not None and status.state == "finished"
