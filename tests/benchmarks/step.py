"""A training step of our Trainer against a bare PyTorch loop and against the style of public repositories."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import LambdaCallback
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchmetrics.classification import BinaryAccuracy

from faceattr_lightning.data.batch import Batch
from faceattr_lightning.data.celeba import read_celeba
from faceattr_lightning.data.module import FaceDataModule
from faceattr_lightning.data.table import Split
from faceattr_lightning.instantiate import build
from faceattr_lightning.models.losses import attribute_bce
from faceattr_lightning.models.module import AttributeModule, learning_rate_factor
from faceattr_lightning.networks.backbone import normalisation
from tests.benchmarks import public_style
from tests.benchmarks.clock import ROUNDS, Measured, Turn, interleave, interleave_processes
from tests.benchmarks.ours import FLIP_ONLY, celeba_config, fit, make
from tests.benchmarks.rows import Row

WARM_UP = 1
"""Epochs that are not counted: kernels are chosen and the optimiser's state is made in them."""
FP32 = "trainer.precision=32-true"
RESNET18 = ["backbone=resnet18", "data.image_size=112"]
TINY = ["backbone.name=test_resnet", "data.image_size=64", "data.batch_size=8"]
RESNET50 = ["backbone=resnet50", "data.image_size=178", *FLIP_ONLY]
"""The style of public repositories has 178 x 218 pixels; both sides get the middle 178 x 178 of them."""
SYSTEMS = ("dmm_cnn", "far_amtn", "mgmtn", "mtl_cnn")

Side = Callable[[Trainer, AttributeModule], Iterator[None]]
"""Makes the other side when training starts; each item is a step, done."""


def step(data: Path, scratch: Path) -> list[Row]:
    """Compare CPU seconds on one thread, our side always from prepared data.

    A real backbone gives the ratio that a user pays; a tiny one, whose own step is next to nothing, the Trainer's cost
    itself.
    """
    torch.set_num_threads(1)
    return [
        *_against_the_bare_loop(data, scratch),
        *_cost_of_the_trainer(data, scratch),
        *_against_the_public_style(data, scratch),
        _fed_by_the_data_path(data, scratch),
    ]


def _against_the_bare_loop(data: Path, scratch: Path) -> list[Row]:
    plain = [*RESNET18, "data.batch_size=32", "data.train_fraction=0.5", FP32]
    rows = [
        Row(
            "step of resnet18, 112 px, batch 32, against the bare loop",
            "ms",
            *measure(data, scratch / "resnet18", 5, plain),
            at_most=1.03,
        )
    ]
    for name in SYSTEMS:
        # Without dropout, so that both sides can be checked to have trained alike.
        system = [f"model={name}", "model.dropout=0", "weighting=uniform", *RESNET18, "data.batch_size=16", FP32]
        # What comes before MGMTN's first step is no part of a step.
        system += ["model.mask_epochs=1"] if name == "mgmtn" else []
        sides = measure(data, scratch / name, 5, [*system, "data.train_fraction=0.25"])
        rows.append(Row(f"step of {name}, resnet18, 112 px, batch 16, against the bare loop", "ms", *sides))
    return rows


def _cost_of_the_trainer(data: Path, scratch: Path) -> list[Row]:
    """The Trainer's step less the bare loop's; and the same where every step also does what many programs do."""
    name = "the Trainer's own cost of a step, test_resnet, 64 px, batch 8"
    rows = []
    for title, callbacks, at_most in (
        (name, [], 1.0),
        ("the same with forty logged keys a step", [FortyKeys()], None),
        ("the same with forty metric objects a step", [FortyMetrics()], None),
    ):
        ours, bare = measure(data, scratch / f"tiny{len(rows)}", 5, [*TINY, FP32], callbacks=callbacks)
        rows.append(Row(title, "ms", [own - other for own, other in zip(ours, bare, strict=True)], at_most=at_most))
    return rows


