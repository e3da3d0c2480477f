"""Losses over missing labels on two processes: averaged over the ranks they are those of one process."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing
from torch import Tensor

from faceattr_lightning.models.losses import age_group_loss, attribute_bce, labelled_count
from faceattr_lightning.models.mtl_cnn import CenterLoss


def samples() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 2, (8, 3), generator=generator)
    # The second half, which is the second rank's, has one label of the first attribute, and none has the third.
    labels[5:, 0] = -1
    labels[:, 2] = -1
    return {
        "logits": torch.randn(8, 3, generator=generator),
        "labels": labels,
        "age": torch.randn(8, 4, generator=generator),
        "age_group": torch.tensor([0, 1, 2, 3, -1, -1, -1, 1]),
        "embeddings": torch.randn(8, 3, 5, generator=generator),
    }


def losses(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    center = CenterLoss([2, 2, 2], width=5)
    center.update(batch["embeddings"], batch["labels"])
    return {
        "attributes": attribute_bce(batch["logits"], batch["labels"], labelled_count(batch["labels"] >= 0)),
        "age_group": age_group_loss(batch["age"], batch["age_group"]),
        "center": center(batch["embeddings"], batch["labels"]),
        "centers": center.centers,
    }


def one_rank(rank: int, folder: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    store = torch.distributed.FileStore(f"{folder}/store", 2)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    part = {name: values[4 * rank : 4 * rank + 4] for name, values in samples().items()}
    torch.save(losses(part), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_ranks_give_what_one_process_gives(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(one_rank, (str(tmp_path),), nprocs=2)  # type: ignore[no-untyped-call]
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    alone: dict[str, Any] = losses(samples())
    for name, expected in alone.items():
        torch.testing.assert_close((first[name] + second[name]) / 2, expected)
    assert torch.equal(first["centers"], second["centers"]) and alone["centers"].any()
