"""How a checkpoint gets onto the disk: whole, or not at all."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO

from faceattr_lightning.files import whole_file


class WholeCheckpointIO(TorchCheckpointIO):
    """Writes beside the file and puts it in its place when it is on the disk.

    Lightning's own writes into the system's folder for temporary files, from where the way to the run's folder may be a
    copy, which a killed process leaves half-made.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        write_checkpoint(checkpoint, Path(path))


def write_checkpoint(checkpoint: dict[str, Any], path: Path) -> None:
    """Write a checkpoint so that a reader sees the old file or the new one, never a part, also after a power cut.

    Raises:
        OSError: the disk is full or can't be written to; what was there before is still there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # In memory first: of a disk that runs full torch.save says less than the system does.
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    try:
        with whole_file(path) as partial, partial.open("wb") as file:
            file.write(buffer.getbuffer())
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        # The name of the file that the user knows.
        raise OSError(error.errno, error.strerror, str(path)) from error
