"""A trained network's answers by eager PyTorch, by ONNX Runtime and by its int8 file, on one thread."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from faceattr_lightning.attributes import CELEBA_ATTRIBUTES
from faceattr_lightning.data.preprocessing import Preprocessing
from faceattr_lightning.export.int8 import quantise
from faceattr_lightning.export.onnx import Deployed, export_onnx, run_file, run_model
from faceattr_lightning.export.session import open_session
from faceattr_lightning.models.baseline import Baseline
from faceattr_lightning.networks.backbone import normalisation
from tests.benchmarks.rows import Row

ROUNDS = 7
MARKS = {1: (1 / 1.6, 1 / 4.5), 32: (1 / 2.2, 1 / 7)}
"""Batch size to the greatest ratio of the float32 and of the int8 file to eager."""


def inference(data: Path, scratch: Path) -> list[Row]:
    """Compare CPU milliseconds an image of a ResNet-50 at 224 pixels, weights and images drawn at random.

    Neither changes what an operation takes; what int8 costs in accuracy, ``task=export`` says of a trained checkpoint.
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)
    mean, std = normalisation("resnet50")
    preprocessing = Preprocessing((224, 224), (0, 0, 224, 224), 224, mean, std, ())
    model = Baseline(list(CELEBA_ATTRIBUTES), {"name": "resnet50"}, preprocessing.to_dict()).eval()
    exported, small = scratch / "resnet50.onnx", scratch / "resnet50.int8.onnx"
    export_onnx(model, exported)
    quantise(exported, small, np.random.default_rng(0).integers(0, 256, (4, 3, 224, 224), dtype=np.uint8))
    sessions = [open_session(path, threads=1) for path in (exported, small)]
    calibrator = model.calibrator
    deployed, thresholds = Deployed(model.network, calibrator.temperatures), calibrator.thresholds

    rows = []
    for batch_size, marks in MARKS.items():
        images = torch.randint(0, 256, (batch_size, 3, 224, 224), dtype=torch.uint8)
        own = images.contiguous(memory_format=torch.channels_last)

        def eager(own: torch.Tensor = own) -> Any:
            return run_model(deployed, thresholds, own)

        def bfloat16(own: torch.Tensor = own) -> Any:
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
                return deployed(own, thresholds)

        files = [lambda images=images, session=session: run_file(session, images) for session in sessions]
        times = interleaved([eager, *files, bfloat16], repeats=max(1, 8 // batch_size), per=batch_size)
        titles = ("ONNX Runtime", "ONNX Runtime, int8", "eager bfloat16")
        for title, ours, mark in zip(titles, times[1:], (*marks, None), strict=True):
            rows.append(Row(f"{title} against eager, batch {batch_size}", "ms", ours, times[0], at_most=mark))
    return rows


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
