"""Prepared data: a data set's table and its images at working size, in files that every process maps into memory.

Under ``<cache_dir>/prepared/<data set>-<digest of its folder>/`` stand

- ``table-<digest of options>/``: the checked annotations of every split, as ``table.npz`` and ``manifest.json``;
- ``images-<digest of geometry>/``: ``images.u8``, uint8 (N, S, S, 3), and ``manifest.json``, ``files.npy``.

Both carry a fingerprint of the files that they were made of and are made anew when one of those changes. They are built
under a lock in a folder beside, which gets its name when it is whole, so that nobody sees a part. Nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np
import torch
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from rich.progress import track
from torch import Tensor

from faceattr_lightning.data.dataset import CroppedSource, FaceSource
from faceattr_lightning.data.images import refuse_images, without_images
from faceattr_lightning.data.table import FaceTable, Slice
from faceattr_lightning.errors import DataError
from faceattr_lightning.processes import process_pool

if TYPE_CHECKING:
    from faceattr_lightning.data.module import FaceDataModule

log = logging.getLogger(__name__)

_FORMAT = 2
_CHUNK = 256
# Below, starting processes, each of which imports torch, takes longer than the work.
_MANY = 20_000
_ARRAYS = ("attributes", "split", "landmarks", "identity", "age_group", "database")
_SLICE = "slice "
_TEXTS = ("name", "files", "attribute_names", "image_size", "age_groups", "databases", "notes")


@dataclass(frozen=True)
class Prepared:
    """What was prepared of a data set.

    Attributes:
        table: every row of the data set.
        images: of the table's rows; ``None`` where they have to be decoded from their files.
    """

    table: FaceTable
    images: PackedImages | None


class PackedImages:
    """Images in one file of uint8 (N, S, S, 3), mapped into memory: every process of a machine shares its pages.

    Args:
        folder: with ``images.u8``.
        count: N.
        size: S, height and width of each image in pixels.
    """

    def __init__(self, folder: Path, count: int, size: int) -> None:
        self.folder, self.count, self.size = folder, count, size
        self._mapped: Tensor | None = None

    def __getstate__(self) -> dict[str, Any]:
        # A loader's worker maps the file itself.
        return {**vars(self), "_mapped": None}

    def images(self, rows: NDArray[np.int64]) -> Tensor:
        """Return uint8 (B, 3, S, S) in channels-last memory for ``rows``."""
        if self._mapped is None:
            shape = (self.count, self.size, self.size, 3)
            path = str(self.folder / "images.u8")
            self._mapped = torch.from_file(path, shared=False, size=int(np.prod(shape)), dtype=torch.uint8).view(shape)
        return self._mapped.index_select(0, torch.from_numpy(rows)).permute(0, 3, 1, 2)


class PreparedSource:
    """Packed images, and the landmarks of the source that they were packed from.

    Args:
        packed: of every row.
        source: of the same rows.
    """

    def __init__(self, packed: PackedImages, source: CroppedSource) -> None:
        self._packed, self._source = packed, source

    def images(self, rows: NDArray[np.int64]) -> Tensor:
        return self._packed.images(rows)

    def landmarks(self, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        return self._source.landmarks(rows)


def prepare(data: FaceDataModule, required: bool = False) -> Prepared:
    """Return a data set's prepared table and images; build what is missing or does not fit its files any more.

    Args:
        data: the data module; neither set up nor changed.
        required: raise an error where the images can't be packed, for want of space say, instead of going on without.

    Raises:
        DataError: see `FaceDataModule.read_table`; also if an image does not decode, or if nothing can be written and
            ``required``.
    """
    folder = _folder(data)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        opened = _open(data, folder)
        if opened is None:
            with alone(folder):
                # Another process may have built it meanwhile.
                opened = _open(data, folder) or _build(data, folder)
        return opened
    except OSError as error:
        message = f"data.cache_dir: can't prepare {data.name} in {folder}: {_reason(error)}."
        if required:
            raise DataError(f"{message} Free some space or choose another data.cache_dir.") from error
        log.warning(
            "%s Images are decoded from their files at every step; choose another data.cache_dir, or "
            "data.prepared=false if that is meant.",
            message,
        )
        return Prepared(data.read_table(), None)


def verify(data: FaceDataModule, prepared: Prepared) -> list[str]:
    """Read every packed image and return what does not have the checksum that it was written with, by rows.

    Args:
        data: the data module that was prepared.
        prepared: what `prepare` returned.
    """
    packed = prepared.images
    if packed is None:
        return []
    sums = _manifest(packed.folder)["checksums"]
    starts = range(0, packed.count, _CHUNK)
    return [
        f"rows {start:,} to {min(start + _CHUNK, packed.count) - 1:,} of {packed.folder / 'images.u8'}"
        for start, checksum in zip(track(starts, f"Verifying {data.name}"), sums, strict=True)
        if _checksum(packed.images(np.arange(start, min(start + _CHUNK, packed.count)))) != checksum
    ]


def discard(prepared: Prepared) -> None:
    """Remove packed images, so that the next `prepare` builds them."""
    if prepared.images is not None:
        shutil.rmtree(prepared.images.folder)


# ---------------------------------------------------------------------------------------------------------------------
# Opening
# ---------------------------------------------------------------------------------------------------------------------


def _folder(data: FaceDataModule) -> Path:
    root = data.data_root().resolve()
    return data.cache_dir / "prepared" / f"{data.name}-{_digest(str(root))}"


def _table_folder(data: FaceDataModule, folder: Path) -> Path:
    options = {name: getattr(data, name) for name in data.table_options}
    return folder / f"table-{_digest(options)}"


def _images_folder(data: FaceDataModule, folder: Path, table: FaceTable) -> Path:
    geometry = (str(table.root.resolve()), table.image_size, data.crop, data.image_size)
    return folder / f"images-{_digest(geometry)}"


def _open(data: FaceDataModule, folder: Path) -> Prepared | None:
    table = _open_table(data, _table_folder(data, folder))
    if table is None and data.on_bad_image == "error":
        return None
    # Which images are bad shows only when they are looked at.
    table = table or data.read_table()
    return _open_images(data, _images_folder(data, folder, table), table)


def _open_table(data: FaceDataModule, folder: Path) -> FaceTable | None:
    manifest = _manifest(folder)
    if not manifest or data.on_bad_image == "skip":
        return None
    changed = _changes(manifest["sources"], _fingerprints(data.annotation_files()))
    if changed:
        log.info("%s: %s changed since the annotations were prepared; reading them again.", data.name, changed)
        return None
    try:
        with np.load(folder / "table.npz", allow_pickle=False) as arrays:
            values = {name: arrays[name] for name in _ARRAYS}
            slices = {
                name: Slice(tuple(sides), arrays[f"{_SLICE}{name}"]) for name, sides in manifest["slices"].items()
            }
            stats: NDArray[np.int64] = arrays["files"]
        texts = {name: manifest[name] for name in _TEXTS}
        for name in ("attribute_names", "image_size", "age_groups", "databases"):
            texts[name] = tuple(texts[name])
        table = FaceTable(root=Path(manifest["root"]), **texts, **values, slices=slices)
        columns = [*values.values(), *(part.code for part in slices.values())]
        whole = all(len(column) == len(table) for column in columns)
    except (OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile) as error:
        log.warning("%s: the prepared annotations are damaged (%s); reading them again.", folder, error)
        return None
    # A table may depend on its images: on their size, and on whether they are whole.
    if not whole or _changed_images(table, stats):
        return None
    return table


def _changed_images(table: FaceTable, stats: NDArray[np.int64]) -> bool:
    """Return whether image files are not what they were when ``stats`` were taken, and say so."""
    present = _stats(table)
    changed = np.flatnonzero((present != stats).any(axis=1)) if stats.shape == present.shape else np.array([0])
    if changed.size:
        first = table.root / table.files[changed[0]]
        log.info("%s: %d image files changed, first %s; preparing them again.", table.name, changed.size, first)
    return bool(changed.size)


def _open_images(data: FaceDataModule, folder: Path, table: FaceTable) -> Prepared | None:
    manifest = _manifest(folder)
    if not manifest:
        return None
    if data.on_bad_image == "skip":
        table = without_images(table, manifest["unreadable"])
    packed = PackedImages(folder, len(table), data.image_size)
    try:
        stats: NDArray[np.int64] = np.load(folder / "files.npy", allow_pickle=False)
        size = (folder / "images.u8").stat().st_size
    except (OSError, ValueError, EOFError) as error:
        log.warning("%s: the prepared images are damaged (%s); packing them again.", folder, error)
        return None
    if manifest["files"] != _digest(table.files):
        log.info("%s: the list of images changed; packing them again.", data.name)
        return None
    if size != len(table) * data.image_size**2 * 3:
        log.warning("%s: the prepared images are cut short; packing them again.", folder)
        return None
    return None if _changed_images(table, stats) else Prepared(table, packed)


def _manifest(folder: Path) -> dict[str, Any]:
    """Return a part's manifest, empty where there is none that this version of the program wrote."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        log.warning("%s: the manifest can't be read (%s); preparing again.", folder, error)
        return {}
    known = isinstance(manifest, dict) and manifest.get("version") == _version()
    return manifest if known else {}


