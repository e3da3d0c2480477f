"""The main job through the real program: train, what it leaves, test it again, resume it."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from faceattr_lightning.attributes import CELEBA_ATTRIBUTES
from faceattr_lightning.checkpoint import CHECKPOINT_KEY, read_checkpoint
from faceattr_lightning.errors import ConfigError
from faceattr_lightning.models.dmm_cnn import DMMCNN
from faceattr_lightning.networks.backbone import Backbone, check_backbone, load_pretrained, normalisation
from faceattr_lightning.processes import quote
from faceattr_lightning.tasks.checkpoint import load_model
from faceattr_lightning.tasks.test import chosen_data
from tests.runs import MEASURED, SMALL, SMALL_DMM, assert_same_state, rows, run, run_dirs, state, summary

COLUMNS = [
    "attribute",
    "group",
    "support",
    "prevalence",
    "majority_accuracy",
    "accuracy",
    "accuracy_at_half",
    "gain",
    "balanced_accuracy",
    "f1",
    "average_precision",
    "ece",
]


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("outputs")


@pytest.fixture(scope="module")
def trained(output: Path, tiny_data: Path) -> Path:
    finished = run(*SMALL, *SMALL_DMM, data=tiny_data, output=output)
    run_dir = run_dirs(output)[0]
    # The last line is the path of the page, after the summary.
    assert finished.stdout.rstrip().endswith(f"Report: {run_dir}/report/report.html"), finished.stdout[-2000:]
    assert "majority_accuracy" in finished.stdout and "Warning" not in finished.stderr, finished.stderr
    return run_dir


def read_labels(data: Path) -> dict[int, list[list[int]]]:
    """Return the labels of the tiny CelebA by split, a list for each attribute."""
    split = dict(line.split() for line in (data / "celeba/list_eval_partition.txt").read_text().splitlines())
    found: dict[int, list[list[int]]] = {code: [[] for _ in CELEBA_ATTRIBUTES] for code in range(3)}
    for line in (data / "celeba/list_attr_celeba.txt").read_text().splitlines()[2:]:
        name, *codes = line.split()
        for column, code in enumerate(codes):
            found[int(split[name])][column].append(int(code))
    return found


def test_the_run_folder(trained: Path, tiny_data: Path) -> None:
    assert {path.name for path in (trained / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt", "previous.ckpt"}
    config = yaml.safe_load((trained / "config.yaml").read_text())
    assert config["data"]["image_size"] == 64 and config["paths"]["run_dir"] == str(trained)
    assert "${" not in (trained / "config.yaml").read_text()

    attributes = rows(trained / "report" / "attributes.csv")
    assert [row["attribute"] for row in attributes] == list(CELEBA_ATTRIBUTES)
    columns = list(attributes[0])
    assert columns[: len(COLUMNS)] == COLUMNS and "threshold" in columns
    assert columns[-2:] == ["ece_low", "ece_high"]
    labels = read_labels(tiny_data)
    for column, row in enumerate(attributes):
        assert int(row["support"]) == 24
        # The constant answer is the training split's majority class; the labels of the file are -1 and 1.
        answer = 1 if sum(labels[0][column]) > 0 else -1
        right = sum(label == answer for label in labels[2][column])
        assert float(row["majority_accuracy"]) == pytest.approx(right / 24), row["attribute"]
        assert float(row["gain"]) == pytest.approx(float(row["accuracy"]) - float(row["majority_accuracy"]))
        assert 0.01 <= float(row["threshold"]) <= 0.99

    for split in ("test", "validation"):
        found = summary(trained, split)
        table = rows(trained / "report" / ("attributes.csv" if split == "test" else "attributes_validation.csv"))
        assert found["split"] == split and found["seed"] == 0 and found["model"] == "DMMCNN"
        assert found["backbone"] == "test_resnet" and found["parameters"] > 300_000
        assert found["checkpoint"] == str(trained / "checkpoints" / "best.ckpt")
        for metric in ("accuracy", "accuracy_at_half", "gain", "f1", "average_precision", "ece", "balanced_accuracy"):
            defined = [float(row[metric]) for row in table if row[metric]]
            assert found[metric] == pytest.approx(sum(defined) / len(defined)), metric
        assert found["landmark_nme"] > 0 and found["images_per_second"] > 0
    page = (trained / "report" / "report.html").read_text()
    assert all(name in page for name in CELEBA_ATTRIBUTES) and page.count("data:image/jpeg") == 6


def test_weights_and_thresholds_are_logged_per_attribute(trained: Path) -> None:
    logged = rows(trained / "metrics.csv")
    for name in ("val/accuracy", "val/balanced_accuracy", "weight/Bald", "threshold/Young"):
        assert len([row for row in logged if row.get(name)]) == 2, name
    weights = [float(row["weight/Male"]) for row in logged if row["weight/Male"]]
    assert weights[0] == 1 and weights[1] != 1  # two windows have passed
    last = [row for row in logged if row["weight/Male"]][-1]
    assert sum(float(last[f"weight/{name}"]) for name in CELEBA_ATTRIBUTES) == pytest.approx(40, rel=1e-4)


def test_a_checkpoint_describes_itself(trained: Path) -> None:
    path = trained / "checkpoints" / "best.ckpt"
    described = torch.load(path, weights_only=True)[CHECKPOINT_KEY]
    assert described["attribute_names"] == list(CELEBA_ATTRIBUTES)
    assert {group: len(members) for group, members in described["groups"].items()} == {
        "objective": 24,
        "subjective": 16,
    }
    assert described["preprocessing"]["image_size"] == 64 and len(described["preprocessing"]["template"]) == 5
    assert described["config"]["data"]["batch_size"] == 8 and described["version"]

    model = DMMCNN.load_from_checkpoint(path)
    thresholds = [float(row["threshold"]) for row in rows(trained / "report" / "attributes.csv")]
    assert model.calibrator.thresholds.tolist() == pytest.approx(thresholds) == described["thresholds"]
    assert model.weighting.weights.tolist() == described["task_weights"]
    assert any(threshold != 0.5 for threshold in thresholds)


@pytest.mark.parametrize("ckpt_path", ["best", "FILE"])
def test_testing_the_checkpoint_reproduces_the_figures(
    ckpt_path: str, trained: Path, output: Path, tiny_data: Path
) -> None:
    best = trained / "checkpoints" / "best.ckpt"
    # The defaults of this call (dmm_cnn, resnet18, synthetic) give way to what the checkpoint says of itself.
    run("task=test", f"ckpt_path={best if ckpt_path == 'FILE' else 'best'}", data=tiny_data, output=output)
    tested = run_dirs(output, "test")[-1]
    for split, table in (("test", "attributes.csv"), ("validation", "attributes_validation.csv")):
        assert (tested / "report" / table).read_text() == (trained / "report" / table).read_text()
        ours, theirs = summary(tested, split), summary(trained, split)
        assert {**ours, **MEASURED} == {**theirs, **MEASURED}
    assert yaml.safe_load((tested / "config.yaml").read_text())["backbone"]["name"] == "test_resnet"


def test_a_backbone_begins_with_a_checkpoint(trained: Path) -> None:
    best = trained / "checkpoints" / "best.ckpt"
    backbone = Backbone("test_resnet", *normalisation("test_resnet"))
    load_pretrained(backbone, str(best))
    saved = state(trained, "best")
    for name, tensor in backbone.body.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(tensor, saved[f"network.backbone.body.{name}"]), name
    with pytest.raises(ConfigError, match="has the backbone 'test_resnet', not 'resnet18'"):
        check_backbone("resnet18", str(best))


def test_a_checkpoint_is_not_tested_on_what_it_does_not_fit(trained: Path, tiny_data: Path, tmp_path: Path) -> None:
    best = f"ckpt_path={trained}/checkpoints/best.ckpt"
    other = ["data.image_size=96", "data.crop=[0,0,178,178]", "data.attributes=[Smiling]"]
    finished = run("task=test", best, *other, data=tiny_data, output=tmp_path, check=False)
    assert finished.returncode == 1 and "Traceback" not in finished.stderr
    assert "data: its attributes are not the checkpoint's; it lacks 5_o_Clock_Shadow" in finished.stderr
    assert "data.image_size: the checkpoint was trained at 64 pixels, not 96" in finished.stderr
    assert "data.crop: the checkpoint was trained with [0, 20, 178, 198], not [0, 0, 178, 178]" in finished.stderr


MKDIR = {"_target_": "os.mkdir", "path": "made by a checkpoint"}


class Payload:
    """What a pickle file may do to whoever opens it."""

    def __reduce__(self) -> tuple[Any, tuple[str, ...]]:
        return os.putenv, ("FACEATTR_PAYLOAD", "ran")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content.pop(CHECKPOINT_KEY), "was not made by faceattr-lightning"),
        (lambda content: content.pop("loops"), "is damaged: it lacks loops"),
        (lambda content: content["state_dict"].popitem(), "does not fit the model of this version"),
        (lambda content: content[CHECKPOINT_KEY].update(model="gone.Model"), "does not fit the model of this version"),
        (lambda content: content[CHECKPOINT_KEY].update(version="99.0"), "made by version 99.0, which is newer"),
        (lambda content: content[CHECKPOINT_KEY].update(version="?"), "is damaged: its version is '\\?'"),
        (lambda content: content[CHECKPOINT_KEY].update(model="os.mkdir"), "'os.mkdir' is no AttributeModule"),
        (lambda content: content["hyper_parameters"].update(weighting=MKDIR), "'os.mkdir' is no TaskWeighting"),
        (lambda content: content["hyper_parameters"].update(calibration=MKDIR), "'os.mkdir' is no ThresholdCalibrator"),
        (lambda content: content.update(payload=Payload()), "could be a program, and was not run"),
    ],
)
def test_a_damaged_checkpoint_is_refused(
    damage: Callable[[dict[str, Any]], object], message: str, trained: Path, tmp_path: Path
) -> None:
    content = torch.load(trained / "checkpoints" / "last.ckpt", weights_only=True)
    damage(content)
    path = tmp_path / "damaged.ckpt"
    torch.save(content, path)
    with pytest.raises(ConfigError, match=message):
        load_model(path)


def test_a_truncated_checkpoint_is_refused_before_any_work(trained: Path, tiny_data: Path, tmp_path: Path) -> None:
    path = tmp_path / "cut.ckpt"
    path.write_bytes((trained / "checkpoints" / "last.ckpt").read_bytes()[:-5000])
    cut = [f"ckpt_path={path}", "data.batch_size=0"]
    finished = run(*SMALL, *SMALL_DMM, *cut, data=tiny_data, output=tmp_path / "outputs", check=False)
    assert finished.returncode == 1 and "Traceback" not in finished.stderr
    assert f"ckpt_path: {path} can't be read as a checkpoint" in finished.stderr
    assert "data.batch_size" in finished.stderr and "weights_only" not in finished.stderr


def test_a_changed_byte_is_noticed_and_the_one_before_named(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / "checkpoints", tmp_path, dirs_exist_ok=True)
    path = tmp_path / "last.ckpt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"damaged.*ckpt_path=previous takes the one before it"):
        read_checkpoint(path)
    assert read_checkpoint(tmp_path / "previous.ckpt")["epoch"] == 0


def test_the_same_seed_gives_the_same_weights(trained: Path, tiny_data: Path, tmp_path: Path) -> None:
    # Other numbers of workers must not matter either.
    run(*SMALL, *SMALL_DMM, "data.num_workers=2", data=tiny_data, output=tmp_path)
    again = run_dirs(tmp_path)[0]
    assert_same_state(state(again), state(trained))
    assert (again / "report" / "attributes.csv").read_text() == (trained / "report" / "attributes.csv").read_text()


STOP = "++callbacks.stop={_target_: tests.runs.StopAfter, epoch: 0}"


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path) -> Path:
    """The same run, ended after its first epoch."""
    output = tmp_path_factory.mktemp("stopped")
    run(*SMALL, *SMALL_DMM, STOP, data=tiny_data, output=output)
    return run_dirs(output)[0]


def test_a_resumed_run_goes_on_exactly(trained: Path, stopped: Path, tiny_data: Path, tmp_path: Path) -> None:
    assert torch.load(stopped / "checkpoints" / "last.ckpt", weights_only=True)["epoch"] == 0
    last = f"ckpt_path={stopped}/checkpoints/last.ckpt"
    run(*SMALL, *SMALL_DMM, last, "data.num_workers=2", data=tiny_data, output=tmp_path)
    resumed = run_dirs(tmp_path)[0]
    # Optimiser, schedule, order of samples, weights of the loss and thresholds: all of it, or the weights would differ.
    assert_same_state(state(resumed), state(trained))
    page = (resumed / "report" / "report.html").read_text()
    assert "Smiling" in page
    assert (resumed / "report/attributes.csv").read_text() == (trained / "report/attributes.csv").read_text()


def test_a_run_goes_on_with_what_it_was_begun_with(trained: Path, tiny_data: Path, tmp_path: Path) -> None:
    last = f"ckpt_path={trained}/checkpoints/last.ckpt"
    other = [
        "model=baseline",
        "seed=1",
        "data.batch_size=4",
        "++trainer.gradient_clip_val=1.0",
        "trainer.precision=32-true",
    ]
    finished = run(*SMALL, *other, last, data=tiny_data, output=tmp_path, check=False)
    assert finished.returncode == 1 and "Traceback" not in finished.stderr
    assert "model._target_: the checkpoint was trained with" in finished.stderr
    assert "weighting._target_: the checkpoint was trained with" in finished.stderr
    assert "seed: the checkpoint was trained with 0, not 1" in finished.stderr
    assert "data.batch_size: a step of all processes took 8 images, not 4" in finished.stderr
    assert "trainer.gradient_clip_val: the checkpoint was trained with 10.0, not 1.0" in finished.stderr
    assert "trainer.precision: the checkpoint was trained with 'auto', not '32-true'; repeat" in finished.stderr
    finished = run(*SMALL, *SMALL_DMM, last, "trainer.max_epochs=1", data=tiny_data, output=tmp_path, check=False)
    assert finished.returncode == 1 and "Traceback" not in finished.stderr
    assert "trainer.max_epochs: the checkpoint has 2 epochs behind it, not at most 1" in finished.stderr


@pytest.mark.slow
def test_mixed_precision(tiny_data: Path, tmp_path: Path) -> None:
    """As ``trainer=gpu`` has it: Lightning does not clip the gradients of a fused optimiser."""
    short = ["trainer.precision=bf16-mixed", "trainer.max_epochs=1"]
    run(*SMALL, *SMALL_DMM, *short, data=tiny_data, output=tmp_path)
    assert math.isfinite(summary(run_dirs(tmp_path)[0])["accuracy"])


@pytest.mark.slow
def test_missing_labels_change_nothing_but_their_own_attribute(tiny_data: Path, tmp_path: Path) -> None:
    """Without any label of one attribute the run still ends, and only that attribute's metrics are not defined."""
    data = tmp_path / "data"
    shutil.copytree(tiny_data, data)
    path = data / "celeba" / "list_attr_celeba.txt"
    lines = path.read_text().splitlines()
    blanked = [" ".join([(fields := line.split())[0], "0", *fields[2:]]) for line in lines[2:]]
    path.write_text("\n".join([*lines[:2], *blanked]) + "\n")
    # The formula as it stands: clipping would move the weight a little.
    plain = ["weighting.smoothing=0.0", "weighting.floor=0.0", "weighting.ceiling=inf"]
    run(*SMALL, *SMALL_DMM, *plain, "trainer.max_epochs=3", data=data, output=tmp_path / "outputs")
    run_dir = run_dirs(tmp_path / "outputs")[0]
    table = rows(run_dir / "report" / "attributes.csv")
    assert table[0]["attribute"] == "5_o_Clock_Shadow" and table[0]["support"] == "0"
    assert table[0]["accuracy"] == table[0]["f1"] == table[0]["ece"] == "" and float(table[0]["threshold"]) == 0.5
    assert all(row["accuracy"] for row in table[1:])
    last = state(run_dir)
    assert last["weighting.weights"].isfinite().all() and float(last["weighting.weights"][0]) == 1
    assert math.isfinite(summary(run_dir)["accuracy"])


