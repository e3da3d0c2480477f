"""``task=export`` through the program."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import yaml

from faceattr_lightning.errors import ConfigError, DataError
from faceattr_lightning.inference.engine import open_engine
from faceattr_lightning.networks.load import load_network
from faceattr_lightning.processes import quote
from tests.runs import SMALL, rows, run, run_dirs, run_here

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), dtype=np.uint8)


@pytest.mark.slow
def test_a_trained_checkpoint_is_exported(tiny_data: Path, tmp_path: Path) -> None:
    run(*SMALL, "model=baseline", "trainer.max_epochs=1", data=tiny_data, output=tmp_path)
    keys = ["task.int8=true", "task.calibration_images=6", "task.accuracy=test"]
    finished = run("task=export", "ckpt_path=last", *keys, data=tiny_data, output=tmp_path)
    (run_dir,) = run_dirs(tmp_path, "export")
    files = [run_dir / "baseline.onnx", run_dir / "baseline.int8.onnx"]
    assert sorted(path.name for path in run_dir.iterdir() if not path.name.startswith(".")) == sorted(
        ["config.yaml", "run.log", "status.json", "baseline.md", *(file.name for file in files)]
    )
    sessions = [onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"]) for file in files]
    image = np.zeros((3, 3, 64, 64), dtype=np.uint8)
    assert all(session.run(["decisions"], {"image": image})[0].shape == (3, 40) for session in sessions)
    assert files[1].stat().st_size < 0.5 * files[0].stat().st_size
    card = (run_dir / "baseline.md").read_text()
    assert "Predictor('baseline.onnx')" in card and "no figures" in card and "baseline.int8.onnx" in card
    lines = {line.split()[1]: line for line in finished.stdout.splitlines() if line.startswith("│")}
    assert lines.keys() == {"checkpoint", "float32", "int8"}
    # Both write it in percent, with the difference in points behind.
    (exact,) = re.findall(r"│ +(\d\d\.\d\d) │ +│$", lines["checkpoint"])
    assert re.search(rf"│ +{exact} │ +[+-]0\.00 │$", lines["float32"])
    ((small, lost),) = re.findall(r"│ +(\d\d\.\d\d) │ +([+-]\d\.\d\d) │$", lines["int8"])
    assert abs(float(small) - float(exact) - float(lost)) < 0.02 and abs(float(lost)) < 2.5
    assert f"Written: {files[0]}" in finished.stdout and f"Written: {files[1]}" in finished.stdout
    assert "Warning" not in finished.stderr and "[W:" not in finished.stderr, finished.stderr
    config = yaml.safe_load((run_dir / "config.yaml").read_text())
    assert config["model"]["_target_"].endswith("Baseline") and config["ckpt_path"].endswith("last.ckpt")

    # Without the data there is still the check on random images.
    finished = run("task=export", "ckpt_path=last", data=tmp_path / "nowhere", output=tmp_path / "again", check=False)
    assert finished.returncode == 1 and "no training run" in finished.stdout + finished.stderr
    checkpoint = config["ckpt_path"]
    finished = run("task=export", f"ckpt_path={checkpoint}", data=tmp_path / "nowhere", output=tmp_path / "again")
    assert "random images alone" in finished.stdout and "on 6 images" in finished.stdout


def test_mistakes_are_told_at_once(tiny_data: Path, tmp_path: Path) -> None:
    (tmp_path / "foreign.ckpt").write_bytes(b"no checkpoint")
    keys = [
        "task.format=tflite",
        "task.calibration_images=0",
        "task.accuracy=train",
        f"ckpt_path={tmp_path}/foreign.ckpt",
    ]
    finished = run("task=export", *keys, data=tiny_data, output=tmp_path / "out", check=False)
    told = finished.stdout + finished.stderr
    assert finished.returncode == 1 and "Traceback" not in told
    assert "task.format: expected onnx or torch_export or safetensors, found 'tflite'" in told
    assert "task.calibration_images: expected a number of at least 1, found 0" in told
    assert "task.accuracy: expected validation or test or null, found 'train'" in told
    assert "foreign.ckpt can't be read as a checkpoint" in told


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path) -> Path:
    run_dir = tmp_path_factory.mktemp("outputs") / "train" / "run"
    with pytest.MonkeyPatch.context() as monkeypatch:
        given = [*SMALL, "model=baseline", "calibration.temperature=true", "trainer.max_epochs=1"]
        run_here(*given, "callbacks.progress=null", data=tiny_data, run_dir=run_dir, monkeypatch=monkeypatch)
    return run_dir / "checkpoints" / "best.ckpt"


def test_a_model_folder(checkpoint: Path, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Written, loaded back with the same answers, and taken by whatever says that it takes one."""

    def job(name: str, *overrides: str) -> Path:
        run_dir = tmp_path / name
        given = [*overrides, *(["callbacks.progress=null", "callbacks.report.grid=0"] if name != "predict" else [])]
        run_here(*given, data=tiny_data, run_dir=run_dir, monkeypatch=monkeypatch)
        return run_dir

    written = job("export", "task=export", "task.format=safetensors", "task.licence=mit", f"ckpt_path={checkpoint}")
    folder = (written / "baseline").rename(tmp_path / "a folder, with 'quotes'")
    given = f"ckpt_path={quote(str(folder))}"
    assert (load_network(checkpoint).temperatures != 1).any()
    np.testing.assert_array_equal(open_engine(folder)(IMAGES)[0], open_engine(checkpoint)(IMAGES)[0])
    np.testing.assert_array_equal(open_engine(folder).facts.thresholds, open_engine(checkpoint).facts.thresholds)
    text = (folder / "config.json").read_text()
    assert str(tmp_path) not in text and str(checkpoint.parents[2]) not in text and str(tiny_data) not in text
    accuracy = json.loads((checkpoint.parents[1] / "report/summary.json").read_text())["accuracy"]
    assert f"| accuracy | {100 * accuracy:.2f} |" in (folder / "README.md").read_text()

    photos = tmp_path / "photos"
    photos.mkdir()
    image = sorted((tiny_data / "celeba/img_align_celeba").iterdir())[0]
    (photos / "face.jpg").write_bytes(image.read_bytes())
    run_dir = job("predict", "task=predict", "task.detect=false", f"images={quote(str(photos))}", given)
    (row,) = rows(run_dir / "predictions.csv")
    assert 0 < float(row["Smiling_probability"]) < 1

    # Frozen, it ends with the weights that it began with.
    tuned = [*SMALL, "model=baseline", f"backbone.pretrained={quote(str(folder))}", "backbone.freeze=all"]
    run_dir = job("tuned", *tuned, "trainer.max_epochs=1")
    before, after = load_network(folder), load_network(run_dir / "checkpoints/last.ckpt")
    state = before.network.backbone.state_dict()
    for name, tensor in state.items():
        assert name.endswith("num_batches_tracked") or torch.equal(tensor, after.network.backbone.state_dict()[name]), (
            name
        )

    for task in ("test", "calibrate", "audit"):
        with pytest.raises(
            ConfigError, match="is a model folder, which holds the network alone: task=predict"
        ) as error:
            job(task, f"task={task}", given)
        assert len(error.value.problems) == 1
    with pytest.raises(ConfigError, match="is a model folder"):
        job("train", *SMALL, "model=baseline", given)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"ckpt_path: the folder .*empty has no config\.json"):
        job("nothing", "task=export", f"ckpt_path={tmp_path}/empty")
    with pytest.raises(ConfigError, match="has the backbone 'test_resnet', not 'resnet18'"):
        job("other", *SMALL, "model=baseline", "backbone.name=resnet18", f"backbone.pretrained={quote(str(folder))}")