def _version() -> list[Any]:
    # Another torch may decode and resize to other pixels.
    return [_FORMAT, torch.__version__]


def _fingerprints(paths: Sequence[Path]) -> dict[str, Any]:
    """Return for each file size, time and a digest of its content, ``None`` where it is not there."""
    found: dict[str, Any] = {}
    for path in paths:
        try:
            with path.open("rb") as file:
                status = os.fstat(file.fileno())
                digest = hashlib.file_digest(file, hashlib.blake2b).hexdigest()
            found[str(path)] = [status.st_size, status.st_mtime_ns, digest]
        except OSError:
            found[str(path)] = None
    return found


def _changes(before: dict[str, Any], now: dict[str, Any]) -> str:
    """Return the first of the files that differ, empty without one."""
    return next((path for path in {**before, **now} if before.get(path) != now.get(path)), "")


def _stats(table: FaceTable) -> NDArray[np.int64]:
    """Return size and time of each image file, int64 (N, 2), -1 where it is not there."""
    root = str(table.root)
    stats = np.full((len(table), 2), -1, dtype=np.int64)
    for row, file in enumerate(table.files):
        try:
            status = os.stat(f"{root}/{file}")
            stats[row] = status.st_size, status.st_mtime_ns
        except OSError:
            continue
    return stats


