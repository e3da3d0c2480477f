"""``task=export`` through the program."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import yaml

from tests.runs import SMALL, run, run_dirs


@pytest.mark.slow
def test_a_trained_checkpoint_is_exported(tiny_data: Path, tmp_path: Path) -> None:
    run(*SMALL, "model=baseline", "trainer.max_epochs=1", data=tiny_data, output=tmp_path)
    keys = ["task.int8=true", "task.calibration_images=6", "task.accuracy=test"]
    finished = run("task=export", "ckpt_path=last", *keys, data=tiny_data, output=tmp_path)
    (run_dir,) = run_dirs(tmp_path, "export")
    files = [run_dir / "baseline.onnx", run_dir / "baseline.int8.onnx"]
    assert sorted(path.name for path in run_dir.iterdir()) == sorted(
        ["config.yaml", "run.log", *(file.name for file in files)]
    )
    sessions = [onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"]) for file in files]
    image = np.zeros((3, 3, 64, 64), dtype=np.uint8)
    assert all(session.run(["decisions"], {"image": image})[0].shape == (3, 40) for session in sessions)
    assert files[1].stat().st_size < 0.5 * files[0].stat().st_size
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
    assert "task.format: expected onnx, found 'tflite'" in told
    assert "task.calibration_images: expected a number of at least 1, found 0" in told
    assert "task.accuracy: expected validation or test or null, found 'train'" in told
    assert "foreign.ckpt can't be read as a checkpoint" in told
