"""Comparing runs, and calibrating a checkpoint anew, through the real program."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score

from faceattr_lightning.checkpoint import CHECKPOINT_KEY
from faceattr_lightning.errors import ConfigError, DataError
from faceattr_lightning.metrics.saved_predictions import SavedPredictions
from faceattr_lightning.metrics.thresholds import best_thresholds
from faceattr_lightning.tasks.compare import Run, compare, describe, find_runs, group
from tests.runs import SMALL, rows, run, run_dirs, run_here, summary

JOB = [*SMALL, "model=baseline", "trainer.max_epochs=1", "callbacks.progress=null", "callbacks.report.grid=0"]


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path) -> Path:
    """Two weightings with two seeds each, without a start of the program for each."""
    folder = tmp_path_factory.mktemp("sweep")
    with pytest.MonkeyPatch.context() as monkeypatch:
        for job, (weighting, seed) in enumerate((w, s) for s in (0, 1) for w in ("uniform", "inverse_prevalence")):
            given = [*JOB, f"weighting={weighting}", f"seed={seed}", "calibration=fixed"]
            run_here(*given, data=tiny_data, run_dir=folder / str(job), monkeypatch=monkeypatch)
    return folder


def test_a_run_leaves_its_predictions(sweep: Path) -> None:
    saved = SavedPredictions.read(sweep / "0" / "report" / "predictions.npz")
    count = len(saved.files)
    assert saved.predictions.logits.shape == (count, 40) and saved.predictions.labels.shape == (count, 40)
    assert saved.files[0].endswith(".jpg") and saved.config["seed"] == 0 and len(saved.identity) == count
    right = (saved.predictions.probabilities >= 0.5) == (saved.predictions.labels == 1)
    assert float(right.double().mean()) == pytest.approx(summary(sweep / "0")["accuracy_at_half"])


def test_a_sweep_is_compared(sweep: Path, tiny_data: Path, tmp_path: Path) -> None:
    finished = run("task=compare", f"runs=[{sweep}]", "task.replicates=200", data=tiny_data, output=tmp_path)
    assert "weighting=inverse_prevalence" in finished.stdout
    (folder,) = run_dirs(tmp_path, "compare")
    found = rows(folder / "comparison.csv")
    means = {(row["entry"], row["metric"]): row for row in found if row["attribute"] == "(mean)"}
    by_hand = [summary(sweep / str(job))["balanced_accuracy"] for job in range(4)]
    uniform = float(means["weighting=uniform", "balanced_accuracy"]["value"])
    other = means["weighting=inverse_prevalence", "balanced_accuracy"]
    assert uniform == pytest.approx((by_hand[0] + by_hand[2]) / 2, abs=1e-6)
    assert float(other["difference"]) == pytest.approx((by_hand[1] + by_hand[3]) / 2 - uniform, abs=1e-6)
    assert float(other["difference_low"]) <= float(other["difference"]) <= float(other["difference_high"])
    excludes = float(other["difference_low"]) > 0 or float(other["difference_high"]) < 0
    assert (other["verdict"] != "undecided") == excludes and other["seeds"] == "2"
    page = (folder / "comparison.md").read_text()
    assert "| weighting=uniform | 2 |" in page and "4 runs" in page
    assert r"\begin{tabular}" in (folder / "comparison.tex").read_text()


def test_what_can_not_be_compared_is_refused(sweep: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="found none"):
        find_runs(None)
    with pytest.raises(ConfigError, match=r"nowhere: there is no such folder"):
        find_runs([str(tmp_path / "nowhere")])
    with pytest.raises(ConfigError, match="no finished run is in it"):
        find_runs([str(tmp_path)])
    with pytest.raises(ConfigError, match="one run alone"):
        find_runs([str(sweep / "0")])
    config = {"paths": {"run_dir": str(tmp_path)}, "runs": [f"{sweep}/0", f"{sweep}/2"]}
    with pytest.raises(ConfigError, match="differ in the seed alone"):
        compare(config, [])

    saved = SavedPredictions.read(sweep / "1" / "report" / "predictions.npz")
    copied = tmp_path / "copied"
    other = copied / "report"
    other.mkdir(parents=True)
    (other / "summary.json").write_text("{}")
    config["runs"] = [f"{sweep}/0", f"{sweep}/1", str(copied)]
    with pytest.raises(DataError, match=r"there is no such file; .* task=test"):
        compare(config, [])
    saved.write(other / "predictions.npz")
    with pytest.raises(ConfigError, match="has the seed 0 of"):
        compare(config, [])
    saved.predictions.labels[0, 0] = 1 - saved.predictions.labels[0, 0]
    saved.write(other / "predictions.npz")
    with pytest.raises(ConfigError, match="was tested with other labels than"):
        compare(config, [])
    (other / "predictions.npz").write_bytes((other / "predictions.npz").read_bytes()[:1000])
    with pytest.raises(DataError, match="can't be read as a run's predictions"):
        compare(config, [])


def test_averaged_weights_are_another_method(sweep: Path) -> None:
    first = Run.read(sweep / "0")
    other = dataclasses.replace(first.saved, config=copy.deepcopy(first.saved.config))
    other.config["callbacks"]["average"] = {"_target_": "somewhere.Average", "decay": 0.9}
    entries = group([first, Run(sweep / "averaged", other)])
    assert list(entries) == ["callbacks.average=none", "callbacks.average=Average"]


def test_names_say_what_differs() -> None:
    methods = [
        {"model._target_": "a.B", "model.width": 1, "calibration._target_": "c.Fixed"},
        {"model._target_": "a.B", "model.width": 1, "calibration._target_": "c.Optimal", "calibration.metric": "f1"},
        {"model._target_": "a.B", "model.width": 1, "calibration._target_": "c.Optimal", "calibration.metric": "mcc"},
    ]
    assert describe(methods) == [
        "calibration=Fixed",
        "calibration=Optimal (metric=f1)",
        "calibration=Optimal (metric=mcc)",
    ]


def test_a_checkpoint_is_calibrated_anew(
    sweep: Path, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = sweep / "0" / "checkpoints" / "best.ckpt"
    before = source.read_bytes()
    given = ["calibration=optimal", "calibration.metric=balanced_accuracy", "callbacks.report.grid=0"]
    folder = tmp_path / "anew"
    given = ["task=calibrate", f"ckpt_path={source}", *given]
    run_here(*given, data=tiny_data, run_dir=folder, monkeypatch=monkeypatch)
    assert source.read_bytes() == before
    content = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)
    own = content[CHECKPOINT_KEY]
    assert own["config"]["calibration"]["metric"] == "balanced_accuracy" and own["config"]["seed"] == 0
    validation = SavedPredictions.read(folder / "report" / "predictions_validation.npz")
    scores = validation.predictions.probabilities
    best = best_thresholds(scores, validation.predictions.labels, "balanced_accuracy")
    expected = torch.where(best.isnan(), 0.5, best)
    torch.testing.assert_close(torch.tensor(own["thresholds"]), expected)
    torch.testing.assert_close(content["state_dict"]["calibrator.thresholds"], expected)
    # Its test is that of the new thresholds, on the old logits.
    saved = SavedPredictions.read(folder / "report" / "predictions.npz")
    old = SavedPredictions.read(sweep / "0" / "report" / "predictions.npz")
    torch.testing.assert_close(saved.predictions.logits, old.predictions.logits)
    found = {row["attribute"]: row for row in rows(folder / "report" / "attributes.csv")}
    truth, answers = saved.predictions.labels.numpy(), (saved.predictions.probabilities >= expected.double()).numpy()
    for column, name in enumerate(saved.attribute_names):
        if len(np.unique(truth[:, column])) == 2:
            score = balanced_accuracy_score(truth[:, column], answers[:, column])
            assert float(found[name]["balanced_accuracy"]) == pytest.approx(score)
    # It is a checkpoint like any other, and a run that can be compared.
    given = ["task=test", f"ckpt_path={folder}/checkpoints/best.ckpt"]
    run_here(*given, data=tiny_data, run_dir=tmp_path / "tested", monkeypatch=monkeypatch)
    assert rows(tmp_path / "tested/report/attributes.csv") == rows(folder / "report/attributes.csv")
    given = ["task=compare", f"runs=[{sweep}/0,{folder}]"]
    run_here(*given, data=tiny_data, run_dir=tmp_path / "compared", monkeypatch=monkeypatch)
    assert "calibration=optimal" in (tmp_path / "compared/comparison.md").read_text()
    assert json.loads((folder / "report" / "summary.json").read_text())["split"] == "test"


def test_a_prevalence_of_no_attribute_is_seen_before_the_work(
    sweep: Path, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ["task=calibrate", f"ckpt_path={sweep}/0/checkpoints/best.ckpt", "calibration=optimal"]
    given.append("calibration.prevalence={Smilling:0.4}")
    with pytest.raises(ConfigError, match=r"'Smilling' is not among .* Did you mean 'Smiling'\?"):
        run_here(*given, data=tiny_data, run_dir=tmp_path / "anew", monkeypatch=monkeypatch)
