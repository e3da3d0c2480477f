"""Two CPU processes (gloo): alone, inside a sweep, and in the parts that make it right."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from lightning import Callback, LightningModule, Trainer

from faceattr_lightning.errors import ConfigError, FaceAttrError
from faceattr_lightning.strategy import (
    RANK_VARIABLES,
    HydraDDPStrategy,
    choose_accelerator,
    choose_strategy,
    distributed_job,
    quote,
)
from tests.runs import SMALL, SMALL_DMM, assert_same_state, rows, run, run_dirs, state, summary

# Sixteen samples a step, however many processes share them.
TWO, ONE = ["trainer.devices=2", "data.batch_size=8"], ["trainer.devices=1", "data.batch_size=8"]


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path) -> Path:
    """A sweep whose first job takes two processes and whose second takes one."""
    output = tmp_path_factory.mktemp("sweep out = 1")  # a name that has to be quoted
    finished = run("-m", *SMALL, *SMALL_DMM, "trainer.devices=2,1", data=tiny_data, output=output)
    said = finished.stdout + finished.stderr
    assert "sync_dist" not in said and "UserWarning" not in said, said
    return output


def test_a_sweep_leaves_one_folder_per_job_and_no_ghost(sweep: Path) -> None:
    assert [path.name for path in sweep.iterdir()] == ["multirun"]
    (folder,) = (sweep / "multirun").iterdir()
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == ["0", "1"]
    for job in ("0", "1"):
        assert {path.name for path in (folder / job / "checkpoints").iterdir()} == {
            "best.ckpt",
            "last.ckpt",
            "previous.ckpt",
        }
        assert summary(folder / job)["support"] == 24
        assert len([row for row in rows(folder / job / "metrics.csv") if row.get("val/accuracy")]) == 2


def test_jobs_of_a_sweep_equal_the_jobs_run_alone(sweep: Path, tiny_data: Path, tmp_path: Path) -> None:
    (folder,) = (sweep / "multirun").iterdir()
    for job, devices in (("0", TWO), ("1", ONE)):
        run(*SMALL, *SMALL_DMM, *devices, data=tiny_data, output=tmp_path / job)
        alone = run_dirs(tmp_path / job)[0]
        assert_same_state(state(alone), state(folder / job))
        assert (alone / "report/attributes.csv").read_text() == (folder / job / "report/attributes.csv").read_text()


def test_every_sample_is_evaluated_once_on_two_processes(sweep: Path) -> None:
    (folder,) = (sweep / "multirun").iterdir()
    for split in ("", "_validation"):
        table = rows(folder / "0" / "report" / f"attributes{split}.csv")
        assert {row["support"] for row in table} == {"24"}
        alone = rows(folder / "1" / "report" / f"attributes{split}.csv")
        assert [row["prevalence"] for row in table] == [row["prevalence"] for row in alone]


@pytest.mark.slow
def test_testing_on_two_processes_gives_the_same_figures(sweep: Path, tiny_data: Path, tmp_path: Path) -> None:
    (folder,) = (sweep / "multirun").iterdir()
    run(
        "task=test",
        f"ckpt_path={quote(str(folder / '0/checkpoints/best.ckpt'))}",
        "trainer.devices=2",
        data=tiny_data,
        output=tmp_path,
    )
    assert (run_dirs(tmp_path, "test")[0] / "report/attributes.csv").read_text() == (
        folder / "0/report/attributes.csv"
    ).read_text()


@pytest.mark.slow
def test_weights_every_k_steps_are_equal_on_both_processes(tiny_data: Path, tmp_path: Path) -> None:
    """The window's statistics are those of both ranks: as many validation samples as one process would have seen."""
    run(
        *SMALL,
        "model=baseline",
        "weighting=dmm",
        "weighting.every=2",
        "trainer.devices=2",
        "trainer.max_epochs=1",
        data=tiny_data,
        output=tmp_path,
    )
    last = state(run_dirs(tmp_path)[0])
    assert int(last["weighting.steps"]) == 3  # 48 images, 16 a step
    # One step into the second window: a global batch of the 24 validation images, cut into two steps.
    assert last["weighting.loss_count"].tolist() == [12.0] * 40


@pytest.mark.slow
def test_a_sweep_with_joblib_workers(tiny_data: Path, tmp_path: Path) -> None:
    launcher = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    run(
        "-m",
        *launcher,
        *SMALL,
        *SMALL_DMM,
        "trainer.devices=1,2",
        "trainer.max_epochs=1",
        data=tiny_data,
        output=tmp_path,
    )
    (folder,) = (tmp_path / "multirun").iterdir()
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == ["0", "1"]
    assert all(summary(folder / job)["support"] == 24 for job in ("0", "1"))


