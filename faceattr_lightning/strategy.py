"""Multi-process training that is right inside Hydra runs and sweeps.

Lightning starts rank 1 with the command line of rank 0. Inside a sweep that is the whole sweep's: rank 1 would start a
ghost sweep of its own. And the variables that a two-process job leaves behind make the next job in the same process
believe that it is a rank. Here a rank is started with the one job's overrides, into the one job's folder, and each job
leaves the environment as it found it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from lightning.fabric.plugins.environments import (
    LightningEnvironment,
    LSFEnvironment,
    MPIEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, Strategy
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher
from lightning.pytorch.utilities import rank_zero_only

from faceattr_lightning.errors import ConfigError, FaceAttrError
from faceattr_lightning.processes import is_first_process, quote

Process = subprocess.Popen[bytes]

RANK_VARIABLES = (
    "LOCAL_RANK",
    "NODE_RANK",
    "WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "PL_GLOBAL_SEED",
    "PL_SEED_WORKERS",
    # Lightning gives each rank its share of the cores, by this and by torch.set_num_threads.
    "OMP_NUM_THREADS",
)
_ARRIVAL_VARIABLE = "FACEATTR_ARRIVAL"
"""Of a started rank: the end of a pipe to which it writes that it has come as far as the first one."""
_PATIENCE_SECONDS = 120
# A rank whose peer has failed sees its connection close, and needs some seconds to print why it failed itself.
_LAST_WORDS_SECONDS = 10

DDP_NAMES = ("ddp", "ddp_find_unused_parameters_true", "ddp_find_unused_parameters_false")

FSDP_NAME = "fsdp"


class _HydraRanks:
    """The part of a strategy that starts its processes.

    Args:
        ranks: takes the processes that are started; `distributed_job` waits for them.
        ckpt_path: the file that this rank opens, for the others to open the same one.
        options: of the strategy.
    """

    def __init__(self, ranks: list[Process], ckpt_path: str | None = None, **options: Any) -> None:
        super().__init__(**options)
        self._ranks, self._ckpt_path = ranks, ckpt_path

    def _configure_launcher(self) -> None:
        strategy: Any = self
        strategy._launcher = _JobLauncher(
            self._ranks, self._ckpt_path, strategy.cluster_environment, strategy.num_processes, strategy.num_nodes
        )

    def setup_environment(self) -> None:
        # Whoever is not here yet would be waited for until torch's patience ends, also if it is there no more.
        strategy: Any = self
        strategy._launcher.meet()
        parent: Any = super()
        parent.setup_environment()


class HydraDDPStrategy(_HydraRanks, DDPStrategy):
    """Lightning's DDP with ranks that run one Hydra job, on GPUs (nccl) and on CPU (gloo)."""


class HydraFSDPStrategy(_HydraRanks, FSDPStrategy):
    """Lightning's FSDP, on GPUs, with ranks that run one Hydra job; its checkpoints are those of any other strategy."""


class _JobLauncher(_SubprocessScriptLauncher):
    def __init__(self, ranks: list[Process], ckpt_path: str | None, *args: Any) -> None:
        super().__init__(*args)
        # Not `procs`, which stays empty: Lightning watches it, and for one failed rank kills this process, and with it
        # the whole sweep.
        self._ranks = ranks
        self._ckpt_path = ckpt_path
        self._arrivals: list[int] = []

    def meet(self) -> None:
        """Wait until all processes of this machine have come as far as this one.

        Raises:
            FaceAttrError: one of them has ended.
        """
        arrival = os.environ.pop(_ARRIVAL_VARIABLE, None)
        if arrival is not None:
            os.write(int(arrival), b"1")
            os.close(int(arrival))
        arrivals, self._arrivals = self._arrivals, []
        # A pipe that nobody can write to any more ends without a word.
        came = [os.read(reader, 1) for reader in arrivals]
        for reader in arrivals:
            os.close(reader)
        if not all(came):
            raise FaceAttrError("A rank of this job ended before it met the others; its messages stand above.")

    def kill(self, signum: Any) -> None:
        for process in self._ranks:
            process.send_signal(signum)

    def _call_children_scripts(self) -> None:
        if not HydraConfig.initialized():
            super()._call_children_scripts()
            return
        self._check_can_spawn_children()
        environment = self.cluster_environment
        os.environ["MASTER_ADDR"] = environment.main_address
        os.environ["MASTER_PORT"] = str(environment.main_port)
        os.environ["NODE_RANK"] = str(environment.node_rank())
        os.environ["LOCAL_RANK"] = str(environment.local_rank())
        os.environ["WORLD_SIZE"] = str(self.num_processes * self.num_nodes)
        for local_rank in range(1, self.num_processes):
            reader, writer = os.pipe()
            own = {"LOCAL_RANK": str(local_rank), "PYTHONPATH": _python_path(), _ARRIVAL_VARIABLE: str(writer)}
            self._ranks.append(
                subprocess.Popen(
                    rank_command(local_rank, self._ckpt_path),
                    env={**os.environ, **own},
                    cwd=HydraConfig.get().runtime.cwd,
                    pass_fds=[writer],
                )
            )
            os.close(writer)
            self._arrivals.append(reader)
        threading.Thread(target=_abort_nccl_when_a_rank_fails, args=(self._ranks,), daemon=True).start()


def _abort_nccl_when_a_rank_fails(ranks: list[Process]) -> None:
    """End the collective operation that waits for a failed rank: gloo sees its connection close, NCCL sees nothing."""
    while ranks:
        time.sleep(1)
        if any(process.poll() for process in ranks):
            if torch.distributed.is_initialized() and torch.distributed.get_backend() == "nccl":
                torch.distributed.distributed_c10d._abort_process_group()
            return


