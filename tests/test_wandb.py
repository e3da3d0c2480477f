"""W&B, offline: what a run holds, one finished run a job, failures, resuming, and the program without it."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf import OmegaConf

from faceattr_lightning.attributes import CELEBA_ATTRIBUTES
from faceattr_lightning.callbacks.wandb_run import WandbRun, start_run
from faceattr_lightning.config import validate
from faceattr_lightning.errors import ConfigError
from faceattr_lightning.models.baseline import Baseline
from faceattr_lightning.processes import quote
from faceattr_lightning.tasks.trainer import make_trainer
from tests.models.test_dmm_cnn import BACKBONE, PREPROCESSING
from tests.runs import ROOT, SMALL, rows, run, run_dirs

BASELINE = [*SMALL, "model=baseline", "trainer.max_epochs=1"]
WITHOUT_WANDB = """
import importlib.metadata, sys

class NoWandb:
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] == "wandb":
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)

def distribution(name, found=importlib.metadata.distribution):
    if name == "wandb":
        raise importlib.metadata.PackageNotFoundError(name)
    return found(name)

sys.meta_path.insert(0, NoWandb)
importlib.metadata.distribution = distribution
"""
"""A ``sitecustomize.py`` that makes wandb look as if it were not installed."""


class FailFor(Callback):
    """Fails the job of a seed, after its first epoch."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if pl_module.run_config["seed"] == self.seed:
            raise RuntimeError("broken on purpose")


@dataclass
class OfflineRun:
    """What an offline run recorded.

    Args:
        folder: the run's, ``offline-run-...``.
        run: id, project, group, name.
        config: by top-level key.
        history: each row that was logged, nested keys joined by dots.
        summary: values set by hand, or last logged.
        axes: name or pattern of metrics to the metric on their x axis; the last definition wins.
        exit_codes: one for each time that the run was finished.
    """

    folder: Path
    run: Any = None
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    axes: dict[str, str] = field(default_factory=dict)
    exit_codes: list[int] = field(default_factory=list)

    def column(self, key: str) -> list[Any]:
        """Return the logged values of a key."""
        return [row[key] for row in self.history if key in row]


def records(path: Path) -> Iterator[Any]:
    """Yield the records of a ``.wandb`` file: LevelDB's log format after a header of seven bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, position, parts, block = path.read_bytes(), 7, b"", 32 * 1024
    while position + 7 <= len(data):
        left = block - position % block
        _, size, kind = struct.unpack_from("<IHB", data, position)
        if left < 7 or kind == 0:  # padding
            position += left
            continue
        parts += data[position + 7 : position + 7 + size]
        position += 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(parts)
            parts = b""


def values(items: Any) -> dict[str, Any]:
    """Return the values of a config, history or summary record."""
    return {".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}


def offline_runs(job: Path) -> list[OfflineRun]:
    """Read every offline run in a job's folder."""
    found = []
    for path in sorted((job / "wandb").glob("offline-run-*/run-*.wandb")):
        offline = OfflineRun(path.parent)
        for record in records(path):
            match record.WhichOneof("record_type"):
                case "run":
                    offline.run = record.run
                    offline.config |= values(record.run.config.update)
                case "config":
                    offline.config |= values(record.config.update)
                case "history":
                    offline.history.append(values(record.history.item))
                case "summary":
                    offline.summary |= values(record.summary.update)
                case "metric":
                    offline.axes[record.metric.name or record.metric.glob_name] = record.metric.step_metric
                case "exit":
                    offline.exit_codes.append(record.exit.exit_code)
        found.append(offline)
    return found


def offline(output: Path) -> dict[str, str]:
    """Return the environment of an offline run that leaves nothing outside a folder."""
    return {"WANDB_MODE": "offline", "WANDB_DATA_DIR": str(output / "wandb-data")}


