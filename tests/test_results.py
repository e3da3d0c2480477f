"""``task=results``: rows are run, recorded and resumed, and the committed page says what the records say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from faceattr_lightning.errors import ConfigError, DataError
from faceattr_lightning.report.results import Published, ResultsTable, fingerprints, read_row, render_results
from faceattr_lightning.tasks import results as task
from faceattr_lightning.tasks.compare import Run, compare_entries
from tests.runs import ROOT, SMALL, run_here, summary

ROWS = [" ".join([*SMALL, "trainer.max_epochs=1", f"model={model}"]) for model in ("baseline", "far_amtn")]


def plan() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "conf/task/results.yaml").read_text())
    return loaded


def test_the_committed_page_says_what_is_recorded() -> None:
    tables = [ResultsTable(**table) for table in plan()["tables"]]
    published = [Published(**one) for one in plan()["published"]]
    folder = ROOT / "experiments/results"
    rows = {row: read_row(folder / f"{task.slug(row)}.json", row) for table in tables for row in table.rows}
    reading = (ROOT / "experiments/READING.md").read_text()
    page = (ROOT / "experiments/RESULTS.md").read_text()
    assert page == render_results(tables, rows, published, reading)
    measured = page[page.index("| `python run.py` |") :]
    assert len({line.count("|") for line in measured.splitlines() if line.startswith("|")}) == 1
    planned = {f"{task.slug(row)}.json" for row in rows}
    assert {path.name for path in folder.glob("*.json")} <= planned


def test_records_hold_no_path_of_a_machine() -> None:
    for path in (ROOT / "experiments/results").glob("*.json"):
        for run in json.loads(path.read_text())["runs"].values():
            assert not [key for key, value in run.items() if isinstance(value, str) and Path(value).is_absolute()]


def test_every_row_names_an_experiment() -> None:
    for row in (row for table in plan()["tables"] for row in table["rows"]):
        experiment, *_ = row.removeprefix("experiment=").split()
        assert (ROOT / "experiments" / f"{experiment}.yaml").is_file(), row


def test_what_is_published_is_comparable_only_on_the_official_splits() -> None:
    row, published = "experiment=cpu_dmm_cnn_celeba", [Published("dmm_cnn", "celeba", 91.7, "a paper")]
    run = dict.fromkeys(("majority_accuracy", "accuracy_at_half", "accuracy", "balanced_accuracy"), 0.5)
    run |= dict.fromkeys(("f1", "average_precision", "training_cpu_seconds", "parameters", "gmacs"), 1.0)
    run |= {"data": "celeba", "machine": "a machine", "git_commit": "0123456789-dirty"}
    found = {}
    for name, count in (("official", 162_770), ("subset", 4_560)):
        images = {"train_images": count, "validation_images": 19_867, "test_images": 19_962}
        record = {"row": row, "runs": {"0": run | images}, "resamples": {}, "figures": {}, "differences": {}}
        page = render_results([ResultsTable("CelebA", [row])], {row: record}, published, "")  # type: ignore[dict-item]
        found[name] = page.splitlines()[-1]
    assert "| 91.70 |" in found["official"] and "| 91.70, not comparable |" in found["subset"]
    assert "0123456-dirty" in found["official"]
    not_run = {"row": row, "runs": {}, "resamples": {}, "figures": {}, "differences": {}}
    page = render_results([ResultsTable("CelebA", [row])], {row: not_run}, published, "")  # type: ignore[dict-item]
    assert "| 91.70, not comparable |" in page.splitlines()[-1]


def test_figures_of_other_runs_are_not_shown() -> None:
    row, first = "experiment=b", "experiment=a"
    keys = ("majority_accuracy", "accuracy_at_half", "accuracy", "balanced_accuracy", "f1", "average_precision")
    run = dict.fromkeys((*keys, "training_cpu_seconds", "parameters", "gmacs"), 0.5)
    run |= {"machine": "a machine", "git_commit": "0123456789 abcdefabcd"}
    known = {"value": 0.5, "low": 0.49, "high": 0.51, "verdict": "worse"}
    records: Any = {
        name: {"row": name, "runs": {"0": run}, "resamples": {}, "figures": {}, "differences": {}}
        for name in (first, row)
    }
    marks = [fingerprints(records[name]) for name in (first, row)]
    records[row]["figures"] = {"runs": marks[1], "accuracy_at_half": known}
    records[row]["differences"] = {first: {"runs": marks, "accuracy_at_half": known}}

    def shown() -> str:
        return render_results([ResultsTable("", [first, row])], records, [], "").splitlines()[-1]

    assert "50.00 [49.00, 51.00]" in shown() and "**worse**" in shown() and "| 0123456 abcdefa |" in shown()
    records[first]["runs"]["0"] = {**run, "accuracy_at_half": 0.6}
    assert "50.00 [49.00, 51.00]" in shown() and "worse" not in shown()
    records[row]["runs"]["1"] = {**run, "accuracy_at_half": 0.9}
    assert "| 70.00 |" in shown() and "[49.00" not in shown()


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    file = tmp_path / "row.json"
    file.write_text("{")
    with pytest.raises(DataError, match=r"row\.json: no record of a row"):
        read_row(file, "experiment=x")
    file.write_text(json.dumps({"row": "experiment=y", "runs": {}, "resamples": {}, "figures": {}, "differences": {}}))
    with pytest.raises(DataError, match=r"a record of experiment=y, not of experiment=x"):
        read_row(file, "experiment=x")


def test_a_text_that_no_row_holds_is_refused(tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"task\.only: no row holds cpu_dnn"):
        run_here("task=results", "task.only=[cpu_dnn]", data=tiny_data, run_dir=tmp_path / "x", monkeypatch=monkeypatch)


def test_a_table_without_rows_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"task\.tables: no rows in Empty"):
        task.results({}, [], tables=[{"title": "Empty", "rows": []}], published=[])


@pytest.mark.slow
def test_rows_are_run_recorded_and_not_run_again(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiments = tmp_path / "experiments"
    (experiments / "results").mkdir(parents=True)
    monkeypatch.setattr(task, "EXPERIMENTS", experiments)
    missing = "experiment=cpu_mgmtn_lfwa data.landmark_file=FILE"
    wrong = f"{ROWS[0]} data.root=/nowhere"
    tables = [{"title": "Tiny", "rows": ROWS}, {"title": "Not here", "rows": [missing, wrong]}]
    config = {"paths": {"output_dir": str(tmp_path / "outputs")}}
    monkeypatch.setenv("FACEATTR_DATA", str(tiny_data))

    def results(**arguments: Any) -> str:
        task.results(config, [], tables=tables, published=[], **arguments)
        return (experiments / "RESULTS.md").read_text()

    with pytest.raises(DataError, match=r"(?s)data\.root=/nowhere seed=0: .*no folder /nowhere"):
        results()
    page = (experiments / "RESULTS.md").read_text()
    assert page.count("not run yet") == 2
    run_dir = tmp_path / "outputs/experiments" / task.slug(ROWS[0]) / "seed_0"
    recorded = json.loads((experiments / "results" / f"{task.slug(ROWS[0])}.json").read_text())
    expected = {key: value for key, value in summary(run_dir).items() if key != "checkpoint"}
    assert recorded["runs"] == {"0": expected}
    assert expected["precision"] == "32-true" and "| 32-true |" in page
    assert f"{100 * expected['accuracy_at_half']:.2f} [" in page
    other = json.loads((experiments / "results" / f"{task.slug(ROWS[1])}.json").read_text())
    change = other["differences"][ROWS[0]]["accuracy_at_half"]
    half = other["runs"]["0"]["accuracy_at_half"] - expected["accuracy_at_half"]
    assert change["value"] == pytest.approx(half, abs=1e-6) and change["low"] <= change["value"] <= change["high"]
    # What task=compare says of the same folders.
    folders = [tmp_path / "outputs/experiments" / task.slug(row) / "seed_0" for row in ROWS]
    _, entry = compare_entries({str(one): [Run.read(one)] for one in folders}, 0.95, 2000)
    expected_change = entry.differences["accuracy_at_half"]
    assert change["low"] == pytest.approx(float(expected_change.low), abs=1e-6)
    assert change["high"] == pytest.approx(float(expected_change.high), abs=1e-6)

    # On another machine, which has the records alone.
    file = experiments / "results" / f"{task.slug(ROWS[1])}.json"
    file.write_text(json.dumps({**other, "differences": {}}))
    folders[0].rename(tmp_path / "elsewhere")
    tables.pop()
    results(run=False)
    assert json.loads(file.read_text())["differences"] == other["differences"]
    other["resamples"]["0"]["tested"] = "0123456789ab"
    file.write_text(json.dumps({**other, "differences": {}}))
    with pytest.raises(DataError, match="were tested on other images, labels or attributes"):
        results(run=False)
    file.write_text(json.dumps({**other, "resamples": {}, "differences": {}}))
    assert "undecided" not in results(run=False)
    file.unlink()
    (tmp_path / "elsewhere").rename(folders[0])

    before = (run_dir / "status.json").stat().st_mtime_ns
    page = results(only=["model=baseline"], seeds=[0, 1])
    assert (run_dir / "status.json").stat().st_mtime_ns == before
    assert f"| `{ROWS[0]}` | 2 |" in page