@pytest.mark.slow
def test_weighting_every_k_steps(tiny_data: Path, tmp_path: Path) -> None:
    run(*SMALL, "model=baseline", "weighting=dmm", "weighting.every=3", data=tiny_data, output=tmp_path)
    last = state(run_dirs(tmp_path)[0])
    assert int(last["weighting.steps"]) == 12  # six steps an epoch
    assert not torch.equal(last["weighting.weights"], torch.ones(40))


def test_a_validation_batch_between_steps_leaves_training_as_it_was(
    stopped: Path, tiny_data: Path, tmp_path: Path
) -> None:
    """With a window longer than the run no weight changes: dropout and batch statistics must not notice either."""
    run(*SMALL, *SMALL_DMM, STOP, "weighting.every=100", data=tiny_data, output=tmp_path)
    # Weights are 1 in the first epoch of the other run too.
    beside, alone = (
        {name: tensor for name, tensor in state(path).items() if not name.startswith("weighting.")}
        for path in (run_dirs(tmp_path)[0], stopped)
    )
    assert_same_state(beside, alone)


@pytest.mark.slow
def test_uniform_and_fixed_stay_as_they_are(tiny_data: Path, tmp_path: Path) -> None:
    run(*SMALL, "model=baseline", "weighting=uniform", "calibration=fixed", data=tiny_data, output=tmp_path)
    last = state(run_dirs(tmp_path)[0])
    assert torch.equal(last["weighting.weights"], torch.ones(40))
    assert torch.equal(last["calibrator.thresholds"], torch.full((40,), 0.5))


