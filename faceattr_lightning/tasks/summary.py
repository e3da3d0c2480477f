"""``task=summary``: what a model's network consists of, and what a forward pass of it costs."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from lightning import seed_everything
from rich.console import Console
from rich.table import Table

from faceattr_lightning.instantiate import build
from faceattr_lightning.metrics.cost import Part, summarise
from faceattr_lightning.strategy import Process
from faceattr_lightning.tasks.train import make_model

log = logging.getLogger(__name__)


def summary(config: dict[str, Any], ranks: list[Process]) -> None:
    """Print the parts of the model's network, and write them into ``summary.json`` in the run's folder.

    Args:
        config: the job's configuration as plain data. No weights are loaded.
        ranks: not used.
    """
    seed_everything(config["seed"], workers=True, verbose=False)
    datamodule = build(config["data"], prepared=False)
    datamodule.setup()
    model = make_model(config, datamodule)
    total = summarise(model.network, datamodule.image_size)
    header = {
        "model": type(model).__name__,
        "backbone": config["backbone"]["name"],
        "image_size": datamodule.image_size,
    }
    table = Table(
        title=f"{header['model']}, {header['backbone']}: one image of {header['image_size']} pixels",
        caption="GMACs: multiply-accumulate operations of convolutions and matrix products, 1e9",
        title_justify="left",
        caption_justify="left",
    )
    for column in ("part", "class"):
        table.add_column(column)
    for column in ("parameters", "trainable", "GMACs"):
        table.add_column(column, justify="right")
    for part in total["parts"]:
        _add_rows(table, part, depth=0)
    table.add_section()
    _add_rows(table, {**total, "name": "in all", "parts": []}, depth=0)
    Console().print(table)
    path = Path(config["paths"]["run_dir"]) / "summary.json"
    path.write_text(json.dumps({**header, **total}, indent=2) + "\n", encoding="utf-8")
    log.info("Summary: %s", path)


def _add_rows(table: Table, part: Part, depth: int, above: str = "") -> None:
    """Add a part and its parts, without what has neither parameters nor operations."""
    if not part["parameters"] and not part["gmacs"]:
        return
    name = part["name"].removeprefix(above).lstrip(". ")
    figures = (f"{part['parameters']:,}", f"{part['trainable']:,}", f"{part['gmacs']:.4f}")
    table.add_row("  " * depth + name, part["type"], *figures)
    for inner in part["parts"]:
        _add_rows(table, inner, depth + 1, part["name"])
