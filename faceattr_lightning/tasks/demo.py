"""``task=demo``: a local web page, on which a checkpoint, or an ONNX file, is asked about photos."""

from __future__ import annotations

import importlib.util
import logging
from typing import Any

from faceattr_lightning.demo.server import ended_by_signals, listening, serve, upload_folder
from faceattr_lightning.errors import ConfigError
from faceattr_lightning.inference.engine import TorchEngine
from faceattr_lightning.inference.predictor import Predictor
from faceattr_lightning.instantiate import build
from faceattr_lightning.strategy import Process
from faceattr_lightning.tasks.checkpoint import newest_checkpoint

log = logging.getLogger(__name__)

_PACKAGES = ("gradio", "captum")


def check_installed() -> None:
    """Raise a ConfigError unless the packages of the extra ``demo`` are there."""
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            [f"task: demo needs {', '.join(missing)}, not installed here; run: pip install 'faceattr-lightning[demo]'."]
        )


def demo(
    config: dict[str, Any],
    ranks: list[Process],
    detector: dict[str, Any],
    host: str = "127.0.0.1",
    port: int = 7860,
    most_megabytes: int = 30,
    most_pixels: int = 50_000_000,
    thresholds: dict[str, float] | None = None,
    device: str = "cpu",
) -> None:
    """Show the page until Ctrl-C or SIGTERM.

    A photo that is dropped on it shows its faces, and of each its attributes by thresholds that sliders move, and where
    the model looked. The page and the program ask nothing of any other machine. A photo's file is deleted when it has
    been read; its faces stay in memory for half an hour.

    Args:
        config: the job's configuration as plain data.
        ranks: not used.
        detector: node of a `faceattr_lightning.inference.detection.FaceDetector`.
        host: address to listen at; any but one of the loopback lets other machines in.
        port: to listen at; 0 for any that is free.
        most_megabytes: of the largest photo to take, 2^20 bytes each.
        most_pixels: of the largest photo to decode.
        thresholds: attribute name to threshold, in place of the fitted one.
        device: of torch.

    Raises:
        ConfigError: a package or the checkpoint is missing, the page can't listen there, or the model or detector can't
            be made.
    """
    check_installed()
    model = newest_checkpoint(config["ckpt_path"] or "best", config["paths"]["output_dir"])
    with ended_by_signals(), listening(host, port) as (listener, address), upload_folder() as folder:
        log.info("Model: %s", model)
        predictor = Predictor(model, build(detector), thresholds=thresholds, device=device, most_pixels=most_pixels)
        # Here, since it takes seconds, and only now is it sure to be needed.
        from faceattr_lightning.demo.html import CSS
        from faceattr_lightning.demo.page import Page

        engine = predictor.engine
        page = Page(
            predictor,
            engine if isinstance(engine, TorchEngine) else None,
            folder,
            title=f"faceattr-lightning: {model.name}",
            limits=f"A photo of at most {most_megabytes} MB and {most_pixels:,} pixels.",
        )
        log.info("Page: %s (Ctrl-C ends it)", address)
        serve(page.build(), listener, most_megabytes, CSS)
    log.info("Ended; no photo is kept.")
