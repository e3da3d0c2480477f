"""What the system does to a run is told in one message: each failure is a real one, where the machine allows it."""

from __future__ import annotations

import errno
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

from faceattr_lightning.checkpoint_io import write_checkpoint
from faceattr_lightning.errors import ConfigError
from faceattr_lightning.files import write_text
from faceattr_lightning.tasks.failures import explain
from tests.disks import small_disk
from tests.runs import ROOT, SMALL, run, run_dirs, summary

RUN = [*SMALL, "model=baseline"]


def kill(which: str, epoch: int) -> str:
    return f"++callbacks.kill={{_target_: tests.faults.callbacks.KillProcess, which: {which}, epoch: {epoch}}}"


def script(code: str, *arguments: str, prefix: tuple[str, ...] = ()) -> str:
    """Run Python code in a process of its own and return what it printed."""
    command = [*prefix, sys.executable, "-c", code, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False).stdout


def test_a_killed_loader_process_ends_the_run_with_one_message(tiny_data: Path, tmp_path: Path) -> None:
    workers = [*RUN, "data.num_workers=2"]
    finished = run(*workers, kill("loader", 1), data=tiny_data, output=tmp_path, check=False, timeout=120)
    assert finished.returncode == 1 and "Traceback" not in finished.stderr, finished.stderr
    (message,) = (line for line in finished.stderr.splitlines() if "A process that loads data (pid" in line)
    assert "was killed (signal Killed)" in message
    assert "Lower data.num_workers" in message and "ckpt_path=last" in message
    assert (run_dirs(tmp_path)[0] / "checkpoints" / "last.ckpt").is_file()


@pytest.mark.slow
def test_a_killed_process_of_a_job_ends_the_other(tiny_data: Path, tmp_path: Path) -> None:
    two = [*RUN, "trainer.devices=2", "data.batch_size=4"]
    finished = run(*two, kill("rank", 1), data=tiny_data, output=tmp_path, check=False, timeout=120)
    assert finished.returncode == 1 and "Traceback" not in finished.stderr, finished.stderr
    assert "Another process of this job has ended or can't be reached" in finished.stderr
    run(*two, "ckpt_path=last", data=tiny_data, output=tmp_path)
    (run_dir,) = run_dirs(tmp_path)
    assert summary(run_dir)["support"] == 24


PEER = """
import os, signal, sys
import torch
from faceattr_lightning.tasks.failures import explain
rank, store = int(sys.argv[1]), sys.argv[2]
torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
try:
    torch.distributed.all_reduce(torch.ones(1))
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    torch.distributed.all_reduce(torch.ones(1))
except BaseException as error:
    print(explain(error))
"""


def test_a_peer_that_was_killed(tmp_path: Path) -> None:
    store = str(tmp_path / "store")
    with subprocess.Popen([sys.executable, "-c", PEER, "1", store], cwd=ROOT) as other:
        said = script(PEER, "0", store)
    assert other.returncode == -9
    assert said.startswith("Another process of this job has ended or can't be reached; its own message says why (")
    assert "ckpt_path=last" in said


def test_a_peer_that_never_comes(tmp_path: Path) -> None:
    code = """
import datetime, sys
import torch
from faceattr_lightning.tasks.failures import explain
try:
    torch.distributed.TCPStore("127.0.0.1", 0, 2, True, timeout=datetime.timedelta(seconds=1))
except BaseException as error:
    print(explain(error))
"""
    assert script(code).startswith("Another process of this job has ended or can't be reached")


def test_a_full_disk(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "size=100k") as full:
        for write in (
            lambda path: write_checkpoint({"weights": torch.zeros(100_000)}, path),
            lambda path: np.savez(path, np.zeros(100_000)),
            lambda path: write_text("x" * 200_000, path),
        ):
            with pytest.raises(OSError, match="No space left on device") as caught:
                write(full / "file.ckpt")
            message = explain(caught.value)
            assert message is not None and message.startswith("There is no space left to write")
            assert "ckpt_path=last" in message and "paths.output_dir" in message
            if caught.value.filename is not None:
                assert f"{full / 'file.ckpt'} (0." in message and "MB free)" in message


