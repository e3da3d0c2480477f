"""Steps that are not finite: the run stops with their images named, or goes on as if the step had not been."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from faceattr_lightning.data.celeba import CelebA
from faceattr_lightning.data.table import Split
from faceattr_lightning.errors import FaceAttrError
from tests.faults.callbacks import Remember
from tests.runs import SMALL, assert_same_state, rows, run, run_dirs, run_here, state

# Six steps of eight images an epoch. The weighting remembers the training losses of an epoch.
RUN = [*SMALL, "model=baseline", "weighting=dws", "trainer.max_epochs=3"]
SKIP = "callbacks.non_finite.action=skip"


def poison(epoch: int | None, *batches: int, **options: object) -> str:
    node = {
        "_target_": "tests.faults.callbacks.Poison",
        "epoch": "null" if epoch is None else epoch,
        "batches": list(batches),
        **options,
    }
    return f"++callbacks.poison={{{', '.join(f'{name}: {value}' for name, value in node.items())}}}"


def leave_out(epoch: int, first: int, last: int) -> str:
    return (
        f"++callbacks.out={{_target_: tests.faults.callbacks.LeaveOut, epoch: {epoch}, first: {first}, last: {last}}}"
    )


def images_of_step(data: Path, epoch: int, step: int, size: int = 8) -> tuple[list[int], list[str]]:
    """Compute the rows and files of a step from the published order: Philox of (seed, epoch)."""
    module = CelebA(root=str(data / "celeba"), image_size=64, prepared=False)
    module.setup()
    train = np.flatnonzero(module.table.split == Split.TRAIN)
    order = np.random.Generator(np.random.Philox(key=[0, epoch])).permutation(len(train))
    chosen = train[order[step * size : (step + 1) * size]]
    return chosen.tolist(), [module.table.files[row] for row in chosen]


@pytest.mark.slow
@pytest.mark.parametrize("what", ["image", "gradient"])
def test_stopped_before_the_step_with_its_images_named(
    what: str, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remember = "++callbacks.remember={_target_: tests.faults.callbacks.Remember}"
    with pytest.raises(FaceAttrError) as caught:
        overrides = [*RUN, poison(1, 2, what=what), remember]
        run_here(*overrides, data=tiny_data, run_dir=tmp_path / "run", monkeypatch=monkeypatch)
    message, path = str(caught.value), tmp_path / "run" / "non_finite_batch.json"
    found = "the loss is nan" if what == "image" else "the gradients are not finite"
    assert message.startswith(f"Epoch 1, step 8: {found}. The weights are those before the step;")
    for part in (str(path), "model.optimizer.lr", "trainer.precision=32-true", "callbacks.non_finite.action=skip"):
        assert part in message
    content = json.loads(path.read_text())
    assert (content["epoch"], content["step"]) == (1, 8)
    assert f"(here {content['learning_rate']:.2g})" in message
    if what == "gradient":
        assert content["parameters"] == ["network.head.3.bias"] and content["parameters_in_all"] == 1
    else:
        assert content["parameters"][0] == "network.head.3.bias" and content["parameters_in_all"] > 10
    ((rank, (batch,)),) = ((one["rank"], one["batches"]) for one in content["ranks"])
    chosen, files = images_of_step(tiny_data, 1, 2)
    assert rank == 0 and batch["batch"] == 2 and batch["rows"] == chosen and batch["files"] == files
    assert batch["loss"] == "nan" if what == "image" else batch["loss"] > 0
    for name, before in Remember.before.items():
        assert torch.equal(Remember.after[name], before), name
    assert all(tensor.isfinite().all() for name, tensor in state(tmp_path / "run").items() if "network" in name)


@pytest.mark.parametrize(
    ("overrides", "poisoned", "left_out"),
    [
        ([], poison(1, 2), leave_out(1, 2, 2)),
        pytest.param([], poison(1, 2, what="gradient"), leave_out(1, 2, 2), marks=pytest.mark.slow),
        pytest.param([], poison(0, 0), leave_out(0, 0, 0), marks=pytest.mark.slow),
        pytest.param([], poison(1, 5), leave_out(1, 5, 5), marks=pytest.mark.slow),
        # The first batch of a window of two: what the second one adds goes too.
        pytest.param(["++trainer.accumulate_grad_batches=2"], poison(1, 2), leave_out(1, 2, 3), marks=pytest.mark.slow),
        # The step at which gradients are measured.
        pytest.param(
            ["weighting=gradnorm", "weighting.every=3"], poison(1, 2), leave_out(1, 2, 2), marks=pytest.mark.slow
        ),
    ],
)
def test_skipped_as_if_the_step_had_not_been(
    overrides: list[str],
    poisoned: str,
    left_out: str,
    tiny_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING, logger="faceattr_lightning"):
        run_here(*RUN, *overrides, SKIP, poisoned, data=tiny_data, run_dir=tmp_path / "skip", monkeypatch=monkeypatch)
    assert "the step is left out (callbacks.non_finite.action=skip)" in caplog.text
    steps = 9 if "accumulate" in str(overrides) else 18
    assert f"1 of {steps} steps were left out" in caplog.text
    epochs = [row for row in rows(tmp_path / "skip" / "metrics.csv") if row["train/loss"]]
    assert [float(row["train/skipped_steps"]) for row in epochs] in ([0, 1, 1], [1, 1, 1])
    assert all(np.isfinite(float(row["train/loss"])) for row in epochs)
    skipped = state(tmp_path / "skip")
    assert all(tensor.isfinite().all() for tensor in skipped.values())
    run_here(*RUN, *overrides, left_out, data=tiny_data, run_dir=tmp_path / "out", monkeypatch=monkeypatch)
    assert_same_state(skipped, state(tmp_path / "out"))


@pytest.mark.slow
def test_more_than_ten_in_a_row_stop_the_run(tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FaceAttrError, match=r"Epoch 1, step 11: .* 11 steps in a row were such"):
        overrides = [*RUN, SKIP, poison(None, *range(6)), "++callbacks.poison.first_step=1"]
        run_here(*overrides, data=tiny_data, run_dir=tmp_path / "run", monkeypatch=monkeypatch)
    assert (tmp_path / "run" / "non_finite_batch.json").is_file()


@pytest.mark.slow
def test_averaged_weights_and_a_resume_go_on_after_a_skipped_step(tiny_data: Path, tmp_path: Path) -> None:
    """What is skipped reaches neither the average nor the checkpoint, and the count goes on."""
    average = ["trainer=fast", "trainer.max_epochs=3", "callbacks.progressive=null", "callbacks.last.every_n_steps=1"]
    overrides = [*RUN, *average, SKIP, poison(1, 2, 4)]
    run(*overrides, data=tiny_data, output=tmp_path / "whole")
    killed = "++callbacks.kill={_target_: tests.runs.Kill, at: on_train_batch_start, count: 10}"
    run(*overrides, killed, data=tiny_data, output=tmp_path / "parts", check=False)
    run(*overrides, "ckpt_path=last", data=tiny_data, output=tmp_path / "parts")
    whole, parts = run_dirs(tmp_path / "whole")[0], run_dirs(tmp_path / "parts")[0]
    assert_same_state(state(whole), state(parts))
    assert all(tensor.isfinite().all() for name, tensor in state(whole).items() if name.startswith("network."))
    assert (whole / "metrics.csv").read_text() == (parts / "metrics.csv").read_text()
    epochs = [row for row in rows(parts / "metrics.csv") if row["train/loss"]]
    assert [float(row["train/skipped_steps"]) for row in epochs] == [0, 2, 2]


@pytest.mark.slow
def test_two_processes_decide_alike(tiny_data: Path, tmp_path: Path) -> None:
    """One of them has the bad batch; both leave the step out, or both stop and both batches are named."""
    two = [*RUN, "trainer.devices=2", "data.batch_size=4"]
    bad = poison(1, 2, rank=1)
    run(*two, SKIP, bad, data=tiny_data, output=tmp_path / "skip")
    run(*two, leave_out(1, 2, 2), data=tiny_data, output=tmp_path / "out")
    assert_same_state(state(run_dirs(tmp_path / "skip")[0]), state(run_dirs(tmp_path / "out")[0]))

    finished = run(*two, bad, data=tiny_data, output=tmp_path / "stop", check=False)
    assert finished.returncode == 1 and "Traceback" not in finished.stderr, finished.stderr
    assert "Epoch 1, step 8: the loss is nan." in finished.stderr
    content = json.loads((run_dirs(tmp_path / "stop")[0] / "non_finite_batch.json").read_text())
    losses = [rank["batches"][0]["loss"] for rank in content["ranks"]]
    assert losses[0] > 0 and losses[1] == "nan"
    named = [row for rank in content["ranks"] for row in rank["batches"][0]["rows"]]
    assert named == images_of_step(tiny_data, 1, 2)[0]