@pytest.mark.slow
def test_fast_trainer_resumes_exactly(tiny_data: Path, tmp_path: Path) -> None:
    """Small images first and averaged weights: a run that is interrupted ends as one that is not."""
    fast = [*SMALL, *SMALL_DMM, "trainer=fast", "trainer.max_epochs=3"]
    run(*fast, data=tiny_data, output=tmp_path / "whole")
    stop = "++callbacks.stop={_target_: tests.runs.StopAfter, epoch: 0}"
    run(*fast, stop, data=tiny_data, output=tmp_path / "parts")
    last = run_dirs(tmp_path / "parts")[0] / "checkpoints" / "last.ckpt"
    run(*fast, f"ckpt_path={quote(str(last))}", data=tiny_data, output=tmp_path / "parts")
    assert_same_state(state(run_dirs(tmp_path / "whole")[0]), state(run_dirs(tmp_path / "parts")[1]))


def test_a_single_change_of_a_fused_member_leaves_its_other_keys() -> None:
    trained = {"_target_": "Fused", "members": {"lfwa": {"label_set": 73, "root": "/a"}, "adience": {"fold": 3}}}
    present = {"_target_": "Fused", "members": {"lfwa": {"label_set": 40, "root": "/b"}, "adience": {"fold": 0}}}
    found = chosen_data(present, trained, ["data=fused", "data.members.lfwa.root=/b", "++data.crop=null"])
    expected = {"lfwa": {"label_set": 73, "root": "/b"}, "adience": {"fold": 3}}
    assert found == {"_target_": "Fused", "members": expected}
    assert trained["members"] == {"lfwa": {"label_set": 73, "root": "/a"}, "adience": {"fold": 3}}


@pytest.mark.slow
def test_frozen_backbone_and_bfloat16(tiny_data: Path, tmp_path: Path) -> None:
    """A linear probe: only the head moves, under mixed precision with a fused optimiser too."""
    probe = [*SMALL, "model=baseline", "backbone.freeze=all", "trainer.precision=bf16-mixed", "trainer.max_epochs=1"]
    run(*probe, data=tiny_data, output=tmp_path)
    run(*probe, "seed=0", "model.optimizer.lr=0.5", data=tiny_data, output=tmp_path)
    first, second = (state(folder) for folder in run_dirs(tmp_path))
    moved = {name for name, tensor in first.items() if name.startswith("network.") and not tensor.equal(second[name])}
    assert moved == {"network.head.3.weight", "network.head.3.bias"}
