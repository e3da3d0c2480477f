"""``task=export``: a checkpoint as an ONNX file, checked against the model that it came from."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor
from torch.utils.data import DataLoader

from faceattr_lightning.data.batch import Batch
from faceattr_lightning.data.module import FaceDataModule
from faceattr_lightning.errors import DataError
from faceattr_lightning.export.int8 import Calibration, quantise
from faceattr_lightning.export.onnx import (
    TOLERANCE,
    Deployed,
    Parity,
    check_installed,
    check_parity,
    compare,
    export_onnx,
    run_file,
    run_model,
)
from faceattr_lightning.export.session import open_session
from faceattr_lightning.instantiate import build
from faceattr_lightning.metrics.attribute_metrics import confusion_counts
from faceattr_lightning.models.module import AttributeModule
from faceattr_lightning.strategy import Process
from faceattr_lightning.tasks.test import check_fit, open_checkpoint

log = logging.getLogger(__name__)

Run = Callable[[Tensor], list[NDArray[Any]]]
"""From images uint8 (B, 3, S, S) to what `faceattr_lightning.export.onnx` says of outputs."""

_COMPARED = 32


def export(
    config: dict[str, Any],
    ranks: list[Process],
    format: Literal["onnx"] = "onnx",
    int8: bool = False,
    calibration: Calibration = "minmax",
    calibration_images: int = 256,
    check: bool = True,
    accuracy: Literal["validation", "test"] | None = None,
) -> None:
    """Write the checkpoint that ``ckpt_path`` names (``best`` if none is given) as ``<model>.onnx`` into the run's
    folder, and print how it compares with the checkpoint.

    The data set is chosen as for ``task=test``; without one, images for a check are random alone.

    Args:
        config: the job's configuration as plain data.
        ranks: not used.
        format: of the file.
        int8: write ``<model>.int8.onnx``, too, calibrated on images of the training split; see `quantise`.
        calibration: see `quantise`.
        calibration_images: how many, evenly spread over the split.
        check: compare with the checkpoint on random and real images.
        accuracy: the split on which to compare the mean accuracy at the fitted thresholds.

    Raises:
        ConfigError: a package, the checkpoint or its attributes in the data are missing.
        DataError: the data can't be read, a file can't be written, or the check fails.
    """
    check_installed()
    model, path = open_checkpoint(config)
    model.eval()
    run_dir = Path(config["paths"]["run_dir"])
    datamodule = (
        _open_data(config["data"], model, needed=int8 or accuracy is not None) if int8 or check or accuracy else None
    )

    name = type(model).__module__.rpartition(".")[2]
    files = {"float32": run_dir / f"{name}.{format}"}
    export_onnx(model, files["float32"])
    if int8:
        assert datamodule is not None
        files["int8"] = run_dir / f"{name}.int8.{format}"
        log.info("Calibrating on %d training images", calibration_images)
        quantise(files["float32"], files["int8"], _spread(datamodule, calibration_images), calibration)

    calibrator = model.calibrator
    deployed, thresholds = Deployed(model.network, calibrator.temperatures), calibrator.thresholds
    runs: dict[str, Run] = {"checkpoint": lambda images: run_model(deployed, thresholds, images)}
    for precision, file in files.items():
        runs[precision] = _runner(file)
    parities = _parities(runs, model.preprocessing.image_size, datamodule) if check else {}
    accuracies: dict[str, float] = {}
    if accuracy is not None:
        assert datamodule is not None
        loader = datamodule.val_dataloader() if accuracy == "validation" else datamodule.test_dataloader()
        accuracies = _accuracies(runs, loader)
    Console().print(_table(path, files, parities, accuracies, accuracy))
    if check:
        try:
            check_parity(parities["float32"], files["float32"])
        except DataError:
            for file in files.values():
                file.unlink()
            raise
    for file in files.values():
        log.info("Written: %s", file)


def _open_data(node: dict[str, Any], model: AttributeModule, needed: bool) -> FaceDataModule | None:
    """Return the data, or ``None`` where there is none and none is needed."""
    datamodule: FaceDataModule = build(node)
    try:
        datamodule.find_data()
    except DataError as error:
        if needed:
            raise
        log.warning("The check takes random images alone: %s", error)
        return None
    datamodule.prepare_data()
    datamodule.setup()
    check_fit(model, datamodule)
    return datamodule


def _spread(datamodule: FaceDataModule, count: int) -> NDArray[np.uint8]:
    """Return images of the training split, evenly spread and not augmented, uint8 (N, 3, S, S)."""
    rows = datamodule.train_rows()
    chosen = rows[np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(np.int64)]
    images: NDArray[np.uint8] = datamodule.source().images(chosen).contiguous().numpy()
    return images


def _runner(file: Path) -> Run:
    session = open_session(file, torch.get_num_threads())
    return lambda images: run_file(session, images)


def _parities(runs: dict[str, Run], size: int, datamodule: FaceDataModule | None) -> dict[str, Parity]:
    """Compare every file with the checkpoint, on random images one by one and together, and on real ones."""
    generator = torch.Generator().manual_seed(0)
    random = torch.randint(0, 256, (5, 3, size, size), dtype=torch.uint8, generator=generator)
    batches = [random[:1], random]
    if datamodule is not None:
        batches.append(torch.from_numpy(_spread(datamodule, _COMPARED)))
    answers = {precision: [run(images) for images in batches] for precision, run in runs.items()}
    expected = answers.pop("checkpoint")
    return {precision: compare(expected, found) for precision, found in answers.items()}


def _accuracies(runs: dict[str, Run], loader: DataLoader[Batch]) -> dict[str, float]:
    """Return the mean accuracy over the attributes, in [0, 1], of the decisions at the fitted thresholds."""
    counts: dict[str, Tensor] = {}
    for batch in track(loader, "Comparing accuracy"):
        labelled, positive = batch["attributes"] >= 0, batch["attributes"] == 1
        for precision, run in runs.items():
            decisions = torch.from_numpy(run(batch["image"])[1])
            tp, fp, fn, tn = confusion_counts(decisions, labelled, positive)
            found = torch.stack([tp + tn, tp + fp + fn + tn])
            counts[precision] = counts[precision] + found if precision in counts else found
    return {precision: float((right / total).nanmean()) for precision, (right, total) in counts.items()}


def _table(
    path: Path, files: dict[str, Path], parities: dict[str, Parity], accuracies: dict[str, float], split: str | None
) -> Table:
    """Return a row for the checkpoint and each file, with the columns that were asked for."""
    caption = []
    table = Table(title="Exported", title_justify="left", caption_justify="left")
    table.add_column("")
    for heading in ("MB", *(("greatest difference", "mean", "decisions that differ") if parities else ())):
        table.add_column(heading, justify="right")
    if parities:
        images = parities["float32"].images
        caption.append(
            f"differences: of probabilities, from the checkpoint's, on {images} images; float32: at most {TOLERANCE:g}"
        )
    if accuracies:
        table.add_column(f"accuracy on {split}", justify="right")
        table.add_column("points", justify="right")
        caption.append("accuracy: mean over the attributes at the fitted thresholds, in percent")
    for precision, file in {"checkpoint": path, **files}.items():
        cells = [precision, f"{file.stat().st_size / 1e6:.1f}"]
        if parities:
            parity = parities.get(precision)
            cells += (
                ["", "", ""]
                if parity is None
                else [f"{parity.greatest:.1e}", f"{parity.mean:.1e}", f"{100 * parity.decisions:.2f} %"]
            )
        if accuracies:
            lost = 100 * (accuracies[precision] - accuracies["checkpoint"])
            cells += [f"{100 * accuracies[precision]:.2f}", "" if precision == "checkpoint" else f"{lost:+.2f}"]
        table.add_row(*cells)
    table.caption = "\n".join(caption)
    return table
