"""What a weighting costs: twenty training steps with each against twenty with uniform weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from faceattr_lightning.attributes import CELEBA_ATTRIBUTES
from faceattr_lightning.data.batch import Batch
from faceattr_lightning.data.preprocessing import Preprocessing
from faceattr_lightning.models.dmm_cnn import DMMCNN
from tests.benchmarks.clock import interleave
from tests.benchmarks.ours import compose_config
from tests.benchmarks.rows import Row

WEIGHTINGS = ("dws", "uncertainty", "gradnorm")
SIZE, BATCH, STEPS = 64, 32, 20
# One process has nothing to gather.
ALONE: Any = SimpleNamespace(strategy=SimpleNamespace(reduce=lambda values, reduce_op: values))


def weighting(data: Path, scratch: Path) -> list[Row]:
    """Compare CPU seconds of a step of DMM-CNN over ResNet-18 as configured by default, GradNorm's every 20th being the
    one that measures gradients.
    """
    names = ("uniform", *WEIGHTINGS)
    sides = interleave([_steps(name) for name in names])
    plain, *others = ([1000 * second for second in seconds] for seconds in sides)
    return [
        Row(f"step of dmm_cnn, resnet18, {SIZE} px, weighting={name} against uniform", "ms", seconds, plain)
        for name, seconds in zip(WEIGHTINGS, others, strict=True)
    ]


def _steps(name: str) -> Iterator[int]:
    config = compose_config("model=dmm_cnn", f"weighting={name}", "paths.run_dir=.")
    torch.manual_seed(0)
    preprocessing = Preprocessing((218, 178), (0, 20, 178, 198), SIZE, (0.5,) * 3, (0.5,) * 3)
    model = DMMCNN(
        list(CELEBA_ATTRIBUTES), config["backbone"], preprocessing.to_dict(), weighting=config["weighting"], landmarks=0
    ).train()
    batch: Batch = {
        "image": torch.randint(0, 256, (BATCH, 3, SIZE, SIZE), dtype=torch.uint8),
        "attributes": torch.randint(0, 2, (BATCH, len(CELEBA_ATTRIBUTES)), dtype=torch.int8),
        "landmarks": torch.zeros(BATCH, 0, 2),
        "landmarks_valid": torch.zeros(BATCH, 0, dtype=torch.bool),
        "identity": torch.full((BATCH,), -1),
        "index": torch.arange(BATCH),
        "age_group": torch.full((BATCH,), -1),
        "database": torch.zeros(BATCH, dtype=torch.int64),
    }
    learned = model.weighting.parameter_groups()
    optimizer = torch.optim.AdamW([{"params": list(model.network.parameters())}, *learned], fused=True)
    while True:
        for index in range(STEPS):
            outputs = model.training_step(batch, index)
            model.weighting.on_before_backward(ALONE, model, outputs["loss"])
            optimizer.zero_grad()
            outputs["loss"].backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            model.weighting.on_train_batch_end(ALONE, model, outputs, batch, index)  # type: ignore[arg-type]
        yield STEPS