def rank_command(local_rank: int, ckpt_path: str | None = None) -> list[str]:
    """Return the command that runs the present Hydra job as another rank.

    Hydra's overrides of the job alone, as a single run, in the job's own folder, writing no configuration there; with
    the checkpoint that ``best`` or ``last`` meant when the first rank looked.
    """
    config = HydraConfig.get()
    sources = [source.path for source in config.runtime.config_sources if source.provider == "command-line"]
    searchpath = [override for override in config.overrides.hydra if override.startswith("hydra.searchpath=")]
    return [
        sys.executable,
        "-m",
        "faceattr_lightning",
        f"--config-name={config.job.config_name}",
        *(f"--config-dir={source}" for source in sources),
        *config.overrides.task,
        *([f"ckpt_path={quote(ckpt_path)}"] if ckpt_path else []),
        *searchpath,
        "hydra.mode=RUN",
        f"hydra.run.dir={quote(config.runtime.output_dir)}",
        "hydra.output_subdir=null",
        f"hydra.job.name=rank_{local_rank}",
    ]


def _python_path() -> str:
    package_parent = str(Path(__file__).resolve().parent.parent)
    return os.pathsep.join([package_parent, *filter(None, [os.environ.get("PYTHONPATH")])])


def is_one_of_several_machines() -> bool:
    """Return whether a launcher or the user has said where the other machines of a job are."""
    launchers = (TorchElasticEnvironment, SLURMEnvironment, LSFEnvironment, MPIEnvironment)
    return "MASTER_ADDR" in os.environ or any(launcher.detect() for launcher in launchers)


def choose_strategy(
    strategy: str, devices: Any, accelerator: str, num_nodes: int, ranks: list[Process], ckpt_path: str | None = None
) -> str | Strategy:
    """Return the strategy for a Trainer: ours wherever DDP runs on more than one device, else what was asked for.

    Args:
        strategy: ``auto`` or a name that Lightning knows.
        devices: as for the Trainer: a number, a list, ``auto`` or -1.
        accelerator: as for the Trainer.
        num_nodes: number of machines.
        ranks: see `HydraDDPStrategy`, like ``ckpt_path``.

    Raises:
        ConfigError: a strategy that starts processes in a way that is not right inside Hydra.
    """
    several = num_nodes * _device_count(devices, accelerator) > 1
    if strategy in DDP_NAMES or (strategy == "auto" and several):
        return HydraDDPStrategy(ranks, ckpt_path, find_unused_parameters=strategy.endswith("unused_parameters_true"))
    if strategy == FSDP_NAME:
        if accelerator == "cpu" or not torch.cuda.is_available():
            raise ConfigError(
                [
                    "trainer.strategy: fsdp divides a network among GPUs, and this machine has none. Use auto or ddp, "
                    "which suit every network that fits into one GPU's memory."
                ]
            )
        return HydraFSDPStrategy(ranks, ckpt_path, state_dict_type="full")
    if several or strategy.startswith("ddp"):
        raise ConfigError(
            [f"trainer.strategy: '{strategy}' starts processes in a way that Hydra jobs can't share; use auto or ddp."]
        )
    return strategy


def process_count(trainer: dict[str, Any]) -> int:
    """Return how many processes a Trainer's node asks for, on all machines."""
    accelerator = choose_accelerator(trainer["accelerator"])
    return int(trainer["num_nodes"]) * _device_count(trainer["devices"], accelerator)


def _device_count(devices: Any, accelerator: str) -> int:
    if isinstance(devices, (list, tuple)):
        return len(devices)
    if isinstance(devices, str) and devices not in ("auto", "-1"):
        return len(devices.split(",")) if "," in devices else int(devices)
    if devices in ("auto", -1, "-1"):
        return torch.cuda.device_count() if accelerator in ("auto", "gpu", "cuda") else 1
    return int(devices)


def choose_accelerator(accelerator: str) -> str:
    """Return the accelerator for a Trainer: ``auto`` is a CUDA GPU or the CPU.

    Never an Apple GPU, which lacks the double precision of weights and thresholds and gives no second process.
    """
    return "cpu" if accelerator == "auto" and not torch.cuda.is_available() else accelerator


def _end(processes: list[Process]) -> None:
    """Leave processes the time to print their errors, then kill those that still run."""
    deadline = time.monotonic() + _LAST_WORDS_SECONDS
    for process in processes:
        try:
            process.wait(timeout=max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def distributed_job() -> Iterator[list[Process]]:
    """Leave no trace of a multi-process job: no process group, no rank variable, no rank that still runs, every core
    back.

    Yields:
        the list for the processes of the job's other ranks. They are waited for, or ended if the job fails.

    Raises:
        FaceAttrError: a rank failed, or did not end.
    """
    before = {name: os.environ.get(name) for name in RANK_VARIABLES}
    threads = torch.get_num_threads()
    ranks: list[Process] = []
    try:
        yield ranks
        for process in ranks:
            try:
                process.wait(timeout=_PATIENCE_SECONDS)
            except subprocess.TimeoutExpired:
                raise FaceAttrError(f"A rank of this job did not end within {_PATIENCE_SECONDS} seconds.") from None
            if process.returncode != 0:
                raise FaceAttrError(
                    f"A rank of this job failed with exit status {process.returncode}; its messages stand above."
                )
    finally:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        leftover = ranks.copy()
        ranks.clear()
        _end(leftover)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        torch.set_num_threads(threads)
        # Lightning keeps the rank on a function; the next job of this process is rank 0 until told otherwise.
        if is_first_process() and not LightningEnvironment().creates_processes_externally:
            rank_zero_only.rank = 0  # type: ignore[attr-defined]