def _digest(value: Any) -> str:
    return hashlib.blake2b(json.dumps(value, default=str).encode(), digest_size=8).hexdigest()


def _checksum(images: Tensor) -> str:
    pixels = images.permute(0, 2, 3, 1).contiguous().numpy()
    return hashlib.blake2b(pixels.data, digest_size=16).hexdigest()


# ---------------------------------------------------------------------------------------------------------------------
# Building
# ---------------------------------------------------------------------------------------------------------------------


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold a folder's lock; the system gives it back if this process is killed.

    Args:
        folder: that exists; what a killed process has left in it (``*.partial``) is removed.
    """
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0.5)
    except Timeout:
        log.info("Another process is preparing %s; waiting for it.", folder.name)
        lock.acquire()
    try:
        # Whoever began these was killed.
        for leftover in folder.glob("*.partial"):
            shutil.rmtree(leftover, ignore_errors=True)
        yield
    finally:
        lock.release()


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """Yield an empty folder beside ``folder``, which takes its place if all goes well and is removed if not.

    Whoever calls it has to be `alone` in the folder above.
    """
    partial = folder.with_name(f"{folder.name}.partial")
    partial.mkdir()
    try:
        yield partial
        if folder.exists():
            before = folder.with_name(f"{folder.name}.old.partial")
            os.rename(folder, before)
            os.rename(partial, folder)
            shutil.rmtree(before, ignore_errors=True)
        else:
            os.rename(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _build(data: FaceDataModule, folder: Path) -> Prepared:
    table = _open_table(data, _table_folder(data, folder))
    if table is None:
        sources = _fingerprints(data.annotation_files())
        table = data.read_table()
        stats = _stats(table)
        if data.on_bad_image == "error":
            with replacing(_table_folder(data, folder)) as partial:
                arrays = {name: getattr(table, name) for name in _ARRAYS}
                arrays |= {f"{_SLICE}{name}": part.code for name, part in table.slices.items()}
                np.savez(partial / "table.npz", files=stats, **arrays)
                texts = {name: getattr(table, name) for name in _TEXTS}
                texts["slices"] = {name: part.sides for name, part in table.slices.items()}
                _write_manifest(partial, {"sources": sources, "root": str(table.root), **texts})
    images = _images_folder(data, folder, table)
    opened = _open_images(data, images, table)
    if opened is not None:
        return opened
    try:
        _pack(data, table, images)
    except _Unreadable as problem:
        if data.on_bad_image == "error":
            refuse_images(table, problem.files)
        table = without_images(table, problem.files)
        _pack(data, table, images, problem.files)
    return Prepared(table, PackedImages(images, len(table), data.image_size))


class _Unreadable(Exception):
    """Images don't decode.

    Args:
        files: what is wrong with each.
    """

    def __init__(self, files: dict[str, str]) -> None:
        self.files = files


def _pack(data: FaceDataModule, table: FaceTable, folder: Path, left_out: dict[str, str] | None = None) -> None:
    """Pack a table's images into ``folder``.

    Args:
        data: says what the images are to look like.
        table: of the images.
        folder: to make.
        left_out: images that are not in the table because they don't decode, and why.

    Raises:
        _Unreadable: there are some, then nothing is left behind.
    """
    count, size = len(table), data.image_size
    total = count * size * size * 3
    free = shutil.disk_usage(folder.parent).free
    log.info(
        "%s: packing %s images of %d pixels into %s, once: %s of %s free; "
        "data.prepared=false decodes the files each time instead.",
        data.name,
        f"{count:,}",
        size,
        folder,
        _bytes(total),
        _bytes(free),
    )
    if total > free:
        raise OSError(f"{_bytes(total)} are needed and {_bytes(free)} free")
    started = time.monotonic()
    with replacing(folder) as partial:
        stats, path = _stats(table), partial / "images.u8"
        with path.open("wb") as packed:
            if hasattr(os, "posix_fallocate"):
                # A full disk shows now, not after an hour.
                os.posix_fallocate(packed.fileno(), 0, total)
        chunks = [(start, min(start + _CHUNK, count)) for start in range(0, count, _CHUNK)]
        checksums: list[str] = []
        unreadable: dict[str, str] = {}
        written = _chunks(path, data.cropped_source(table), chunks)
        for checksum, problems in track(written, f"Preparing {data.name}", len(chunks)):
            checksums.append(checksum)
            for row, problem in problems.items():
                file = table.files[row]
                unreadable[file] = problem.removeprefix(f"{table.root / file}: ")
        if unreadable:
            raise _Unreadable(unreadable)
        np.save(partial / "files.npy", stats)
        values = {"files": _digest(table.files), "checksums": checksums, "unreadable": left_out or {}}
        _write_manifest(partial, values)
    log.info("%s: packed in %.0f seconds.", data.name, time.monotonic() - started)


def _chunks(path: Path, source: FaceSource, chunks: list[tuple[int, int]]) -> Iterator[tuple[str, dict[int, str]]]:
    if chunks[-1][1] < _MANY or os.cpu_count() == 1:
        _take_job(path, source)
        yield from map(_write_chunk, chunks)
        return
    with process_pool(_take_job, path, source) as pool:
        yield from pool.map(_write_chunk, chunks)


def _take_job(path: Path, source: FaceSource) -> None:
    global _job
    _job = (path, source)


_job: tuple[Path, FaceSource]


def _write_chunk(chunk: tuple[int, int]) -> tuple[str, dict[int, str]]:
    """Write the images of rows start to stop; return their checksum, and what is wrong with what can't be read."""
    path, source = _job
    start, stop = chunk
    rows = np.arange(start, stop)
    problems: dict[int, str] = {}
    try:
        images = source.images(rows)
    except DataError:
        for row in rows:
            try:
                source.images(np.array([row]))
            except DataError as error:
                problems[int(row)] = str(error)
        return "", problems
    pixels = images.permute(0, 2, 3, 1).contiguous().numpy()
    with path.open("r+b") as file:
        file.seek(start * pixels[0].nbytes)
        file.write(pixels.data)
    return _checksum(images), problems


def _write_manifest(folder: Path, values: dict[str, Any]) -> None:
    (folder / "manifest.json").write_text(json.dumps({"version": _version(), **values}), encoding="utf-8")


def _bytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
