"""``task=export``: a checkpoint for other programs, checked against the model that it came from, and its model card."""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor
from torch.utils.data import DataLoader

from faceattr_lightning.data.batch import Batch
from faceattr_lightning.data.module import FaceDataModule
from faceattr_lightning.errors import ConfigError, DataError
from faceattr_lightning.export.deployed import (
    TOLERANCE,
    Deployed,
    Parity,
    Where,
    check_parity,
    compare,
    describe,
    describe_folder,
    run_model,
)
from faceattr_lightning.export.folder import check_free, write_folder
from faceattr_lightning.export.int8 import Calibration, quantise
from faceattr_lightning.export.model_card import model_card, read_run
from faceattr_lightning.export.onnx import check_installed, export_onnx, run_file
from faceattr_lightning.export.session import file_input, open_session
from faceattr_lightning.export.torch_export import export_program, open_program
from faceattr_lightning.files import write_text
from faceattr_lightning.instantiate import build
from faceattr_lightning.metrics.attribute_metrics import confusion_counts
from faceattr_lightning.networks.load import LoadedNetwork, load_network
from faceattr_lightning.strategy import Process
from faceattr_lightning.tasks.test import check_fit, find_checkpoint, take_over

log = logging.getLogger(__name__)

Run = Callable[[Tensor], list[NDArray[Any]]]
"""From images uint8 (B, 3, S, S) to what `faceattr_lightning.export.onnx` says of outputs."""

Format = Literal["onnx", "torch_export", "safetensors"]

_ENDINGS = {"onnx": ".onnx", "torch_export": ".pt2", "safetensors": ""}
_COMPARED = 32


def export(
    config: dict[str, Any],
    ranks: list[Process],
    format: Format = "onnx",
    preprocessing: Where = "inside",
    licence: str | None = None,
    int8: bool = False,
    calibration: Calibration = "minmax",
    calibration_images: int = 256,
    check: bool = True,
    accuracy: Literal["validation", "test"] | None = None,
) -> None:
    """Write the checkpoint that ``ckpt_path`` names (``best`` if none is given) as ``<model>.onnx`` or ``<model>.pt2``,
    with the model card ``<model>.md``, or as the model folder ``<model>/`` into the run's folder, and print how it
    compares with the checkpoint.

    The data set is chosen as for ``task=test``; without one, images for a check are random alone.

    Args:
        config: the job's configuration as plain data.
        ranks: not used.
        format: ``onnx``; ``torch_export``, see `faceattr_lightning.export.torch_export`; or ``safetensors``, a folder,
            see `faceattr_lightning.export.folder`.
        preprocessing: ``inside`` the file takes pixels, ``outside`` images that are normalised.
        licence: of the weights, an SPDX expression; ``None`` states none, or the one that a model folder has.
        int8: write ``<model>.int8.onnx``, too, calibrated on images of the training split; see `quantise`.
        calibration: see `quantise`.
        calibration_images: how many, evenly spread over the split.
        check: compare with the checkpoint on random and real images.
        accuracy: the split on which to compare the mean accuracy at the fitted thresholds.

    Raises:
        ConfigError: a key has no meaning for the format; a package, the checkpoint or its attributes in the data are
            missing.
        DataError: the data can't be read, a file can't be written, or the check fails.
    """
    stated = _check_keys(format, preprocessing, licence, int8)
    path = find_checkpoint(config)
    loaded = load_network(path)
    take_over(config, loaded.facts["config"], path)
    licence = loaded.facts.get("licence") if stated is None else stated
    run_dir = Path(config["paths"]["run_dir"])
    # A stranger's may be anything.
    name = re.sub(r"\W+", "_", loaded.facts["model"].split(".")[-2:][0])
    exported = run_dir / f"{name}{_ENDINGS[format]}"
    if format == "safetensors":
        check_free(exported)
    datamodule = (
        _open_data(config["data"], loaded, needed=int8 or accuracy is not None) if int8 or check or accuracy else None
    )

    def card(measured: list[dict[str, Any]]) -> str:
        parameters = sum(parameter.numel() for parameter in loaded.network.parameters())
        run = read_run(path, loaded.thresholds.tolist())
        return model_card(exported.name, describe(loaded, licence), loaded.facts["config"], parameters, run, measured)

    if format == "safetensors":
        write_folder(exported, describe_folder(loaded, licence), loaded.network.state_dict(), card([]))
    elif format == "torch_export":
        export_program(loaded, exported, preprocessing, licence)
    else:
        export_onnx(loaded, exported, preprocessing, licence)
    files = {"float32": exported}
    runs = {"checkpoint": _runner(path, loaded), "float32": _runner(exported)}
    batches = _batches(loaded.preprocessing.image_size, datamodule) if check else []
    expected = [runs["checkpoint"](images) for images in batches]
    parities = {}
    if check:
        parities["float32"] = compare(expected, [runs["float32"](images) for images in batches])
        try:
            # A folder holds the very same numbers.
            check_parity(parities["float32"], exported, 0 if format == "safetensors" else TOLERANCE)
        except DataError:
            shutil.rmtree(exported) if exported.is_dir() else exported.unlink()
            raise
    if int8:
        assert datamodule is not None
        files["int8"] = exported.with_suffix(".int8.onnx")
        log.info("Calibrating on %d training images", calibration_images)
        quantise(exported, files["int8"], _spread(datamodule, calibration_images), calibration)
        runs["int8"] = _runner(files["int8"])
        if check:
            parities["int8"] = compare(expected, [runs["int8"](images) for images in batches])
    accuracies: dict[str, float] = {}
    tested = ""
    if accuracy is not None:
        assert datamodule is not None
        # It need not be the data set of the training.
        tested = f"{datamodule.name}, {accuracy}"
        loader = datamodule.val_dataloader() if accuracy == "validation" else datamodule.test_dataloader()
        accuracies = _accuracies(runs, loader)
    Console().print(_table(path, files, parities, accuracies, tested))
    if format != "safetensors":
        measured = [
            {
                "file": file.name,
                "precision": precision,
                "bytes": _size(file),
                "difference": parities[precision].greatest if precision in parities else None,
                "accuracy": accuracies.get(precision),
                "split": tested,
            }
            for precision, file in files.items()
        ]
        write_text(card(measured), exported.with_suffix(".md"))
    for file in files.values():
        log.info("Written: %s", file)


