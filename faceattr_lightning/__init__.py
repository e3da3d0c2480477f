"""faceattr-lightning: train, compare and trust multi-task facial attribute models."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

# Before it is imported anywhere: from 1.29 on onnxruntime's wheels tell Microsoft of the program and its models.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

if TYPE_CHECKING:
    from faceattr_lightning.inference.predictor import Predictor as Predictor

__version__ = "0.1.0"
__all__ = ["Predictor"]


def __getattr__(name: str) -> Any:
    # When it is first asked for: numpy and PIL are slow to import, and the command line looks at the version alone.
    if name == "Predictor":
        from faceattr_lightning.inference.predictor import Predictor

        return Predictor
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
