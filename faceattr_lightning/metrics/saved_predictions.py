"""The file in which a run leaves what its model said of a split, for comparisons that pair image with image."""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from faceattr_lightning.errors import DataError
from faceattr_lightning.files import whole_file
from faceattr_lightning.metrics.predictions import Predictions

_ARRAYS = ("logits", "labels", "index", "identity", "files", "thresholds", "train_prevalence", "attribute_names")


@dataclass(frozen=True)
class SavedPredictions:
    """A model's predictions on the N images of a split, with what is needed to judge them.

    Attributes:
        predictions: logits scaled by the temperatures, without measures.
        identity: int64 (N,), -1 where unknown.
        files: (N,) names of the images.
        thresholds: float32 (A,).
        train_prevalence: float32 (A,), NaN where not known.
        attribute_names: A names.
        config: the configuration that the model was trained and calibrated with.
    """

    predictions: Predictions
    identity: NDArray[np.int64]
    files: list[str]
    thresholds: Tensor
    train_prevalence: Tensor
    attribute_names: list[str]
    config: dict[str, Any]

    def write(self, path: Path) -> None:
        """Write a ``.npz`` file without pickles."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as partial, partial.open("wb") as file:
            np.savez_compressed(
                file,
                logits=self.predictions.logits.numpy(),
                labels=self.predictions.labels.numpy(),
                index=self.predictions.index.numpy(),
                identity=self.identity,
                files=np.array(self.files),
                thresholds=self.thresholds.cpu().numpy(),
                train_prevalence=self.train_prevalence.cpu().numpy(),
                attribute_names=np.array(self.attribute_names),
                config=np.array(json.dumps(self.config)),
            )

    @classmethod
    def read(cls, path: Path) -> SavedPredictions:
        """Read what `write` wrote.

        Raises:
            DataError: there is no such file, or it is another one or damaged.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in _ARRAYS}
                config = json.loads(str(file["config"]))
        except FileNotFoundError as error:
            raise DataError(
                f"{path}: there is no such file; expected what a run of this version leaves when its test ends. Run "
                "task=test ckpt_path= of that run's checkpoint, and compare its folder."
            ) from error
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            reason = " ".join(str(error).split())
            raise DataError(
                f"{path}: can't be read as a run's predictions ({reason}); it is damaged or another file. Run "
                "task=test of that run's checkpoint again."
            ) from error
        logits, labels, index = (torch.from_numpy(arrays[name]) for name in ("logits", "labels", "index"))
        return cls(
            Predictions(logits, labels, index, {}),
            arrays["identity"],
            arrays["files"].tolist(),
            torch.from_numpy(arrays["thresholds"]),
            torch.from_numpy(arrays["train_prevalence"]),
            arrays["attribute_names"].tolist(),
            config,
        )
