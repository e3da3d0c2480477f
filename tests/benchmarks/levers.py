"""What automatic defaults and switches give: a training step with each against one without."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from faceattr_lightning.allocator import keep_freed_memory
from faceattr_lightning.models.losses import attribute_bce
from faceattr_lightning.networks.backbone import Backbone
from faceattr_lightning.networks.baseline import BaselineNetwork
from tests.benchmarks.clock import Turn, interleave_processes
from tests.benchmarks.rows import Row

ATTRIBUTES = 40
DEPTHWISE, DENSE = "tf_efficientnet_lite0", "resnet18"


def levers(data: Path, scratch: Path) -> list[Row]:
    """Compare CPU seconds of a step on one batch in memory, each side in a process of its own.

    All that is not named stands as by default: channels-last, a fused AdamW, memory that is kept, 32 bits. The
    backbones are EfficientNet-Lite0 for depthwise convolutions and ResNet-18 for dense ones.
    """
    lite = {"name": DEPTHWISE, "size": 128, "batch": 64}
    res = {"name": DENSE, "size": 112, "batch": 64}
    return [
        _row("keep_freed_memory, EfficientNet-Lite0 128 px", lite, {}, {"keep": False}),
        _row("keep_freed_memory, ResNet-18 112 px", res, {}, {"keep": False}),
        _row("channels_last, EfficientNet-Lite0 128 px", lite, {}, {"channels_last": False}),
        _row("channels_last, ResNet-18 112 px", res, {}, {"channels_last": False}),
        _row("bf16-mixed, EfficientNet-Lite0 128 px (auto leaves it)", lite, {"bfloat16": True}, {}),
        _row("bf16-mixed, ResNet-18 112 px", res, {"bfloat16": True}, {}),
        _row("fused AdamW, EfficientNet-Lite0 32 px, batch 2", {**lite, "size": 32, "batch": 2}, {}, {"fused": False}),
        _row("backbone.freeze=2, EfficientNet-Lite0 128 px", lite, {"freeze": 2}, {}),
        _row("backbone.freeze=3, EfficientNet-Lite0 128 px", lite, {"freeze": 3}, {}),
        _row("images of 64 px for 128, EfficientNet-Lite0", lite, {"size": 64}, {}),
        _row(
            "a frozen backbone's features for its images", lite, {"freeze": "all", "features": True}, {"freeze": "all"}
        ),
    ]


def _row(name: str, common: dict[str, Any], ours: dict[str, Any], reference: dict[str, Any]) -> Row:
    sides = [partial(_train, **{**common, **own}) for own in (ours, reference)]
    first, second = (measured.seconds[1:] for measured in interleave_processes(sides))
    return Row(name, "ms", [1000 * value for value in first], [1000 * value for value in second])


def _train(
    turn: Turn,
    name: str,
    size: int,
    batch: int,
    keep: bool = True,
    channels_last: bool = True,
    bfloat16: bool = False,
    fused: bool = True,
    freeze: int | Literal["all"] = 0,
    features: bool = False,
) -> None:
    if keep:
        keep_freed_memory()
    torch.manual_seed(0)
    backbone = Backbone(name, (0.5,) * 3, (0.5,) * 3, size, channels_last)
    backbone.freeze(freeze)
    network = BaselineNetwork(backbone, ATTRIBUTES).train()
    image = torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8)
    labels = torch.randint(0, 2, (batch, ATTRIBUTES), dtype=torch.int8)
    if channels_last:
        image = image.contiguous(memory_format=torch.channels_last)
    if features:
        image = backbone(image)
    optimizer = torch.optim.AdamW([one for one in network.parameters() if one.requires_grad], fused=fused)

    def steps() -> Iterator[int]:
        while True:
            with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
                logits = network(image)["logits"]
            optimizer.zero_grad()
            attribute_bce(logits, labels).sum().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            yield 1

    endless = steps()
    for _ in itertools.count():
        turn.fill(endless)