def _against_the_public_style(data: Path, scratch: Path) -> list[Row]:
    """ResNet-50: our Trainer and data path, AdamW, against `public_style.train` with its data, heads and SGD.

    Memory is the peak of the whole process, everything it has imported included, at 64 images a batch, our default.
    """
    marks = {"32-true": (1 / 1.25, None), "auto": (1 / 2.7, 0.65)}

    def run(batch_size: int, turns: int) -> list[Measured]:
        overrides = [*RESNET50, f"data.batch_size={batch_size}"]
        sides = [
            partial(turns_of_ours, train_config(data, scratch / name, *overrides, f"trainer.precision={name}"))
            for name in marks
        ]
        return interleave_processes([*sides, partial(turns_of_public, data, batch_size)], turns)

    timed, large = run(16, 1 + ROUNDS), run(64, 2)
    rows = []
    for index, (precision, (fast, small)) in enumerate(marks.items()):
        name = f"resnet50, 178 px, precision {precision}, against the public style"
        ours, theirs = ([1000 * value for value in timed[side].seconds[1:]] for side in (index, -1))
        rows.append(Row(f"step of {name}, batch 16", "ms", ours, theirs, at_most=fast))
        rows.append(Row(f"peak memory of {name}, batch 64", "MB", [large[index].peak], [large[-1].peak], at_most=small))
    return rows


def _fed_by_the_data_path(data: Path, scratch: Path) -> Row:
    """The bare loop over our loader, augmented as by default, against the same over tensors in memory as they are."""
    config = celeba_config(data, scratch / "fed", *RESNET18, "data.batch_size=32")
    datamodule, model = make(config)
    twin, held = deepcopy(model), list(datamodule.train_dataloader())
    sides = [
        bare_loop(model, augmented_batches(datamodule), 1000, 10.0),
        bare_loop(twin, itertools.cycle(held), 1000, 10.0),
    ]
    ours, memory = interleave([(1 for _ in side) for side in sides])
    name = "step of resnet18, 112 px, batch 32, fed by our data path against tensors in memory"
    return Row(name, "ms", [1000 * value for value in ours], [1000 * value for value in memory], at_most=1 / 0.97)


def train_config(data: Path, run_dir: Path, *overrides: str) -> dict[str, Any]:
    """Return `celeba_config` of a run without end that trains, and neither validates nor saves."""
    config = celeba_config(data, run_dir, "trainer.max_epochs=1000", "++trainer.limit_val_batches=0", *overrides)
    for name in ("best", "last"):
        del config["callbacks"][name]
    return config


def measure(
    data: Path,
    run_dir: Path,
    rounds: int,
    overrides: list[str],
    other: Side | None = None,
    callbacks: Sequence[Callback] = (),
) -> tuple[list[float], list[float]]:
    """Return the CPU milliseconds a step of our Trainer and of another side, a value per epoch.

    Args:
        data: the folder of the data set.
        run_dir: for what the logger writes.
        rounds: epochs to count.
        overrides: of the configuration.
        other: by default the bare loop.
        callbacks: more of them for our Trainer.
    """
    config = train_config(data, run_dir, *overrides)
    fit(config, WARM_UP + rounds, [*callbacks, interleaved := Interleaved(other or bare_side)])
    return interleaved.per_epoch()


