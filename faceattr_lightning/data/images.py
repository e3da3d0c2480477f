"""Reading images, and finding the bad ones before a run starts."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import BinaryIO, Literal, NoReturn

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from faceattr_lightning.data.table import FaceTable
from faceattr_lightning.errors import DataError

_THREADS = 4
_LISTED = 10
_SUFFIXES = (".jpg", ".jpeg", ".png")
_JPEG_END = b"\xff\xd9"
_TAIL = 64
# What turns an image upright, by EXIF's orientation; from 5 on it lies on its side.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_LYING = range(5, 9)
# Modes of more than 8 bits are left out: PIL clips them to white instead of scaling them.
_MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"})


class BadImage(Exception):
    """An image can't be used; the message is the problem without the path."""


def read_image(path: Path, size: tuple[int, int] | None) -> NDArray[np.uint8]:
    """Decode an image to RGB, uint8 (H, W, 3), writable. Grey, CMYK and palette images are converted, alpha is dropped.

    Args:
        path: the file; its content decides the format, not its suffix.
        size: (height, width) that the image must have; ``None`` takes an image of any size and turns it upright, as its
            EXIF orientation says.

    Raises:
        DataError: the file is missing, no image, cut short or of another size.
    """
    try:
        with _opened(path, size) as (image, _):
            return np.array((image if size else upright(image)).convert("RGB"))
    except BadImage as problem:
        raise DataError(f"{path}: {problem}") from problem


def orientation(image: Image.Image) -> int:
    """Return EXIF's orientation, 1 to 8; 1 where there is none or it can't be read, which is no reason to refuse."""
    try:
        found = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # PIL's parser raises anything
        return 1
    return found if found in _UPRIGHT else 1


def upright(image: Image.Image) -> Image.Image:
    """Decode an image and turn it as its EXIF orientation says.

    Unlike `PIL.ImageOps.exif_transpose` it does not write the rest of EXIF anew, which fails where that is damaged.
    """
    # Of a TIFF, PIL turns the pixels itself; in a PNG, EXIF may stand behind the pixels.
    image.load()
    method = _UPRIGHT.get(orientation(image))
    return image if method is None else image.transpose(method)


@contextmanager
def decoding() -> Iterator[None]:
    """Turn whatever goes wrong while an image is opened and decoded into a `BadImage`."""
    try:
        yield
    except BadImage:
        raise
    except FileNotFoundError as error:
        raise BadImage("the file is missing") from error
    except UnidentifiedImageError as error:
        raise BadImage("the file is not an image; fetch it again") from error
    # PIL's decoders raise anything on a damaged file: SyntaxError for PNG's chunks, struct.error, IndexError.
    except Exception as error:
        raise BadImage(f"the image can't be decoded ({error}); fetch it again") from error


def refuse_empty(file: BinaryIO) -> None:
    """Raise a `BadImage` if a file has no content; otherwise go back to its start."""
    if file.seek(0, os.SEEK_END) == 0:
        raise BadImage("the file is empty; fetch it again")
    file.seek(0)


def fit_image(image: NDArray[np.uint8], frame: tuple[int, int]) -> NDArray[np.uint8]:
    """Scale an image to cover a frame and cut off what sticks out on two sides, as `PIL.ImageOps.fit` does.

    Args:
        image: uint8 (H, W, 3).
        frame: (height, width) in pixels.

    Returns:
        uint8 (height, width, 3).
    """
    return np.array(ImageOps.fit(Image.fromarray(image), frame[::-1]))


def fit_landmarks(
    landmarks: NDArray[np.float32], sizes: NDArray[np.int64], frame: tuple[int, int]
) -> NDArray[np.float32]:
    """Move landmarks along with `fit_image`.

    Args:
        landmarks: float32 (N, L, 2), x then y in pixels of the images, NaN where missing.
        sizes: int64 (N, 2), height and width of each image.
        frame: (height, width) in pixels.

    Returns:
        float32 (N, L, 2) in pixels of the frame; outside it where the landmark was cut off.
    """
    size, fitted = sizes[:, None, ::-1].astype(np.float64), np.array(frame[::-1], dtype=np.float64)
    scale = (fitted / size).max(axis=-1, keepdims=True)
    # The centre stays the centre; a pixel's own centre lies half a pixel from its corner.
    moved: NDArray[np.float64] = (landmarks + 0.5 - size / 2) * scale + fitted / 2 - 0.5
    return moved.astype(np.float32)


def image_sizes(table: FaceTable) -> NDArray[np.int64]:
    """Return the height and width of each image, turned upright, from its header, int64 (N, 2).

    Raises:
        DataError: an image can't be read.
    """
    with ThreadPool(_THREADS) as pool:
        sizes = pool.map(lambda file: _upright_size(table.root / file), table.files)
    return np.array(sizes, dtype=np.int64).reshape(-1, 2)


