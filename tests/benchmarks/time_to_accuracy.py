"""CPU time to a mean accuracy on LFWA's test split, thresholds at 0.5: hours, and so not part of ``make bench``.

``python -m tests.benchmarks.time_to_accuracy public`` trains in the style of public repositories until it is there,
``python -m tests.benchmarks.time_to_accuracy ours OVERRIDES`` runs ``run.py`` with those overrides. Both sides have the
same backbone and weights and one thread. The clock is the process's CPU time: of ours from its start to the end of
training and validation, of the other side of training and validation alone. The test split is looked at with the clock
stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

import timm
import torch
from lightning import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader

from faceattr_lightning.data.lfwa import LFWA
from faceattr_lightning.data.table import Split
from faceattr_lightning.networks.backbone import Backbone, load_pretrained, normalisation
from faceattr_lightning.processes import quote
from tests.benchmarks import public_style
from tests.runs import run, run_dirs, summary

BACKBONE = "tf_efficientnet_lite0"
FRAME = (218, 178)
BATCH = 64


def public(goal: float, epochs: int) -> None:
    """Train in the style of public repositories, at 178 x 218 pixels as they do, until the goal is reached.

    Args:
        goal: mean accuracy on the test split in percent.
        epochs: to stop after.
    """
    data = LFWA()
    data.setup()
    table = data.table
    mean, std = normalisation(BACKBONE)

    def loader(split: Split) -> DataLoader[tuple[torch.Tensor, torch.Tensor]]:
        training, rows = split is Split.TRAIN, table.rows(split)
        files = [table.root / table.files[row] for row in rows]
        steps = public_style.transform(mean, std, training, FRAME)
        faces = public_style.ImageFiles(files, table.attributes[rows], steps)
        return DataLoader(faces, BATCH, shuffle=training)

    torch.manual_seed(0)
    weights = Backbone(BACKBONE, mean, std)
    load_pretrained(weights, "packaged")
    body = timm.create_model(BACKBONE, num_classes=0)
    body.load_state_dict(weights.body.state_dict())
    network = public_style.TwoLogits(body, weights.channels, len(table.attribute_names))
    optimizer = public_style.sgd(network.parameters(), BATCH)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 30)
    seconds = 0.0
    for epoch in range(epochs):
        started = time.process_time()
        for _ in public_style.train(network, loader(Split.TRAIN), optimizer):
            pass
        schedule.step()
        validation = 100 * public_style.evaluate(network, loader(Split.VALIDATION))
        seconds += time.process_time() - started
        test = 100 * public_style.evaluate(network, loader(Split.TEST))
        report = {"epoch": epoch, "cpu_minutes": seconds / 60, "validation": validation, "test": test}
        print(json.dumps({key: round(value, 2) for key, value in report.items()}), flush=True)
        if test >= goal:
            break


def ours(overrides: list[str]) -> None:
    """Run ``run.py`` on LFWA and print its CPU minutes and what its best checkpoint reaches."""
    with tempfile.TemporaryDirectory() as folder:
        clock = Path(folder) / "clock.json"
        recorder = f"++callbacks.clock={{_target_: tests.benchmarks.time_to_accuracy.Clock, file: {quote(str(clock))}}}"
        data, output = Path(os.environ["FACEATTR_DATA"]), Path(folder)
        run("data=lfwa", *overrides, recorder, data=data, output=output, timeout=None, OMP_NUM_THREADS="1")
        (run_dir,) = run_dirs(output)
        report = {
            "cpu_minutes": json.loads(clock.read_text()) / 60,
            "validation": 100 * summary(run_dir, "validation")["accuracy_at_half"],
            "test": 100 * summary(run_dir)["accuracy_at_half"],
        }
    print(json.dumps({key: round(value, 2) for key, value in report.items()} | {"overrides": overrides}), flush=True)


class Clock(Callback):
    """Writes the CPU seconds of the process and its children when training ends, into a JSON file.

    Args:
        file: to write.
    """

    def __init__(self, file: str) -> None:
        self._file = Path(file)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._file.write_text(json.dumps(sum(os.times()[:4])))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sides = parser.add_subparsers(dest="side", required=True)
    other = sides.add_parser("public")
    other.add_argument("--goal", type=float, default=85.0, help="in percent, to stop at")
    other.add_argument("--epochs", type=int, default=90, help="to stop after")
    own = sides.add_parser("ours")
    own.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.side == "public":
        public(arguments.goal, arguments.epochs)
    else:
        ours(arguments.overrides)