class Interleaved(Callback):
    """Takes a step of another side between any two of the Trainer's, and the CPU time of both.

    Steps alternate, not epochs: neighbours on a busy machine change within seconds. A Trainer's step lasts from one
    batch's start to the next one's, so that loading, augmentation and the end of an epoch are in it, as they are in a
    step of the other side.

    Args:
        other: the other side.
    """

    def __init__(self, other: Side) -> None:
        self._other = other
        self._ours: list[float] = []
        self._theirs: list[float] = []
        self._started = float("nan")

    def on_train_start(self, trainer: Trainer, pl_module: AttributeModule) -> None:  # type: ignore[override]
        self._steps = int(trainer.num_training_batches)
        self._loop = self._other(trainer, pl_module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        now = time.process_time()
        if trainer.global_step > 0:
            self._ours.append(now - self._started)
        now = time.process_time()
        next(self._loop)
        self._started = time.process_time()
        self._theirs.append(self._started - now)

    def per_epoch(self) -> tuple[list[float], list[float]]:
        """Return mean milliseconds a step, ours and the other side's, of each epoch after the warm-up."""
        starts = range(WARM_UP * self._steps, len(self._ours), self._steps)
        ours, theirs = (
            [1000 * statistics.mean(times[start : start + self._steps]) for start in starts]
            for times in (self._ours, self._theirs)
        )
        return ours, theirs


def bare_side(trainer: Trainer, model: AttributeModule) -> Iterator[None]:
    """Train a copy of the model by the bare loop; at the end make sure that both sides have the same weights."""
    # The Trainer stays where it is.
    twin = deepcopy(model, {id(trainer): None})
    total = int(trainer.estimated_stepping_batches)
    batches = augmented_batches(trainer.datamodule)  # type: ignore[attr-defined]
    loop = bare_loop(twin, batches, total, float(trainer.gradient_clip_val or 0))
    for done in itertools.count():
        if done == total - 1:
            check_same(model.network.state_dict(), twin.network.state_dict())
        yield next(loop)


def bare_loop(model: AttributeModule, batches: Iterator[Batch], total: int, clip: float) -> Iterator[None]:
    """Train a model's network as its Trainer would, without Lightning; yields after each step.

    Args:
        model: says which optimiser, schedule and weights of the loss; of it nothing is called but the network and its
            system's further loss terms.
        batches: augmented.
        total: steps of the schedule.
        clip: greatest norm of the gradient.
    """
    network = model.network
    # As `configure_optimizers` does: what a system freezes is not clipped or updated.
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    weights = model.weighting.weights.clone()
    name, warmup = model.schedule["name"], model.schedule["warmup"]
    optimizer = build(model.optimizer_node, parameters)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate_factor(name, step / total, warmup)
    )
    network.train()
    for batch in batches:
        output = model.predict(batch)
        terms = [(weights * attribute_bce(output["logits"], batch["attributes"])).sum()]
        terms += model.extra_losses(output, batch).values()
        optimizer.zero_grad()
        torch.stack(terms).sum().backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(parameters, clip)
        optimizer.step()
        scheduler.step()
        yield


def augmented_batches(datamodule: FaceDataModule) -> Iterator[Batch]:
    """Return the training batches of epoch after epoch."""
    loader = datamodule.train_dataloader()
    for epoch in itertools.count():
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        for batch in loader:
            yield datamodule.on_after_batch_transfer(batch, 0)


def check_same(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    """Make sure that the sides did the same work: after the same steps they have the same weights, bit for bit."""
    for name, tensor in first.items():
        if not torch.equal(tensor, second[name]):
            raise RuntimeError(f"The two sides did not train alike: they differ in {name}.")


def public_loop(data: Path, size: int, batch_size: int) -> Iterator[None]:
    """Train ResNet-50 in the style of public repositories on CelebA's middle square, epoch after epoch."""
    table = read_celeba(data)
    rows = table.rows(Split.TRAIN)
    files = [table.root / table.files[row] for row in rows]
    steps = public_style.transform(*normalisation("resnet50"), True, (size, size))
    faces = public_style.ImageFiles(files, table.attributes[rows], steps)
    body = timm.create_model("resnet50", num_classes=0)
    network = public_style.TwoLogits(body, 2048, len(table.attribute_names))
    optimizer = public_style.sgd(network.parameters(), batch_size)
    while True:
        yield from public_style.train(network, DataLoader(faces, batch_size, shuffle=True, drop_last=True), optimizer)


def turns_of_ours(config: dict[str, Any], turn: Turn) -> None:
    """Train by our Trainer, a step a turn."""
    fit(config, None, [LambdaCallback(on_train_batch_start=lambda *_: turn())])


def turns_of_public(data: Path, batch_size: int, turn: Turn) -> None:
    """Train by `public_loop`, a step a turn."""
    loop = public_loop(data, 178, batch_size)
    while True:
        turn()
        next(loop)


class FortyKeys(Callback):
    """Logs a value of each attribute at every step, as many programs do."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: AttributeModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:  # type: ignore[override]
        for name, value in zip(pl_module.attribute_names, outputs["loss_sums"], strict=True):
            pl_module.log(f"loss/{name}", value)


class FortyMetrics(Callback):
    """Updates a torchmetrics object of each attribute at every step, and reads it off."""

    def __init__(self) -> None:
        self._metrics = [BinaryAccuracy() for _ in range(40)]
        self._logits = torch.randn(8, 40)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        for metric, logits, labels in zip(
            self._metrics, self._logits.unbind(dim=1), batch["attributes"].unbind(dim=1), strict=True
        ):
            metric(logits, labels.int())