def check_image(path: Path, size: tuple[int, int] | None) -> str | None:
    """Return what is wrong with an image file, or ``None``; ``size`` is that of `read_image`.

    A JPEG with the right header and an end marker is taken as whole without decoding it; others are decoded.
    """
    try:
        with _opened(path, size) as (image, file):
            if image.format != "JPEG" or _JPEG_END not in _tail(file):
                image.load()
    except BadImage as problem:
        return str(problem)
    return None


def check_images(table: FaceTable, on_bad_image: Literal["error", "skip"], any_size: bool = False) -> FaceTable:
    """Check every image file of a table.

    Args:
        table: the rows to check; it is not changed.
        on_bad_image: ``error`` to refuse a table with bad images, ``skip`` to leave their rows out.
        any_size: whether images may be of another size than the table's.

    Returns:
        A table of the rows whose image is good, with notes on the rows left out and on images without a row.

    Raises:
        DataError: there are bad images and ``on_bad_image`` is ``error``, or no image is good. It lists the first ten.
    """
    size = None if any_size else table.image_size
    with ThreadPool(_THREADS) as pool:
        problems = pool.map(lambda file: check_image(table.root / file, size), table.files)
    bad = {file: problem for file, problem in zip(table.files, problems, strict=True) if problem is not None}
    notes = list(table.notes)
    folders = {posixpath.dirname(file) for file in table.files}
    present = {posixpath.join(folder, name) for folder in folders for name in _names_in(table.root / folder)}
    unlisted = sum(name.lower().endswith(_SUFFIXES) for name in present.difference(table.files))
    if unlisted:
        notes.append(f"{table.root}: {unlisted:,} image files beside the listed ones have no labels and were ignored.")
    if not bad:
        return replace(table, notes=notes)
    table = replace(table, notes=notes)
    if on_bad_image == "error" or len(bad) == len(table):
        refuse_images(table, bad)
    return without_images(table, bad)


def refuse_images(table: FaceTable, bad: Mapping[str, str]) -> NoReturn:
    """Raise the DataError that lists bad images of a table, by file with what is wrong with each."""
    lines = [f"{table.root / file}: {problem}" for file, problem in list(bad.items())[:_LISTED]]
    raise DataError(
        "\n  - ".join([f"{len(bad):,} of {len(table):,} images can't be used:", *lines, *_and_more(bad)])
        + "\nMend or fetch these files, or set data.on_bad_image=skip to leave out the bad ones."
    )


def without_images(table: FaceTable, bad: Mapping[str, str]) -> FaceTable:
    """Return a table without bad images, by file with what is wrong with each, and with a note on them."""
    if not bad:
        return table
    names = ", ".join([f"{file} ({problem})" for file, problem in list(bad.items())[:_LISTED]] + _and_more(bad))
    note = f"{table.root}: left out {len(bad):,} of {len(table):,} images that can't be used: {names}."
    return _rows(replace(table, notes=[*table.notes, note]), np.array([file not in bad for file in table.files]))


@contextmanager
def _opened(path: Path, size: tuple[int, int] | None) -> Iterator[tuple[Image.Image, BinaryIO]]:
    """Open an image, undecoded; turn whatever goes wrong, then or while it is used, into a `BadImage`."""
    with decoding(), path.open("rb") as file:
        refuse_empty(file)
        with Image.open(file) as image:
            if size is not None and image.size != size[::-1]:
                raise BadImage(
                    f"expected {size[1]} x {size[0]} pixels, found {image.width} x {image.height}; labels and "
                    "landmarks belong to the official frame: use the data set's aligned images, neither cropped nor "
                    "resized"
                )
            if image.mode not in _MODES:
                raise BadImage(f"expected 8 bits per channel, found PIL mode {image.mode}; save it as an 8-bit image")
            yield image, file


def _upright_size(path: Path) -> tuple[int, int]:
    try:
        with _opened(path, None) as (image, _):
            return image.size if orientation(image) in _LYING else (image.height, image.width)
    except BadImage as problem:
        raise DataError(f"{path}: {problem}") from problem


def _tail(file: BinaryIO) -> bytes:
    file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL))
    return file.read()


def _names_in(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return [entry.name for entry in entries]
    except OSError:
        return []


def _and_more(bad: Mapping[str, str]) -> list[str]:
    return [f"and {len(bad) - _LISTED:,} more"] if len(bad) > _LISTED else []


def _rows(table: FaceTable, keep: NDArray[np.bool_]) -> FaceTable:
    return replace(
        table,
        files=[file for file, kept in zip(table.files, keep, strict=True) if kept],
        attributes=table.attributes[keep],
        split=table.split[keep],
        landmarks=table.landmarks[keep],
        identity=table.identity[keep],
        age_group=table.age_group[keep],
        database=table.database[keep],
        slices={name: replace(part, code=part.code[keep]) for name, part in table.slices.items()},
    )