def composed(*overrides: str) -> dict[str, Any]:
    """Return a job's configuration as plain data."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return OmegaConf.to_container(compose("config", list(overrides)), resolve=True)  # type: ignore[return-value]


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path) -> Path:
    """The folder of a sweep of two jobs, of which the first fails."""
    output = tmp_path_factory.mktemp("sweep")
    fail = "++callbacks.fail={_target_: tests.test_wandb.FailFor, seed: 0}"
    finished = run(
        "-m",
        "seed=0,1",
        "logger=wandb",
        fail,
        *BASELINE,
        data=tiny_data,
        output=output,
        check=False,
        **offline(output),
    )
    assert finished.returncode != 0 and "broken on purpose" in finished.stderr, finished.stderr[-5000:]
    (folder,) = (output / "multirun").iterdir()
    return folder


@pytest.fixture(scope="module")
def logged(sweep: Path) -> OfflineRun:
    """The run of the job that went well."""
    (found,) = offline_runs(sweep / "1")
    return found


def test_a_sweep_is_a_group_of_one_finished_run_a_job(sweep: Path) -> None:
    jobs = [offline_runs(sweep / job) for job in ("0", "1")]
    assert [len(found) for found in jobs] == [1, 1]
    (failed,), (well,) = jobs
    assert [found.run.run_group for found in (failed, well)] == [sweep.name] * 2
    assert [found.run.project for found in (failed, well)] == ["faceattr-lightning"] * 2
    assert well.run.display_name == "baseline-test_resnet-celeba-seed1"
    assert failed.run.run_id != well.run.run_id
    # A failed job's run ends too, as failed, and before the next job starts.
    assert failed.exit_codes == [1] and well.exit_codes == [0]
    assert failed.column("val/accuracy") and not failed.column("test/accuracy")


def test_a_run_holds_config_curves_weights_and_thresholds(sweep: Path, logged: OfflineRun) -> None:
    assert logged.config["seed"] == 1 and logged.config["data"]["image_size"] == 64
    assert logged.config["model"]["_target_"].endswith("Baseline")
    csv = rows(sweep / "1" / "metrics.csv")
    names = [f"{kind}/{name}" for kind in ("weight", "threshold") for name in CELEBA_ATTRIBUTES]
    for key in ("train/loss", "val/loss", "val/accuracy", "test/accuracy", *names):
        expected = [float(row[key]) for row in csv if row.get(key)]
        assert len(expected) == 1 and logged.column(key) == pytest.approx(expected), key
    # Curves over the epochs, not over Lightning's count of steps: W&B adds the axis to a row that lacks it.
    assert logged.axes["*"] == "epoch"
    (report,) = [row for row in logged.history if "report/test.path" in row]
    assert report["epoch"] == 1 and "trainer/global_step" not in report


def test_a_run_holds_the_report(sweep: Path, logged: OfflineRun) -> None:
    for split, file in (("test", "attributes.csv"), ("validation", "attributes_validation.csv")):
        (name,) = logged.column(f"report/{split}.path")
        table = json.loads((logged.folder / "files" / name).read_text())
        expected = rows(sweep / "1" / "report" / file)
        assert table["columns"] == list(expected[0])
        assert [row[0] for row in table["data"]] == list(CELEBA_ATTRIBUTES)
        column = table["columns"].index("threshold")
        assert [row[column] for row in table["data"]] == pytest.approx([float(row["threshold"]) for row in expected])
        assert 0 <= logged.summary[f"{split}/f1"] <= 1
    for title in ("Best", "Worst", "Most uncertain"):
        (files,), (captions,) = logged.column(f"faces/{title}.filenames"), logged.column(f"faces/{title}.captions")
        assert len(files) == 2 and all((logged.folder / "files" / name).is_file() for name in files)
        assert all("of 40 right" in caption for caption in captions)


@pytest.mark.slow
def test_a_resumed_run_goes_on_and_only_the_first_rank_logs(
    sweep: Path, logged: OfflineRun, tiny_data: Path, tmp_path: Path
) -> None:
    last = f"ckpt_path={sweep}/1/checkpoints/last.ckpt"
    overrides = [last, "seed=1", "trainer.max_epochs=2", "trainer.devices=2", "data.batch_size=4"]
    run(*BASELINE, "logger=wandb", *overrides, data=tiny_data, output=tmp_path, **offline(tmp_path))
    (job,) = run_dirs(tmp_path)
    (resumed,) = offline_runs(job)
    assert resumed.run.run_id == logged.run.run_id and resumed.run.run_group == ""
    assert resumed.exit_codes == [0]
    assert logged.column("epoch")[0] == 0
    assert len(resumed.column("val/accuracy")) == len(resumed.column("test/accuracy")) == 1
    assert {row["epoch"] for row in resumed.history if "val/accuracy" in row} == {1}
    assert WandbRun.saved_id(torch.load(job / "checkpoints/last.ckpt", weights_only=True)) == logged.run.run_id


def test_the_run_id_outlives_a_part_that_was_trained_without_wandb() -> None:
    callback = WandbRun()
    callback.setup(Trainer(logger=False, max_epochs=1), LightningModule(), "fit")
    callback.load_state_dict({"id": "abc"})
    assert WandbRun.saved_id({"callbacks": {callback.state_key: callback.state_dict()}}) == "abc"


def test_without_an_account_the_error_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    def refuse(**_: Any) -> None:
        raise wandb.errors.UsageError("No API key configured. Use `wandb login` to log in.")

    monkeypatch.setattr(wandb, "init", refuse)
    with pytest.raises(ConfigError, match=r"logger\.wandb: No API key configured.*WANDB_MODE=offline"):
        start_run(WandbLogger(save_dir=tmp_path), {})


def test_a_failure_before_training_finishes_the_run_too(tmp_path: Path) -> None:
    config = composed("logger=wandb", "++logger.wandb.mode=offline", f"paths.run_dir='{tmp_path}'")
    config["callbacks"] = {"checkpoint": {"_target_": "lightning.pytorch.callbacks.ModelCheckpoint", "save_top_k": -5}}
    model = Baseline(["a", "b"], backbone=BACKBONE, preprocessing=PREPROCESSING)
    with pytest.raises(MisconfigurationException), make_trainer(config, model, []):
        pass
    # W&B's own process, which lives on here, writes its last record in its own time.
    for _ in range(100):
        (found,) = offline_runs(tmp_path)
        if found.exit_codes:
            break
        time.sleep(0.2)
    assert found.exit_codes == [1]


def test_without_wandb_installed(tiny_data: Path, tmp_path: Path) -> None:
    blocker = tmp_path / "blocker"
    blocker.mkdir()
    (blocker / "sitecustomize.py").write_text(WITHOUT_WANDB)
    environment = {"PYTHONPATH": str(blocker)}
    blocked = subprocess.run([sys.executable, "-c", "import wandb"], env={**os.environ, **environment}, check=False)
    assert blocked.returncode != 0
    run(*BASELINE, data=tiny_data, output=tmp_path / "outputs", **environment)
    (job,) = run_dirs(tmp_path / "outputs")
    assert [row for row in rows(job / "metrics.csv") if row["val/accuracy"]]
    assert not [path for path in (tmp_path / "outputs").rglob("*") if "wandb" in path.name]


def test_choosing_wandb_without_wandb_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # import raises
    config = composed("logger=wandb", f"paths.output_dir='{tmp_path}'", "paths.run_dir=run")
    with pytest.raises(ConfigError) as caught:
        validate(config)
    assert caught.value.problems == [
        "logger.wandb: the package wandb is not installed; run: pip install 'faceattr-lightning[wandb]'."
    ]


@pytest.mark.slow
def test_the_table_of_a_sweep(sweep: Path, tiny_data: Path, tmp_path: Path) -> None:
    given = ["task=collect", "logger=wandb", f"runs=[{quote(str(sweep))}]"]
    run(*given, data=tiny_data, output=tmp_path, **offline(tmp_path))
    (sent,) = offline_runs(run_dirs(tmp_path, "collect")[0])
    assert sent.run.run_group == sweep.name and sent.exit_codes == [0]
    (name,) = sent.column("sweep.path")
    table = json.loads((sent.folder / "files" / name).read_text())
    assert [row[table["columns"].index("state")] for row in table["data"]] == ["failed", "finished"]
    assert rows(sweep / "sweep.csv")[0]["reason"] == "RuntimeError: broken on purpose"
