"""Every model with every data set, and every pair of model, data set, weighting and calibration: one step of each."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from tests.data.writers import write_adience, write_celeba, write_fairface, write_folder, write_lfwa
from tests.runs import ROOT, SMALL_DMM, rows, run, run_dirs, run_here, state, summary

CONF = ROOT / "conf"
SIZES: dict[str, list[str]] = {
    "baseline": [],
    "dmm_cnn": SMALL_DMM[1:],
    "far_amtn": ["model.width=16"],
    "mgmtn": ["model.width=16", "model.mask_width=4", "model.mask_epochs=1"],
    "mtl_cnn": ["model.width=16"],
}
DATA: dict[str, list[str]] = {
    "synthetic": ["data.train_size=80", "data.validation_size=50", "data.test_size=50"],
    "celeba": [],
    "lfwa": [],
    "fairface": [],
    "adience": [],
    "folder": [],
    "fused": ["data.sets=[celeba,lfwa,fairface]"],
}


def options(group: str) -> list[str]:
    """Return the names of the files of a group, so that a new one is in the matrix at once."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


MODELS, SETS, WEIGHTINGS, CALIBRATIONS = map(options, ("model", "data", "weighting", "calibration"))
# Every pair of options of two factors: each data set with each weighting, the other two factors go round.
CASES = [
    (MODELS[(d + w) % len(MODELS)], data, weighting, CALIBRATIONS[(d + 2 * w) % len(CALIBRATIONS)])
    for (d, data), (w, weighting) in itertools.product(enumerate(SETS), enumerate(WEIGHTINGS))
]
# The rest repeats a model with a data set.
FIRST = {(model, data): (model, data, *rest) for model, data, *rest in reversed(CASES)}
MARKED = [case if case in FIRST.values() else pytest.param(*case, marks=pytest.mark.slow) for case in CASES]


def test_the_matrix_is_pairwise() -> None:
    assert set(MODELS) == set(SIZES) and set(SETS) == set(DATA)
    factors = (MODELS, SETS, WEIGHTINGS, CALIBRATIONS)
    for first, second in itertools.combinations(range(4), 2):
        pairs = {(case[first], case[second]) for case in CASES}
        assert pairs == set(itertools.product(factors[first], factors[second]))


@pytest.fixture(scope="module")
def all_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny copy of every data set, in its official format."""
    folder = tmp_path_factory.mktemp("all")
    write_celeba(folder / "celeba", n=48)
    write_lfwa(folder / "lfwa", people=24)
    write_fairface(folder / "fairface", n_train=40, n_val=12)
    write_adience(folder / "adience", people=25)
    write_folder(folder / "folder", n=48)
    return folder


def overrides(model: str, data: str, weighting: str, calibration: str, folder: Path) -> list[str]:
    drawn = [f"data.cache_dir='{folder}/cache'"] if data == "synthetic" else []
    return [
        f"model={model}",
        f"data={data}",
        f"weighting={weighting}",
        f"calibration={calibration}",
        "debug=fast",
        "backbone.name=test_resnet",
        "data.image_size=64",
        "data.batch_size=8",
        "callbacks.report.grid=2",
        "callbacks.progress=null",
        *SIZES[model],
        *DATA[data],
        *drawn,
    ]


@pytest.mark.parametrize(("model", "data", "weighting", "calibration"), MARKED)
def test_one_step(
    model: str,
    data: str,
    weighting: str,
    calibration: str,
    all_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In this process: a start of the program for each would take minutes."""
    given = overrides(model, data, weighting, calibration, all_data)
    run_here(*given, data=all_data, run_dir=tmp_path / "run", monkeypatch=monkeypatch)
    found = summary(tmp_path / "run")
    attributes = {row["attribute"] for row in rows(tmp_path / "run" / "report" / "attributes.csv")}
    assert "Male" in attributes or data == "folder"
    # The one batch that is tested of the fused sets is CelebA's.
    assert ("age_accuracy" in found) == (data in ("fairface", "adience"))
    assert list(found.get("databases", {})) == (["celeba"] if data == "fused" else [])
    learned = model == "mgmtn" and data in ("synthetic", "celeba", "fused")
    assert ("mask_iou" in found) == learned
    assert state(tmp_path / "run")["weighting.weights"].isfinite().all()


@pytest.mark.parametrize(
    "model", [pytest.param(name, marks=pytest.mark.slow) for name in ("mtl_cnn", "dmm_cnn", "far_amtn", "mgmtn")]
)
def test_two_processes(model: str, all_data: Path, tmp_path: Path) -> None:
    """On fused data, where labels are missing and a rank may have none of one."""
    given: list[Any] = [*overrides(model, "fused", "dws", "dmm", all_data), "callbacks.report.grid=0"]
    given += ["trainer.devices=2", "trainer.max_epochs=3"]
    given += [f"trainer.limit_{split}_batches={limit}" for split, limit in (("train", 2), ("val", 1.0), ("test", 1.0))]
    run(*given, data=all_data, output=tmp_path)
    (run_dir,) = run_dirs(tmp_path)
    found = summary(run_dir)
    assert set(found["databases"]) == {"celeba", "lfwa", "fairface"}
    assert all(tensor.isfinite().all() for name, tensor in state(run_dir).items() if "before" not in name)
