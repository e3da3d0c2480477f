"""``task=annotate``: find landmarks and write them as a landmark file, for data that has none.

Each worker process imports this module, so nothing here imports torch before a data set is asked for.
"""

from __future__ import annotations

import itertools
import logging
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from faceattr_lightning.data.annotations import check_writable, write_landmarks
from faceattr_lightning.data.images import check_image, read_image
from faceattr_lightning.errors import ConfigError, DataError
from faceattr_lightning.instantiate import build
from faceattr_lightning.keypoints import KeypointModel
from faceattr_lightning.landmarks import LANDMARK_COLUMNS
from faceattr_lightning.processes import process_pool

if TYPE_CHECKING:
    from faceattr_lightning.strategy import Process

log = logging.getLogger(__name__)

_SUFFIXES = (".jpg", ".jpeg", ".png")
_CHUNK = 16
_LISTED = 10


@dataclass(frozen=True)
class _Images:
    """What is annotated.

    Attributes:
        name: stands in the landmark file's name.
        root: the folder that `files` are relative to.
        files: (N,) names of the images.
        size: (height, width) in pixels of all of them; ``None`` if each has its own.
    """

    name: str
    root: Path
    files: list[str]
    size: tuple[int, int] | None


def annotate(config: dict[str, Any], ranks: list[Process]) -> None:
    """Run the keypoint model over the images of ``data``, or over those under the folder ``images``.

    Writes ``list_landmarks_<name>.txt`` and ``without_face.txt``, the names of the images without a row in it, into the
    run's folder, in pixels of the image files; an image that may have any size is turned upright first, see
    `read_image`. The files are the same for any number of worker processes. What an interrupted run has found goes into
    ``list_landmarks_<name>.txt.partial``.

    Args:
        config: the job's configuration as plain data; ``keypoints`` is the node of a `KeypointModel`.
        ranks: not used.

    Raises:
        ConfigError: there is nothing to annotate, or the keypoint model can't be made.
        DataError: an image can't be read, a name can't stand in a landmark file, or no image has a face.
    """
    node = config["keypoints"]
    points = build(node).points
    if points not in LANDMARK_COLUMNS:
        known = ", ".join(map(str, LANDMARK_COLUMNS))
        raise ConfigError([f"keypoints: {node['_target_']} gives {points} points; known are layouts of {known}."])
    images = _of_folder(config["images"]) if config["images"] is not None else _of_data_set(config["data"])
    check_writable(images.files)
    run_dir = Path(config["paths"]["run_dir"])
    path = run_dir / f"list_landmarks_{images.name}.txt"
    landmarks = np.full((len(images.files), points, 2), np.nan, dtype=np.float32)
    sizes = np.ones((len(images.files), 2), dtype=np.int64)
    done = 0
    try:
        with process_pool(_start_worker, node) as pool:
            paths = [images.root / file for file in images.files]
            found = pool.map(_find, paths, itertools.repeat(images.size), chunksize=_CHUNK)
            try:
                for done, (face, size) in enumerate(track(found, "Finding faces", total=len(paths)), start=1):
                    sizes[done - 1] = size
                    if face is not None:
                        landmarks[done - 1] = face
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    except BaseException as error:
        if done:
            partial = path.with_name(path.name + ".partial")
            write_landmarks(partial, images.files, landmarks, sizes)
            log.warning("Stopped after %d of %d images; found until then: %s", done, len(images.files), partial)
        if isinstance(error, KeyboardInterrupt):
            raise SystemExit(128 + signal.SIGINT) from None
        raise
    without = [file for file, missing in zip(images.files, np.isnan(landmarks[:, 0, 0]), strict=True) if missing]
    (run_dir / "without_face.txt").write_text("".join(f"{file}\n" for file in without), encoding="utf-8")
    log.info("%d of %d images have a face.", len(images.files) - len(without), len(images.files))
    if len(without) == len(images.files):
        raise DataError(f"{images.root}: no image has a face that the keypoint model finds; nothing was written.")
    if without:
        more = f" and {len(without) - _LISTED} more" if len(without) > _LISTED else ""
        log.info("Without: %s%s; all of them: %s", ", ".join(without[:_LISTED]), more, run_dir / "without_face.txt")
    write_landmarks(path, images.files, landmarks, sizes)
    log.info("To train with these landmarks: data.landmark_file=%s", _argument(path))


def _of_data_set(node: dict[str, Any]) -> _Images:
    from faceattr_lightning.data.fused import Fused
    from faceattr_lightning.data.module import FaceDataModule
    from faceattr_lightning.data.synthetic import Synthetic

    datamodule: FaceDataModule = build(node, prepared=False)
    if isinstance(datamodule, Synthetic):
        raise ConfigError(
            [
                f"data: the images of '{datamodule.name}' are drawn and have their landmarks already; choose another "
                "data set, such as data=lfwa, or a folder: images=FOLDER."
            ]
        )
    if isinstance(datamodule, Fused):
        raise ConfigError([f"data: '{datamodule.name}' is made of other data sets; annotate each of them."])
    datamodule.prepare_data()
    datamodule.setup()
    table = datamodule.table
    # Of files of any size the landmarks are in pixels of each file.
    return _Images(table.name, table.root, table.files, None if datamodule.any_size else table.image_size)


def _of_folder(name: str) -> _Images:
    """Return every image under a folder, after checking that each can be read."""
    root = Path(name).expanduser().absolute()
    if not root.is_dir():
        raise ConfigError([f"images: there is no folder {root}; task=annotate expects a folder with images."])
    files = sorted(
        path.relative_to(root).as_posix()
        for path in root.rglob("*")
        # macOS leaves ._name.jpg beside name.jpg on foreign disks, which is no image.
        if path.suffix.lower() in _SUFFIXES and not path.name.startswith(".") and path.is_file()
    )
    if not files:
        raise ConfigError([f"images: there is no image under {root}; expected files ending in {', '.join(_SUFFIXES)}."])
    with ThreadPool(os.cpu_count()) as pool:
        problems = pool.map(lambda file: check_image(root / file, None), files)
    bad = [f"{root / file}: {problem}" for file, problem in zip(files, problems, strict=True) if problem is not None]
    if bad:
        more = [f"and {len(bad) - _LISTED:,} more"] if len(bad) > _LISTED else []
        heading = f"{len(bad):,} of {len(files):,} images can't be used:"
        raise DataError("\n  - ".join([heading, *bad[:_LISTED], *more]) + "\nMend these files or take them away.")
    return _Images(root.name, root, files, None)


def _argument(path: Path) -> str:
    from faceattr_lightning.processes import quote

    text = str(path)
    return text if all(part.isalnum() or part in "/._-" for part in text) else f'"{quote(text)}"'


_model: KeypointModel


def _start_worker(node: dict[str, Any]) -> None:
    global _model
    # Ctrl-C goes to every process; the first one ends the others in order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _model = build(node)


def _find(path: Path, size: tuple[int, int] | None) -> tuple[NDArray[np.float32] | None, Sequence[int]]:
    """Return the landmarks in an image and its (height, width)."""
    image = read_image(path, size)
    return _model(image), image.shape[:2]