@pytest.mark.parametrize(
    "value", ["/plain/path", "a b=c,d", "it's", "back\\slash", "end\\", "x\\'y", "{a: [b]}", "100%"]
)
def test_quoted_values_survive_hydras_grammar(value: str) -> None:
    assert str(OverridesParser.create().parse_override(f"key={quote(value)}").value()) == value


def test_which_strategy() -> None:
    assert choose_strategy("auto", 1, "cpu", 1, []) == "auto"
    assert choose_strategy("auto", "1", "cpu", 1, []) == "auto"
    for devices in (2, "2", [0, 1], "0,1"):
        assert isinstance(choose_strategy("auto", devices, "cpu", 1, []), HydraDDPStrategy)
    assert isinstance(choose_strategy("ddp", 1, "cpu", 1, []), HydraDDPStrategy)
    with pytest.raises(ConfigError, match="fsdp divides a network among GPUs, and this machine has none"):
        choose_strategy("fsdp", 2, "cpu", 1, [])
    for strategy, devices in (("deepspeed", 2), ("ddp_spawn", 1)):
        with pytest.raises(ConfigError, match=f"'{strategy}' starts processes in a way that Hydra jobs can't share"):
            choose_strategy(strategy, devices, "cpu", 1, [])


def test_more_devices_than_one_on_a_machine_without_gpu() -> None:
    if torch.cuda.is_available():
        assert choose_accelerator("auto") == "auto"
    else:
        assert choose_accelerator("auto") == "cpu"
    assert choose_accelerator("gpu") == "gpu"


def test_a_job_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in RANK_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MASTER_PORT", "1234")
    monkeypatch.setattr("faceattr_lightning.strategy._LAST_WORDS_SECONDS", 0)
    threads = torch.get_num_threads()
    with pytest.raises(RuntimeError, match="broken"), distributed_job() as ranks:
        os.environ.update({name: "9" for name in RANK_VARIABLES})
        torch.set_num_threads(1)
        import subprocess
        import sys

        ranks.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]))
        child = ranks[0]
        raise RuntimeError("broken")
    assert {name: os.environ.get(name) for name in RANK_VARIABLES} == {
        **dict.fromkeys(RANK_VARIABLES),
        "MASTER_PORT": "1234",
    }
    assert torch.get_num_threads() == threads
    assert child.wait(timeout=10) != 0, "the other rank was left running"


def test_a_failed_rank_fails_the_job() -> None:
    import subprocess
    import sys

    with pytest.raises(FaceAttrError, match="exit status 3"), distributed_job() as ranks:
        ranks.append(subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"]))


class FailEarly(Callback):
    """Fails a rank before it has met the others."""

    def __init__(self, rank: int) -> None:
        if int(os.environ.get("LOCAL_RANK", "0")) == rank:
            raise RuntimeError(f"rank {rank} never came")


@pytest.mark.slow
def test_a_rank_that_never_comes_is_not_waited_for(tiny_data: Path, tmp_path: Path) -> None:
    fail = "++callbacks.fail={_target_: tests.test_distributed.FailEarly, rank: 1}"
    two = ["model=baseline", "trainer.devices=2", "trainer.max_epochs=1", fail]
    finished = run(*SMALL, *two, data=tiny_data, output=tmp_path, check=False, timeout=120)
    assert finished.returncode == 1 and "rank 1 never came" in finished.stderr, finished.stderr
    assert "ended before it met the others" in finished.stderr


class FailOn(Callback):
    """Fails one rank of the job with seed 0 when training starts, while the first rank is busy."""

    def __init__(self, rank: int, busy: float = 0) -> None:
        self.rank, self.busy = rank, busy

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if pl_module.run_config["seed"] != 0:
            return
        if trainer.global_rank == self.rank:
            raise RuntimeError(f"rank {self.rank} is broken on purpose")
        time.sleep(self.busy)


def test_a_failed_rank_says_why_and_ends_its_job_alone(tiny_data: Path, tmp_path: Path) -> None:
    """Rank 0 notices late, as in a long step; Lightning's observer would have killed the sweep by then."""
    fail = "++callbacks.fail={_target_: tests.test_distributed.FailOn, rank: 1, busy: 6}"
    two = ["model=baseline", "trainer.devices=2", "trainer.max_epochs=1", fail]
    finished = run("-m", "seed=0,1", *SMALL, *two, data=tiny_data, output=tmp_path, check=False)
    assert finished.returncode == 1
    assert "RuntimeError: rank 1 is broken on purpose" in finished.stderr, finished.stderr
    (folder,) = (tmp_path / "multirun").iterdir()
    assert not (folder / "0" / "report").exists() and summary(folder / "1")["support"] == 24
