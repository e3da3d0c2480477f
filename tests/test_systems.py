"""The four systems through the real program: what their checkpoints and reports hold, tested and resumed."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from faceattr_lightning.data.table import Split
from faceattr_lightning.errors import ConfigError
from faceattr_lightning.models.mgmtn import read_mask_network
from faceattr_lightning.tasks.checkpoint import load_model
from tests.data.writers import write_adience
from tests.runs import MEASURED, SMALL, assert_same_state, rows, run, run_dirs, run_here, state, summary

SIZES = {
    "far_amtn": ["model=far_amtn", "model.width=16"],
    "mgmtn": ["model=mgmtn", "model.width=16", "model.mask_width=4", "model.mask_epochs=1"],
    "mtl_cnn": ["model=mtl_cnn", "model.width=16"],
}
STOP = "++callbacks.stop={_target_: tests.runs.StopAfter, epoch: 1}"


@pytest.mark.parametrize(
    "model", ["far_amtn", *(pytest.param(name, marks=pytest.mark.slow) for name in SIZES if name != "far_amtn")]
)
def test_a_run_goes_on_exactly_and_its_checkpoint_tests_alike(
    model: str, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, first, second, tested = (tmp_path / name for name in ("whole", "first", "second", "tested"))

    def here(run_dir: Path, *given: str) -> None:
        run_here(*given, data=tiny_data, run_dir=run_dir, monkeypatch=monkeypatch)

    three = [*SMALL, *SIZES[model], "trainer.max_epochs=3", "callbacks.progress=null"]
    here(whole, *three)
    here(first, *three, STOP)
    assert torch.load(first / "checkpoints/last.ckpt", weights_only=True)["epoch"] == 1
    here(second, *three, f"ckpt_path={first}/checkpoints/last.ckpt")
    assert_same_state(state(second), state(whole))
    if model == "far_amtn":
        assert len(state(whole)["weighting.weights"].unique()) > 1  # two epochs have passed
    here(tested, "task=test", f"ckpt_path={whole}/checkpoints/best.ckpt")
    assert (tested / "report/attributes.csv").read_text() == (whole / "report/attributes.csv").read_text()
    ours, theirs = summary(tested), summary(whole)
    assert {**ours, **MEASURED} == {**theirs, **MEASURED}
    assert type(load_model(whole / "checkpoints/best.ckpt")).__name__ == ours["model"]


@pytest.mark.slow
def test_masks_are_trained_first_kept_frozen_and_used_again(tiny_data: Path, tmp_path: Path) -> None:
    given = [*SMALL, *SIZES["mgmtn"], "trainer.max_epochs=1"]
    finished = run(*given, "model.mask_epochs=3", data=tiny_data, output=tmp_path / "one")
    losses = [float(loss) for loss in re.findall(r"Mask network, epoch \d: loss ([\d.]+)", finished.stdout)]
    assert len(losses) == 3 and losses[2] < losses[0]
    (one,) = run_dirs(tmp_path / "one")
    found = summary(one)
    groups = ("mouth", "ear", "lower_face", "cheeks", "nose", "eyes", "hair", "object")
    assert all(f"mask_iou_{group}" in found for group in groups)
    assert 0 < found["mask_iou"] < 1 and 0 < found["mask_iou_of_mean_face"] < 1
    assert "<h2>Masks</h2>" in (one / "report/report.html").read_text()
    masks = {name: tensor for name, tensor in state(one).items() if ".mask_network." in name}

    again = f"model.mask_checkpoint={one}/checkpoints/best.ckpt"
    finished = run(*given, again, "seed=1", data=tiny_data, output=tmp_path / "two")
    assert "Mask network" not in finished.stdout
    second = state(run_dirs(tmp_path / "two")[0])
    assert masks and all(torch.equal(second[name], tensor) for name, tensor in masks.items())

    # No annotation is needed then: data without landmarks, and images of another size, take the same masks.
    bare = tmp_path / "data"
    shutil.copytree(tiny_data, bare)
    (bare / "celeba/list_landmarks_align_celeba.txt").unlink()
    run(*given, again, "data.image_size=96", data=bare, output=tmp_path / "bare")
    kept = state(run_dirs(tmp_path / "bare")[0])
    assert all(torch.equal(kept[name], tensor) for name, tensor in masks.items() if not name.endswith("prior"))

    other = run(*given, again, "model.groups=ps_mcnn", data=tiny_data, output=tmp_path / "three", check=False)
    assert other.returncode == 1 and "Traceback" not in other.stderr
    assert "model.mask_checkpoint:" in other.stderr and "predicts masks for other groups (mouth; ear;" in other.stderr
    with pytest.raises(ConfigError, match="holds no mask network"):
        run(*SMALL, "model=baseline", "trainer.max_epochs=1", data=tiny_data, output=tmp_path / "four")
        read_mask_network(str(run_dirs(tmp_path / "four")[0] / "checkpoints/best.ckpt"), [])


@pytest.mark.slow
def test_masks_learned_jointly_change(tiny_data: Path, tmp_path: Path) -> None:
    # Strong enough not to be drowned by what the attributes want of the masks.
    given = ["model.joint=true", "model.mask_weight=1000", "data.augmentation=null", "trainer.max_epochs=4"]
    run(*SMALL, *SIZES["mgmtn"], *given, data=tiny_data, output=tmp_path)
    (run_dir,) = run_dirs(tmp_path)
    logged = [float(row["train/loss_masks"]) for row in rows(run_dir / "metrics.csv") if row.get("train/loss_masks")]
    assert len(logged) == 4 and logged[-1] < logged[0]


@pytest.mark.slow
def test_mask_pretraining_is_the_same_on_two_processes(tiny_data: Path, tmp_path: Path) -> None:
    """Sixteen samples a step, whoever has them: only the order of additions differs."""
    networks = []
    for devices, batch_size in ((1, 16), (2, 8)):
        output = tmp_path / str(devices)
        sizes = [f"trainer.devices={devices}", f"data.batch_size={batch_size}", "trainer.max_epochs=1"]
        run(*SMALL, *SIZES["mgmtn"], *sizes, data=tiny_data, output=output)
        networks.append({k: v for k, v in state(run_dirs(output)[0]).items() if ".mask_network." in k})
    alone, together = networks
    for name, tensor in alone.items():
        torch.testing.assert_close(together[name], tensor, atol=1e-3, rtol=1e-3)


@pytest.mark.slow
def test_fused_databases_are_reported_one_by_one(fused_data: Path, tmp_path: Path) -> None:
    given = [*SMALL[1:], *SIZES["mtl_cnn"], "data=fused", "data.sets=[celeba,lfwa,fairface]"]
    given += ["model.database_bias=true", "model.required_tasks=[age_group,gender,visual]"]
    run(*given, data=fused_data, output=tmp_path)
    (run_dir,) = run_dirs(tmp_path)
    found, report = summary(run_dir), run_dir / "report"
    assert set(found["databases"]) == {"celeba", "lfwa", "fairface"}
    assert found["age_accuracy"] == found["databases"]["fairface"]["age_accuracy"]
    assert "age_accuracy" not in found["databases"]["celeba"] and 0 <= found["age_one_off_accuracy"] <= 1
    # Only what a database labels stands in its table, with its own constant answer.
    tables = {name: rows(report / f"attributes_{name}.csv") for name in found["databases"]}
    assert [row["attribute"] for row in tables["fairface"]] == ["Male"] and len(tables["celeba"]) == 40
    with (fused_data / "fairface/fairface_label_val.csv").open() as file:
        tested = list(csv.DictReader(file))
    male = sum(row["gender"] == "Male" for row in tested) / len(tested)
    assert float(tables["fairface"][0]["prevalence"]) == pytest.approx(male)
    together = {row["attribute"]: int(row["support"]) for row in rows(report / "attributes.csv")}
    assert together["Male"] == sum(
        int(table[column]["support"])
        for table, column in ((tables["fairface"], 0), (tables["celeba"], 20), (tables["lfwa"], 20))
    )
    assert found["center_distance_ratio"] > 0 and found["gate_spread"] > 0 and found["correlations"]
    assert "test, fairface split" in (report / "report.html").read_text().lower()
    assert json.loads((report / "summary_validation.json").read_text())["databases"].keys() == found["databases"].keys()

    model = load_model(run_dir / "checkpoints/best.ckpt")
    described = torch.load(run_dir / "checkpoints/best.ckpt", weights_only=True)["faceattr_lightning"]
    assert described["age_groups"][0] == "0-2" and model.databases == ["celeba", "lfwa", "fairface"]  # type: ignore[attr-defined]
    run("task=test", "ckpt_path=best", data=fused_data, output=tmp_path)
    (tested_dir,) = run_dirs(tmp_path, "test")
    for name in ("attributes", *(f"attributes_{name}" for name in tables)):
        assert (tested_dir / f"report/{name}.csv").read_text() == (report / f"{name}.csv").read_text()


@pytest.mark.slow
def test_a_member_alone_has_its_own_bias(fused_data: Path, tmp_path: Path) -> None:
    """Alone, LFWA is the first data set; in training it was the second."""
    given = [*SMALL[1:], *SIZES["mtl_cnn"], "data=fused", "data.sets=[celeba,lfwa]", "model.database_bias=true"]
    run(*given, "model.optimizer.lr=0.05", data=fused_data, output=tmp_path)
    (run_dir,) = run_dirs(tmp_path)
    best = run_dir / "checkpoints/best.ckpt"
    biases = state(run_dir, "best")["network.database_bias"]
    assert (biases[0] - biases[1]).abs().max() > 0.05
    given = ["task=test", f"ckpt_path={best}", "data=lfwa", "data.image_size=64"]
    run(*given, data=fused_data, output=tmp_path)
    (tested,) = run_dirs(tmp_path, "test")
    alone, member = rows(tested / "report/attributes.csv"), rows(run_dir / "report/attributes_lfwa.csv")
    for metric in ("accuracy", "average_precision", "ece"):
        assert [row[metric] for row in alone] == [row[metric] for row in member]


@pytest.mark.slow
def test_other_age_groups_are_no_test(fused_data: Path, tmp_path: Path) -> None:
    write_adience(tmp_path / "data/adience", people=15)
    short = [*SMALL[1:], "model=baseline", "trainer.max_epochs=1"]
    run(*short, "data=fairface", "data.validation_fraction=0.3", data=fused_data, output=tmp_path)
    given = ["task=test", "ckpt_path=best", "data=adience", "data.image_size=64"]
    finished = run(*given, data=tmp_path / "data", output=tmp_path, check=False)
    assert finished.returncode == 1 and "Traceback" not in finished.stderr
    assert "data: its age groups (0-2, 4-6, " in finished.stderr


@pytest.mark.slow
def test_weights_of_groups_are_those_of_both_processes(tiny_data: Path, tmp_path: Path) -> None:
    weights = []
    for devices, batch_size in ((1, 16), (2, 8)):
        output = tmp_path / str(devices)
        sizes = [f"trainer.devices={devices}", f"data.batch_size={batch_size}", "trainer.max_epochs=3"]
        plain = ["data.augmentation=null", "model.dropout=0.0", "model.optimizer.lr=1e-6"]
        run(*SMALL, *SIZES["far_amtn"], *sizes, *plain, data=tiny_data, output=output)
        weights.append(state(run_dirs(output)[0])["weighting.weights"])
    # Batch statistics differ by process; the weights hardly do.
    torch.testing.assert_close(weights[0], weights[1], atol=0.05, rtol=0)
    assert len(weights[0].unique()) > 1


@pytest.mark.slow
def test_a_model_of_landmarks_without_landmarks(tiny_data: Path, tmp_path: Path) -> None:
    """Data without a landmark file trains as well; the report says nothing of what is not known."""
    data = tmp_path / "data"
    shutil.copytree(tiny_data, data)
    (data / "celeba/list_landmarks_align_celeba.txt").unlink()
    run(*SMALL, *SIZES["mgmtn"], "trainer.max_epochs=1", data=data, output=tmp_path / "outputs")
    found = summary(run_dirs(tmp_path / "outputs")[0])
    assert found.get("mask_iou") is None and len(Split) == 3
