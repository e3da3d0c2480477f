"""The features of a frozen backbone, computed once per image."""

from __future__ import annotations

import logging
import math
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lightning import Callback, Trainer
from numpy.typing import NDArray

from faceattr_lightning.data.batch import Batch

if TYPE_CHECKING:
    from faceattr_lightning.data.module import FaceDataModule
    from faceattr_lightning.models.module import AttributeModule

log = logging.getLogger(__name__)


class FrozenFeatures(Callback):
    """Puts the backbone's features in the place of a batch's images, each computed when it is first asked for.

    For ``backbone.freeze=all`` with ``data.augmentation=null``: a linear probe then costs one pass over the images, and
    its epochs next to nothing. With anything else it does nothing, since features change with weights and images. The
    features lie in a file of their own in the cache's folder, float32 (N, C, h, w), which is gone when the process
    ends; each rank keeps those of its samples.
    """

    def __init__(self) -> None:
        self._features: NDArray[np.float32] | None = None
        self._known: NDArray[np.bool_] = np.zeros(0, dtype=bool)
        self._active = False

    def setup(self, trainer: Trainer, pl_module: AttributeModule, stage: str) -> None:  # type: ignore[override]
        datamodule: FaceDataModule = trainer.datamodule  # type: ignore[attr-defined]
        backbone: Any = pl_module.network.backbone
        trained = any(parameter.requires_grad for parameter in backbone.parameters())
        # A network that averages mirror images needs images: mirrored features are not those of a mirrored image.
        whole = pl_module.backbone_needs == "map" and not getattr(pl_module.network, "mirror", False)
        self._active = not trained and whole and datamodule.augmentation is None
        if self._active and not len(self._known):
            self._known = np.zeros(len(datamodule.table), dtype=bool)
            log.info("The backbone is frozen and nothing augmented: the features of each image are computed once.")

    def on_train_batch_start(self, trainer: Trainer, pl_module: AttributeModule, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        self._replace(trainer, pl_module, batch)

    def on_validation_batch_start(self, trainer: Trainer, pl_module: AttributeModule, batch: Any, *_: Any) -> None:  # type: ignore[override]
        self._replace(trainer, pl_module, batch)

    def on_test_batch_start(self, trainer: Trainer, pl_module: AttributeModule, batch: Any, *_: Any) -> None:  # type: ignore[override]
        self._replace(trainer, pl_module, batch)

    def _replace(self, trainer: Trainer, model: AttributeModule, batch: Batch) -> None:
        datamodule: FaceDataModule = trainer.datamodule  # type: ignore[attr-defined]
        if not self._active or datamodule.train_size is not None:
            return
        rows = batch["index"].cpu().numpy()
        new = ~self._known[rows]
        if new.any():
            images = batch["image"][torch.from_numpy(new).to(batch["image"].device)]
            backbone: Any = model.network.backbone
            with torch.no_grad(), trainer.precision_plugin.forward_context():
                features = backbone(images).float().cpu().numpy()
            if self._features is None:
                self._features = self._make_file((len(self._known), *features.shape[1:]), datamodule.cache_dir)
            if self._features is None:
                return
            self._features[rows[new]] = features
            self._known[rows] = True
        assert self._features is not None
        batch["image"] = torch.from_numpy(self._features[rows]).to(batch["image"].device)

    def _make_file(self, shape: tuple[int, ...], folder: Path) -> NDArray[np.float32] | None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # Without a name, so that the system removes it whatever happens to this process.
            with tempfile.TemporaryFile(dir=folder) as file:
                if hasattr(os, "posix_fallocate"):
                    # Or a disk that runs full would end the process while it writes.
                    os.posix_fallocate(file.fileno(), 0, 4 * math.prod(shape))
                return np.memmap(file, dtype=np.float32, mode="w+", shape=shape)
        except OSError as error:
            log.warning("%s has no room for the features (%s); they are computed each time.", folder, error.strerror)
            self._active = False
            return None
