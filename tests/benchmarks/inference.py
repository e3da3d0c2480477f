"""Faces and photos a second, on one thread: a network by eager PyTorch, compiled, by ONNX Runtime and by its int8 file;
and what comes before it for a photo, that is reading, detection and alignment.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from faceattr_lightning.attributes import CELEBA_ATTRIBUTES
from faceattr_lightning.data.preprocessing import Preprocessing
from faceattr_lightning.data.synthetic_faces import draw_face, sample_people
from faceattr_lightning.export.int8 import quantise
from faceattr_lightning.export.onnx import Deployed, export_onnx, run_file, run_model
from faceattr_lightning.export.session import open_session
from faceattr_lightning.inference.alignment import align
from faceattr_lightning.inference.detection import MTCNNDetector
from faceattr_lightning.inference.photo import read_photo
from faceattr_lightning.models.baseline import Baseline
from faceattr_lightning.networks.backbone import normalisation
from tests.benchmarks.faces import GRAIN
from tests.benchmarks.rows import PER_IMAGE, Row

ROUNDS = 7
NETWORKS: dict[tuple[str, int], dict[int, tuple[float | None, float | None]]] = {
    ("resnet50", 224): {1: (1 / 1.6, 1 / 4.5), 32: (1 / 2.2, 1 / 7)},
    ("tf_efficientnet_lite0", 128): {1: (None, None), 32: (None, None)},
}
"""Backbone and image size, and for each batch size the greatest ratio of the float32 and of the int8 file to eager."""
PHOTOS = {"250 x 250": (250, 250, 250), "4,000 x 3,000": (3000, 4000, 800)}
"""Height and width of a photo, and of the drawn face in it, in pixels."""
TEMPLATE = ((0.3965, 0.5212), (0.6162, 0.521), (0.5043, 0.6579), (0.407, 0.7534), (0.6038, 0.7526))
"""CelebA's, in the crop of 178 x 178 pixels."""


def inference(data: Path, scratch: Path) -> list[Row]:
    """Compare CPU milliseconds an image: the networks with weights and images drawn at random, the photos drawn faces.

    Neither changes what an operation takes; what int8 costs in accuracy, ``task=export`` says of a trained checkpoint.
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)
    networks = [_network_rows(name, size, marks, scratch) for (name, size), marks in NETWORKS.items()]
    photos = [_photo_rows(title, size, scratch) for title, size in PHOTOS.items()]
    return [row for part in [*networks, *photos] for row in part]


def _network_rows(
    name: str, size: int, marks: dict[int, tuple[float | None, float | None]], scratch: Path
) -> list[Row]:
    mean, std = normalisation(name)
    preprocessing = Preprocessing((size, size), (0, 0, size, size), size, mean, std, ())
    model = Baseline(list(CELEBA_ATTRIBUTES), {"name": name}, preprocessing.to_dict()).eval()
    exported, small = scratch / f"{name}.onnx", scratch / f"{name}.int8.onnx"
    export_onnx(model, exported)
    quantise(exported, small, np.random.default_rng(0).integers(0, 256, (4, 3, size, size), dtype=np.uint8))
    sessions = [open_session(path, threads=1) for path in (exported, small)]
    calibrator = model.calibrator
    deployed, thresholds = Deployed(model.network, calibrator.temperatures), calibrator.thresholds
    compiled = copy.deepcopy(deployed)
    compiled.network.compile(dynamic=False)

    def bfloat16(images: Tensor) -> Any:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            return deployed(images, thresholds)

    rows = []
    for batch_size, (at_most, at_most_int8) in marks.items():
        images = torch.randint(0, 256, (batch_size, 3, size, size), dtype=torch.uint8)
        own = images.contiguous(memory_format=torch.channels_last)
        sides: dict[str, tuple[Callable[[], Any], float | None]] = {
            "eager": (partial(run_model, deployed, thresholds, own), None),
            "ONNX Runtime": (partial(run_file, sessions[0], images), at_most),
            "ONNX Runtime, int8": (partial(run_file, sessions[1], images), at_most_int8),
            "compiled": (partial(run_model, compiled, thresholds, own), None),
            "eager bfloat16": (partial(bfloat16, own), None),
        }
        times = interleaved([call for call, _ in sides.values()], repeats=max(1, 8 // batch_size), per=batch_size)
        for (title, (_, mark)), ours in zip(list(sides.items())[1:], times[1:], strict=True):
            row = f"{name} at {size}: {title} against eager, batch {batch_size}"
            rows.append(Row(row, PER_IMAGE, ours, times[0], at_most=mark))
    return rows


def _photo_rows(title: str, size: tuple[int, int, int], scratch: Path) -> list[Row]:
    path = scratch / f"{title}.jpg"
    write_photo(path, size)
    photo, detector = read_photo(path), MTCNNDetector()
    (face, *_) = detector(photo)
    steps: dict[str, Callable[[], Any]] = {
        f"reading a photo of {title}": partial(read_photo, path),
        f"detection in a photo of {title}": partial(detector, photo),
        f"alignment of a face in a photo of {title}": partial(align, photo, face.landmarks, TEMPLATE, (178, 178), 128),
    }
    times = interleaved(list(steps.values()), repeats=1, per=1)
    return [Row(name, PER_IMAGE, ours) for name, ours in zip(steps, times, strict=True)]


def write_photo(path: Path, size: tuple[int, int, int]) -> None:
    """Write a grainy JPEG of a drawn face.

    Args:
        path: of the file.
        size: height and width of the photo, and height of the face's part of it, in pixels.
    """
    height, width, share = size
    rng = np.random.default_rng(0)
    face = Image.fromarray(draw_face(sample_people(1, 0).attributes[0], 0, 0, 0)[0])
    photo = Image.new("RGB", (width, height), face.getpixel((0, 0)))
    face = face.resize((round(share * face.width / face.height), share), Image.Resampling.BICUBIC)
    photo.paste(face, ((width - face.width) // 2, (height - face.height) // 2))
    grain = rng.standard_normal((height, width, 1), dtype=np.float32) * GRAIN
    Image.fromarray((np.asarray(photo) + grain).clip(0, 255).astype(np.uint8)).save(path, quality=90)


def interleaved(calls: list[Callable[[], Any]], repeats: int, per: int) -> list[list[float]]:
    """Return for each call its CPU milliseconds over ``per``, a value per round; the first round is not counted."""
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(ROUNDS + 1):
        for call, measured in zip(calls, times, strict=True):
            start = time.process_time()
            for _ in range(repeats):
                call()
            measured.append(1000 * (time.process_time() - start) / repeats / per)
    return [measured[1:] for measured in times]
