"""What answers: a checkpoint through torch, or an ONNX file through onnxruntime alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from faceattr_lightning.errors import ConfigError
from faceattr_lightning.export.session import open_session, read_metadata


@dataclass(frozen=True)
class ModelFacts:
    """What a model says of itself.

    Attributes:
        attribute_names: A names, in the order of the answers' columns.
        groups: group name to attribute names.
        age_groups: G names, youngest first; empty where none were learned.
        thresholds: float32 (A,), fitted on validation.
        image_size: height and width of the network's input in pixels.
        source_size: (height, width) in pixels of the aligned images of its data set.
        crop: (left, top, right, bottom) in pixels of those.
        template: (L, 2) mean landmarks as fractions of the crop; empty where its data set has none.
        version: of this program, that made the file.
    """

    attribute_names: list[str]
    groups: dict[str, list[str]]
    age_groups: list[str]
    thresholds: NDArray[np.float32]
    image_size: int
    source_size: tuple[int, int]
    crop: tuple[int, int, int, int]
    template: Sequence[Sequence[float]]
    version: str

    @property
    def crop_size(self) -> tuple[int, int]:
        """(height, width) of the crop in pixels."""
        left, top, right, bottom = self.crop
        return bottom - top, right - left


class Engine(Protocol):
    """A trained model as a function."""

    facts: ModelFacts

    def __call__(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """Return probabilities, float32 (B, A), and those of the age groups, (B, G), of a model that has them.

        Args:
            images: uint8 (B, S, S, 3), RGB, aligned, cropped and resized.
        """


class TorchEngine:
    """A checkpoint, on the CPU or another of torch's devices.

    Args:
        path: of the checkpoint.
        device: such as ``cpu`` or ``cuda``.

    Raises:
        ConfigError: see `load_network`, or there is no such device.
    """

    def __init__(self, path: Path, device: str = "cpu") -> None:
        # Here, so that an ONNX file needs no torch.
        import torch

        from faceattr_lightning.networks.load import load_network

        loaded = load_network(path, "model")
        self.facts = _facts(loaded.preprocessing.to_dict(), vars(loaded), loaded.thresholds.numpy())
        try:
            self.device = torch.device(device)
            self.network = loaded.network.to(self.device)
            self.temperatures = loaded.temperatures.to(self.device)
        except (RuntimeError, AssertionError) as error:
            raise ConfigError([f"device: torch has no '{device}' here ({str(error).splitlines()[0]})."]) from error

    def __call__(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """See `Engine`."""
        import torch

        with torch.inference_mode():
            batch = torch.from_numpy(images).to(self.device).permute(0, 3, 1, 2)
            output: Any = self.network(batch)
            probabilities = (output["logits"].float() / self.temperatures).sigmoid().cpu().numpy()
            ages = output["age_group"].float().softmax(dim=1).cpu().numpy() if "age_group" in output else None
        return probabilities, ages


class OnnxEngine:
    """A file of ``task=export``, on the CPU; neither torch nor Lightning is imported.

    Args:
        path: of the file.
        threads: within an operation; ``None`` for one per core.

    Raises:
        DataError: the file is missing, damaged or not of ``task=export``.
    """

    def __init__(self, path: Path, threads: int | None = None) -> None:
        self.session = open_session(path, threads)
        metadata = read_metadata(self.session)
        thresholds = np.array(metadata["thresholds"], np.float32)
        self.facts = _facts(metadata["preprocessing"], metadata, thresholds)

    def __call__(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """See `Engine`."""
        batch = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
        names = ["probabilities", *(["age_group"] if self.facts.age_groups else [])]
        probabilities, *ages = self.session.run(names, {"image": batch})
        return probabilities, ages[0] if ages else None


def open_engine(model: str | Path, device: str = "cpu") -> Engine:
    """Return the engine of a checkpoint or of an ONNX file.

    Raises:
        ConfigError: there is no such file, or see `TorchEngine`.
        DataError: see `OnnxEngine`.
    """
    path = Path(model).expanduser()
    if not path.is_file():
        raise ConfigError([f"model: there is no file {path}; expected a checkpoint (.ckpt) or an ONNX file (.onnx)."])
    if path.suffix == ".onnx":
        return OnnxEngine(path)
    return TorchEngine(path, device)


def _facts(preprocessing: dict[str, Any], said: dict[str, Any], thresholds: NDArray[np.float32]) -> ModelFacts:
    height, width = preprocessing["source_size"]
    left, top, right, bottom = preprocessing["crop"]
    return ModelFacts(
        attribute_names=list(said["attribute_names"]),
        groups=said["groups"],
        age_groups=list(said["age_groups"]),
        thresholds=thresholds,
        image_size=preprocessing["image_size"],
        source_size=(height, width),
        crop=(left, top, right, bottom),
        template=preprocessing["template"],
        version=said["version"],
    )