def _check_keys(format: Format, preprocessing: Where, licence: str | None, int8: bool) -> str | None:
    """Return the licence in its usual spelling; see `export`."""
    problems = []
    if int8 and format != "onnx":
        problems.append(f"task.int8: there is an int8 version of ONNX files alone, not of task.format={format}.")
    if preprocessing == "outside" and format == "safetensors":
        problems.append("task.preprocessing: a model folder holds the network itself, which normalises inside.")
    try:
        licence = None if licence is None else canonicalize_license_expression(licence)
    except InvalidLicenseExpression as error:
        problems.append(
            f"task.licence: {error}; expected an SPDX expression such as CC-BY-NC-4.0, or LicenseRef-NAME for your own."
        )
    if problems:
        raise ConfigError(problems)
    if format == "onnx":
        check_installed()
    return licence


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in path.iterdir()) if path.is_dir() else path.stat().st_size


def _open_data(node: dict[str, Any], loaded: LoadedNetwork, needed: bool) -> FaceDataModule | None:
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
    check_fit(loaded, datamodule)
    return datamodule


def _spread(datamodule: FaceDataModule, count: int) -> NDArray[np.uint8]:
    """Return images of the training split, evenly spread and not augmented, uint8 (N, 3, S, S)."""
    rows = datamodule.train_rows()
    chosen = rows[np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(np.int64)]
    images: NDArray[np.uint8] = datamodule.source().images(chosen).contiguous().numpy()
    return images


def _runner(path: Path, loaded: LoadedNetwork | None = None) -> Run:
    """Return how a checkpoint or a file answers; ``loaded`` what the former holds, if that is known."""
    if path.suffix == ".onnx":
        session = open_session(path, torch.get_num_threads())
        return lambda images: run_file(session, images)
    if path.suffix == ".pt2":
        program, metadata = open_program(path)
        thresholds = torch.tensor(metadata["thresholds"])

        def run_program(images: Tensor) -> list[NDArray[Any]]:
            with torch.inference_mode():
                answers = program(torch.from_numpy(file_input(images.numpy(), metadata)), thresholds)
            return [answer.numpy() for answer in answers]

        return run_program
    network = load_network(path) if loaded is None else loaded
    deployed = Deployed(network.network, network.temperatures)
    return lambda images: run_model(deployed, network.thresholds, images)


def _batches(size: int, datamodule: FaceDataModule | None) -> list[Tensor]:
    """Return images on which files are compared with the checkpoint: random ones, one and several, and real ones."""
    generator = torch.Generator().manual_seed(0)
    random = torch.randint(0, 256, (5, 3, size, size), dtype=torch.uint8, generator=generator)
    batches = [random[:1], random]
    if datamodule is not None:
        batches.append(torch.from_numpy(_spread(datamodule, _COMPARED)))
    return batches


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
    path: Path, files: dict[str, Path], parities: dict[str, Parity], accuracies: dict[str, float], tested: str
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
        table.add_column(f"accuracy on {tested}", justify="right")
        table.add_column("points", justify="right")
        caption.append("accuracy: mean over the attributes at the fitted thresholds, in percent")
    for precision, file in {"checkpoint": path, **files}.items():
        cells = [precision, f"{_size(file) / 1e6:.1f}"]
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