@pytest.mark.slow
@pytest.mark.parametrize("format", ["onnx", "torch_export"])
def test_a_model_folder_is_exported_again(
    format: str, checkpoint: Path, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "first" / "baseline"
    for number, keys in enumerate(
        (
            [f"ckpt_path={checkpoint}", "task.format=safetensors", "task.licence=mit"],
            [f"ckpt_path={folder}", f"task.format={format}", "task.preprocessing=outside", "data=celeba"],
        )
    ):
        run_dir = tmp_path / ("first", "second")[number]
        run_here("task=export", *keys, data=tiny_data, run_dir=run_dir, monkeypatch=monkeypatch)
    (file,) = (path for path in run_dir.iterdir() if path.suffix in (".onnx", ".pt2"))
    engine, expected = open_engine(file), open_engine(folder)
    np.testing.assert_allclose(engine(IMAGES)[0], expected(IMAGES)[0], atol=1e-5)
    assert engine.metadata["licence"] == "MIT" and not engine.metadata["preprocessing_inside"]  # type: ignore[attr-defined]
    assert f"Predictor('{file.name}')" in file.with_suffix(".md").read_text()
    config = yaml.safe_load((run_dir / "config.yaml").read_text())
    assert config["data"]["image_size"] == 64 and config["data"]["root"] is None


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["task.format=safetensors", "task.preprocessing=outside"], "task.preprocessing: a model folder holds"),
        (["task.format=torch_export", "task.int8=true"], "task.int8: there is an int8 version of ONNX files alone"),
        (["task.licence=nonsense"], "task.licence: Unknown license: 'nonsense'; expected an SPDX expression"),
    ],
)
def test_keys_that_do_not_go_together(
    keys: list[str],
    message: str,
    checkpoint: Path,
    tiny_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(ConfigError, match=message):
        run_here(
            "task=export",
            f"ckpt_path={checkpoint}",
            *keys,
            data=tiny_data,
            run_dir=tmp_path / "run",
            monkeypatch=monkeypatch,
        )


def _names_program(own: dict[str, Any]) -> None:
    own["config"]["data"] = {"_target_": "os.mkdir", "path": "made"}


def _names_none(own: dict[str, Any]) -> None:
    own["config"]["data"] = {"_target_": "gone.Data"}


def _climbs(own: dict[str, Any]) -> None:
    own["model"] = "../../evil.Model"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_names_program, "'os.mkdir' is no FaceDataModule, and was not called"),
        (_names_none, "was trained on a data set that is not there"),
        (lambda own: own["config"].pop("backbone"), "is damaged: its config lacks backbone"),
    ],
)
def test_a_strangers_folder(
    change: Callable[[dict[str, Any]], object],
    message: str,
    checkpoint: Path,
    tiny_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = ["task=export", "task.format=safetensors", "task.check=false"]
    first = tmp_path / "first"
    run_here(*given, f"ckpt_path={checkpoint}", data=tiny_data, run_dir=first, monkeypatch=monkeypatch)
    config = first / "baseline" / "config.json"
    content = json.loads(config.read_text())
    whole = json.dumps(content)
    change(content["faceattr_lightning"])
    config.write_text(json.dumps(content))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=message):
        run_here(
            *given, f"ckpt_path={first}/baseline", data=tiny_data, run_dir=tmp_path / "no", monkeypatch=monkeypatch
        )
    assert not (tmp_path / "made").exists()

    content = json.loads(whole)
    _climbs(content["faceattr_lightning"])
    config.write_text(json.dumps(content))
    inside = tmp_path / "in" / "side"
    run_here(*given, f"ckpt_path={first}/baseline", data=tiny_data, run_dir=inside, monkeypatch=monkeypatch)
    assert (inside / "_evil" / "model.safetensors").is_file()


def test_what_is_there_is_kept(
    checkpoint: Path, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run" / "baseline").mkdir(parents=True)
    given = ["task=export", "task.format=safetensors", f"ckpt_path={checkpoint}"]
    with pytest.raises(DataError, match="baseline: this is there already, and is not overwritten"):
        run_here(*given, data=tiny_data, run_dir=tmp_path / "run", monkeypatch=monkeypatch)
