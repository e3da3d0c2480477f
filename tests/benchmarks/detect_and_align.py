"""``python -m tests.benchmarks.detect_and_align --checkpoint FILE``: what finding and aligning costs in accuracy.

The checkpoint answers its data set's test images twice: cropped as in training, and as photos whose face is found,
aligned to the template and cut out as `Predictor` does it. LFWA's photos are so as they are; CelebA's images, of 178 x
218 pixels, are first turned, enlarged and put somewhere into a larger photo (see `tests.benchmarks.alignment.scatter`).
Needs FACEATTR_DATA, or what the checkpoint says of its data set's folder.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table

from faceattr_lightning.data.module import FaceDataModule
from faceattr_lightning.data.table import Split
from faceattr_lightning.inference.alignment import AlignmentError, align, align_box, crop_aligned, warp
from faceattr_lightning.inference.detection import DetectedFace, MTCNNDetector
from faceattr_lightning.inference.engine import ModelFacts, TorchEngine
from faceattr_lightning.instantiate import build
from faceattr_lightning.metrics.attribute_metrics import average_precision
from faceattr_lightning.networks.load import load_network
from tests.benchmarks.alignment import inverse, scatter

SCALES = (1.0, 4.0)
"""Of a CelebA image in its photo: never smaller than it was, so that nothing but the alignment is lost."""
SEED = 0
BATCH_SIZE = 32
_SQUARE = 250  # LFW's photos are photos already.


@dataclass(frozen=True)
class Cut:
    """The face of a test image as the network is to see it, uint8 (S, S, 3).

    Attributes:
        official: cropped as in training.
        found: found, aligned and cut out of the photo; ``None`` without a face.
        back: the photo brought back by the very transform that made it, which shows what sampling an image twice
            takes; ``None`` where nothing was made.
    """

    official: NDArray[np.uint8]
    found: NDArray[np.uint8] | None
    back: NDArray[np.uint8] | None


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.detect_and_align", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--checkpoint", type=Path, required=True, help="of LFWA or CelebA")
    parser.add_argument("--images", type=int, help="how many of the test split (default: all)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    engine = TorchEngine(arguments.checkpoint)
    datamodule = open_data(arguments.checkpoint)
    rows = datamodule.table.rows(Split.TEST)[: arguments.images]
    cuts = cut_all(datamodule, rows, engine.facts)
    labels = torch.from_numpy(datamodule.table.attributes[rows])
    Console(width=120).print(make_table(engine, cuts, labels, f"{arguments.checkpoint}, {datamodule.name}"))


def open_data(checkpoint: Path) -> FaceDataModule:
    """Return the data set that a checkpoint was trained with."""
    node = load_network(checkpoint).facts["config"]["data"]
    datamodule: FaceDataModule = build({**node, "prepared": False})
    datamodule.setup()
    return datamodule


def cut_all(datamodule: FaceDataModule, rows: NDArray[np.int64], facts: ModelFacts) -> list[Cut]:
    """Return the faces of test images."""
    detector, rng = MTCNNDetector(), np.random.default_rng(SEED)
    store = datamodule.open_store(datamodule.table)
    cuts = []
    for row in track(rows, "Finding and aligning"):
        (image,) = store.read(np.array([row]))
        to_photo, photo, back = np.eye(2, 3), image, None
        if image.shape[:2] != (_SQUARE, _SQUARE):
            photo, to_photo = scatter(image, rng, SCALES)
            again = warp(photo, inverse(to_photo), image.shape[:2])
            back = crop_aligned(again, facts.source_size, facts.crop, facts.image_size)
        official = crop_aligned(image, facts.source_size, facts.crop, facts.image_size)
        centre = to_photo @ [image.shape[1] / 2, image.shape[0] / 2, 1]
        cuts.append(Cut(official, cut_found(photo, nearest(detector(photo), centre), facts), back))
    return cuts


def nearest(faces: list[DetectedFace], centre: NDArray[np.float64]) -> DetectedFace | None:
    """Return the face whose box is nearest to a place of the photo, and reaches over it."""
    around = [face for face in faces if (face.box[:2] < centre).all() and (centre < face.box[2:]).all()]
    return min(around, key=lambda face: np.linalg.norm((face.box[:2] + face.box[2:]) / 2 - centre), default=None)


def cut_found(photo: NDArray[np.uint8], face: DetectedFace | None, facts: ModelFacts) -> NDArray[np.uint8] | None:
    """Return what `Predictor` shows the network of a face."""
    try:
        if face is None:
            return None
        if not facts.template:
            return align_box(photo, face.box, facts.crop_size, facts.image_size)
        return align(photo, face.landmarks, facts.template, facts.crop_size, facts.image_size)
    except AlignmentError:
        return None


def make_table(engine: TorchEngine, cuts: list[Cut], labels: torch.Tensor, title: str) -> Table:
    """Return the table of accuracies and average precisions, and what is lost.

    Differences pair image with image, on those with a face. Their ± is 1.96 standard errors of the mean over images.
    """
    table = Table(title=title, title_justify="left", caption_justify="left")
    for heading in ("", "images", "accuracy", "points", "average precision", "points"):
        table.add_column(heading, justify="left" if not heading else "right")
    official = answers(engine, [cut.official for cut in cuts])
    table.add_row("cropped as in training", f"{len(cuts):,}", *figures(engine, official, labels))
    for name, chosen in (
        ("made a photo, and brought back", [cut.back for cut in cuts]),
        ("found and aligned", [cut.found for cut in cuts]),
    ):
        there = np.array([image is not None for image in chosen])
        if there.any():
            other = answers(engine, [image for image in chosen if image is not None])
            cells = figures(engine, other, labels[there], official[there])
            table.add_row(name, f"{there.sum():,}", *cells)
    faceless = sum(cut.found is None for cut in cuts)
    table.caption = (
        f"without a face: {faceless:,} of {len(cuts):,} ({100 * faceless / len(cuts):.2f} %); "
        "means over the attributes at the fitted thresholds, in percent; points: less what the same images, cropped as "
        "in training, have"
    )
    return table


def answers(engine: TorchEngine, images: list[NDArray[np.uint8]]) -> NDArray[np.float32]:
    """Return probabilities, float32 (N, A)."""
    starts = track(range(0, len(images), BATCH_SIZE), "Predicting")
    return np.concatenate([engine(np.stack(images[start : start + BATCH_SIZE]))[0] for start in starts])


def figures(
    engine: TorchEngine,
    probabilities: NDArray[np.float32],
    labels: torch.Tensor,
    official: NDArray[np.float32] | None = None,
) -> tuple[str, str, str, str]:
    """Return mean accuracy and average precision as they stand in the table, and by how much each differs."""
    right, precision = judged(engine, probabilities, labels)
    if official is None:
        return f"{100 * right.mean():.2f}", "", f"{100 * precision:.2f}", ""
    before, precision_before = judged(engine, official, labels)
    lost = right - before
    error = 1.96 * lost.std() / np.sqrt(len(lost))
    return (
        f"{100 * right.mean():.2f}",
        f"{100 * lost.mean():+.2f} ± {100 * error:.2f}",
        f"{100 * precision:.2f}",
        f"{100 * (precision - precision_before):+.2f}",
    )


def judged(
    engine: TorchEngine, probabilities: NDArray[np.float32], labels: torch.Tensor
) -> tuple[NDArray[np.float64], float]:
    """Return the accuracy of each image, float64 (N,), and the mean average precision over the attributes."""
    decided = probabilities >= engine.facts.thresholds
    known = labels.numpy() >= 0
    right = ((decided == (labels.numpy() == 1)) & known).sum(axis=1) / known.sum(axis=1)
    return right, float(average_precision(torch.from_numpy(probabilities), labels).nanmean())


if __name__ == "__main__":
    main()