@pytest.mark.slow
def test_a_disk_that_is_full_in_the_middle_of_a_run(tiny_data: Path, tmp_path: Path) -> None:
    """Room for the first checkpoints and not for those of the second epoch; with more of it the run goes on."""
    with small_disk(tmp_path / "disk", "size=14m") as full:
        (full / "ballast").write_bytes(bytes(4_000_000))
        finished = run(*RUN, "trainer.max_epochs=3", data=tiny_data, output=full, check=False)
        assert finished.returncode == 1 and "Traceback" not in finished.stderr, finished.stderr
        assert "There is no space left to write" in finished.stderr and "ckpt_path=last" in finished.stderr
        subprocess.run(["mount", "-o", "remount,size=200m", str(full)], check=True)
        run(*RUN, "trainer.max_epochs=3", "ckpt_path=last", data=tiny_data, output=full)
        assert summary(run_dirs(full)[0])["support"] == 24


def test_a_file_system_that_is_read_only(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "size=100k,ro") as read_only:
        with pytest.raises(OSError, match="Read-only") as caught:
            (read_only / "metrics.csv").open("w")
        message = explain(caught.value)
        assert message is not None and message.startswith(f"{read_only / 'metrics.csv'} can't be written (Read-only")


def test_files_that_a_user_may_not_touch() -> None:
    code = """
import os, sys
from faceattr_lightning.tasks.failures import explain
if os.geteuid() == 0:
    os.setuid(65534)  # nobody: root may do anything
for file, mode in ((sys.argv[1], "r"), (sys.argv[2], "w")):
    try:
        open(file, mode)
    except OSError as error:
        print(explain(error))
"""
    # Below pytest's folder, which is for its user only, nobody could not even look.
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        secret, new = folder / "secret.csv", folder / "new.csv"
        secret.write_text("")
        secret.chmod(0)
        folder.chmod(0o555)
        reading, writing = script(code, str(secret), str(new)).splitlines()
        folder.chmod(0o755)
    assert reading.startswith(f"{secret} can't be read (Permission denied).")
    assert writing.startswith(f"{new} can't be written (Permission denied).") and "paths.output_dir" in writing


def test_too_little_shared_memory() -> None:
    """Shared by the loader process's own thread; what the queue's thread does not get shared, torch waits for."""
    code = """
import torch
from torch.utils.data import DataLoader
from faceattr_lightning.tasks.failures import explain
try:
    loader = DataLoader([torch.zeros(1_000_000)], None, num_workers=1, collate_fn=lambda item: item.share_memory_())
    for _ in loader:
        pass
except BaseException as error:
    print(explain(error))
"""
    mount = 'mount -t tmpfs -o size=1m tmpfs /dev/shm && exec "$@"'
    prefix = ("unshare", "--mount", "sh", "-c", mount, "sh")
    if subprocess.run([*prefix, "true"], capture_output=True).returncode:
        pytest.skip("needs the right to give a process a small /dev/shm")
    said = script(code, prefix=prefix)
    assert said.startswith("The memory that loader processes share with training (/dev/shm) is too small."), said
    assert "data.num_workers" in said and "--shm-size" in said
    # Where the system promises memory that it does not have, the process dies instead; torch's text.
    killed = (
        "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's workers are out of "
        "shared memory. Please try to raise your shared memory limit."
    )
    assert explain(RuntimeError(killed)) == said.strip()


def test_memory_that_the_machine_does_not_have() -> None:
    for make in (lambda: torch.empty(10**15), lambda: np.empty(10**15)):
        with pytest.raises((RuntimeError, MemoryError)) as caught:
            make()
        message = explain(caught.value)
        assert message is not None and message.startswith("The machine's memory is full. Lower data.batch_size")


def test_memory_that_a_gpu_does_not_have() -> None:
    """Torch's text, made here: this machine has no GPU."""
    text = (
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 15.77 GiB of which 1.05 GiB is "
        "free. Including non-PyTorch memory, this process has 14.72 GiB memory in use."
    )
    message = explain(torch.OutOfMemoryError(text))
    assert message is not None and message.startswith("The GPU's memory is full: CUDA out of memory. Lower data.batch")
    assert "accumulate_grad_batches" in message and "bf16-mixed" in message and "ckpt_path=last" in message


@pytest.mark.parametrize(
    "error",
    [
        ValueError("a bug"),
        RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"),
        RuntimeError("Timed out"),
        FileNotFoundError(errno.ENOENT, "No such file or directory", "x"),
        IsADirectoryError(errno.EISDIR, "Is a directory", "x"),
        ConfigError(["no space left on device"]),
        KeyboardInterrupt(),
    ],
)
def test_a_bug_keeps_its_traceback(error: BaseException) -> None:
    assert explain(error) is None
