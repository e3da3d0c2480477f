"""Two machines, played by two torchrun agents on this one: the same weights as one process, and a lost peer."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from lightning import Callback, LightningModule, Trainer

from faceattr_lightning.processes import quote
from tests.runs import ROOT, SMALL, assert_same_state, rows, run, run_dirs, state, summary

pytestmark = pytest.mark.slow

# Layer norm, whose statistics do not depend on how a batch is divided, and an optimiser without a square root, which
# would make much of the last bit of a gradient.
PLAIN = [
    *SMALL,
    "model=baseline",
    "backbone.name=test_convnext",
    "weighting=dws",
    "trainer.precision=32-true",
    "model.optimizer._target_=torch.optim.SGD",
    "~model.optimizer.fused",
    "model.optimizer.lr=0.01",
]
PATIENCE = 60
"""Seconds within which a job that has lost a peer has to end."""


class KillRank(Callback):
    """Kills one process of the job, or its whole machine, in its fourth step."""

    def __init__(self, rank: int, machine: bool) -> None:
        self.rank, self.machine = rank, machine

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int) -> None:
        if trainer.global_rank == self.rank and batch_idx == 3:
            (os.killpg if self.machine else os.kill)(os.getpgid(0) if self.machine else os.getpid(), signal.SIGKILL)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def machines(name: str, *overrides: str, data: Path, output: Path, count: int = 2) -> list[subprocess.Popen[str]]:
    """Start torchrun on each machine, as its user would."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", f"--nnodes={count}", "--nproc-per-node=1"]
    torchrun += [f"--rdzv-id={name}", "--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{free_port()}"]
    job = ["run.py", *overrides, f"trainer.num_nodes={count}", "trainer.devices=1"]
    return [
        subprocess.Popen(
            [*torchrun, *job, f"paths.output_dir={quote(str(output))}"],
            cwd=ROOT,
            env={**os.environ, "FACEATTR_DATA": str(data), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        for _ in range(count)
    ]


def test_two_machines_train_the_weights_of_one(tiny_data: Path, tmp_path: Path) -> None:
    both = machines("rehearsal", *PLAIN, "data.batch_size=4", data=tiny_data, output=tmp_path / "two")
    said = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    (two,) = run_dirs(tmp_path / "two")
    assert two.name == "torchrun-rehearsal" and summary(two)["support"] == 24

    run(*PLAIN, "trainer.devices=2", "data.batch_size=4", data=tiny_data, output=tmp_path / "processes")
    assert_same_state(state(two), state(run_dirs(tmp_path / "processes")[0]))
    run(*PLAIN, data=tiny_data, output=tmp_path / "one")
    one = run_dirs(tmp_path / "one")[0]
    expected = state(one)
    for key, tensor in state(two).items():
        torch.testing.assert_close(tensor, expected[key], rtol=1e-5, atol=1e-6, equal_nan=True)
    assert len(rows(two / "metrics.csv")) == len(rows(one / "metrics.csv"))


@pytest.mark.parametrize("machine", [False, True], ids=["process", "machine"])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_lost_peer_ends_the_job_and_it_goes_on(rank: int, machine: bool, tiny_data: Path, tmp_path: Path) -> None:
    overrides = [*PLAIN, "data.batch_size=4", "callbacks.last.every_n_steps=2"]
    lost = (
        f"++callbacks.lost={{_target_: tests.test_two_nodes.KillRank, rank: {rank}, machine: {str(machine).lower()}}}"
    )
    both = machines("lost", *overrides, lost, data=tiny_data, output=tmp_path)
    began = time.monotonic()
    said = [process.communicate(timeout=300)[0] for process in both]
    assert all(process.returncode for process in both), said
    print(f"ended {time.monotonic() - began:.0f} s after the start")
    assert any("Another process of this job" in text for text in said), said
    (run_dir,) = run_dirs(tmp_path)

    again = machines("again", *overrides, "ckpt_path=last", data=tiny_data, output=tmp_path)
    said = [process.communicate(timeout=300)[0] for process in again]
    assert [process.returncode for process in again] == [0, 0], said
    assert run_dirs(tmp_path) == [run_dir] and summary(run_dir)["support"] == 24
    assert "Going on from" in said[0] + said[1]


def test_torchrun_without_a_name_is_refused(tiny_data: Path, tmp_path: Path) -> None:
    environment = {"TORCHELASTIC_RUN_ID": "none", "RANK": "0", "LOCAL_RANK": "0"}
    finished = run(*PLAIN, data=tiny_data, output=tmp_path, check=False, **environment)
    assert finished.returncode == 1 and "Traceback" not in finished.stderr
    assert "torchrun: its processes need a name for the run that they share" in finished.stderr
