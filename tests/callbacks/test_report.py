"""The report's files of runs of the real program."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from faceattr_lightning.attributes import FAIRFACE_AGE_GROUPS, FAIRFACE_RACES
from faceattr_lightning.callbacks.report import Report
from faceattr_lightning.data.fairface import FairFace
from faceattr_lightning.data.table import Split
from tests.data.writers import write_fairface
from tests.runs import SMALL, rows, run, run_dirs, summary


def test_files_of_slices_rules_and_diagrams(tiny_data: Path, tmp_path: Path) -> None:
    run(*SMALL, "model=baseline", "trainer.max_epochs=1", data=tiny_data, output=tmp_path)
    (run_dir,) = run_dirs(tmp_path)
    report = run_dir / "report"
    attributes = {row["attribute"]: row for row in rows(report / "attributes.csv")}

    # The sides of a slice together are the whole.
    sides = rows(report / "slices.csv")
    assert list(Counter(row["slice"] for row in sides)) == ["Male", "Young"]
    for name in ("Bald", "Smiling"):
        part = [row for row in sides if (row["slice"], row["attribute"]) == ("Male", name)]
        support = [int(row["support"]) for row in part]
        assert sum(support) == int(attributes[name]["support"])
        right = sum(float(row["accuracy"]) * count for row, count in zip(part, support, strict=True) if row["accuracy"])
        assert abs(right / sum(support) - float(attributes[name]["accuracy"])) < 1e-9

    bins = rows(report / "reliability.csv")
    assert Counter(row["attribute"] for row in bins) == dict.fromkeys(["(all)", *attributes], 15)
    error = sum(
        int(row["count"]) * abs(float(row["mean_probability"]) - float(row["positive_share"]))
        for row in bins
        if row["attribute"] == "Bald" and int(row["count"])
    )
    assert abs(error / int(attributes["Bald"]["support"]) - float(attributes["Bald"]["ece"])) < 1e-9

    rules = rows(report / "consistency.csv")
    assert rules[0]["attributes"] == "No_Beard, Goatee" and rules[-1]["attributes"] == "any of these"
    assert "\n5\\_o\\_Clock\\_Shadow & " in (report / "attributes.tex").read_text()
    facts = summary(run_dir)
    assert 0 < facts["gmacs"] < 1 and facts["peak_memory_mb"] > 100 and 0 <= facts["ece_pooled"] <= facts["ece"] + 1e-9
    page = (report / "report.html").read_text()
    for title in ("Calibration of the probabilities", "Slices", "Logical consistency"):
        assert f"<h2>{title}</h2>" in page


def test_what_was_trained_before_counts_as_training(tmp_path: Path) -> None:
    report, none = Report(str(tmp_path)), cast(Any, None)
    report.load_state_dict({"epochs": [0], "history": {}, "seconds": [10.0, 5.0]})
    report.on_train_start(none, cast(Any, SimpleNamespace(seconds_before_training=(1000.0, 700.0))))
    report.on_train_end(none, none)
    wall, cpu = report.state_dict()["seconds"]
    assert 1010 <= wall < 1100 and 705 <= cpu < 800


def test_an_unknown_slice_is_refused_before_training(tiny_data: Path, tmp_path: Path) -> None:
    overrides = ["model=baseline", "++callbacks.report.slices=[Male,Yuong]"]
    finished = run(*SMALL, *overrides, data=tiny_data, output=tmp_path, check=False)
    assert finished.returncode != 0 and "Traceback" not in finished.stderr + finished.stdout
    assert "callbacks.report.slices: " in finished.stderr and "Did you mean 'Young'?" in finished.stderr
    assert not list(tmp_path.rglob("*.ckpt"))


@pytest.mark.slow
def test_fairface_is_sliced_by_race_and_age(tmp_path: Path) -> None:
    write_fairface(tmp_path / "fairface", n_train=48, n_val=42)
    overrides = [*SMALL[1:], "data=fairface", "model=baseline", "trainer.max_epochs=1"]
    run(*overrides, data=tmp_path, output=tmp_path / "runs")
    (run_dir,) = run_dirs(tmp_path / "runs")
    sides = rows(run_dir / "report" / "slices.csv")
    module = FairFace(root=str(tmp_path / "fairface"))
    table = module.read_table()
    test = table.rows(Split.TEST)
    assert [(row["slice"], row["side"]) for row in sides] == [
        *(("age_group", name) for name in FAIRFACE_AGE_GROUPS),
        *(("race", name) for name in FAIRFACE_RACES),
    ]
    for row in sides:
        part = table.all_slices()[row["slice"]]
        assert int(row["support"]) == int((part.code[test] == part.sides.index(row["side"])).sum())
    # There is nothing that Male alone could contradict.
    assert not (run_dir / "report" / "consistency.csv").exists()
