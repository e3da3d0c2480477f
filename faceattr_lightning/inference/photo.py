"""Finding photos and reading any of them, or saying in one line why not. No torch here."""

from __future__ import annotations

import errno
import functools
import glob
import importlib
import itertools
import logging
import os
import re
import stat
import threading
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from faceattr_lightning.data.images import BadImage, decoding, refuse_empty, upright
from faceattr_lightning.errors import FaceAttrError

log = logging.getLogger(__name__)

PHOTO_SUFFIXES: tuple[str, ...] = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".jp2", ".avif"),
    *(".heic", ".heif", ".hif"),
)
"""What the name of a photo in a folder ends in, in lower case. A photo's content decides its format, not its name."""

# PIL knows more, of which some start a program (EPS: Ghostscript) or are no photos; an upload decides which is run.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "JPEG2000", "PPM", "AVIF", "HEIF")
_KNOWN = "JPEG, PNG, WebP, GIF, BMP, TIFF, JPEG 2000, PPM, AVIF and, with pillow-heif, HEIC"
_HEIC = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"})
_AVIF = frozenset({b"avif", b"avis"})
_LEAST_SIDE = 12
_BYTE, _WORD = 255, 65_535
_PILLOW_LIMIT = threading.Lock()
_PROBLEMS = {
    errno.ENOENT: "the file is missing",
    errno.EACCES: "there is no permission to read the file",
    errno.ELOOP: "the symbolic links lead back to themselves",
    errno.ENOTDIR: "the file is missing",
    errno.ENAMETOOLONG: "the name is too long for a file",
}


class PhotoError(FaceAttrError):
    """A photo can't be read, or none is found. The message is one line, which names the file and what is wrong."""


def read_photo(
    source: Path | str | Image.Image | NDArray[np.uint8], most_pixels: int = 100_000_000
) -> NDArray[np.uint8]:
    """Read a photo of any size and kind as RGB, upright.

    Orientation is EXIF's. Of an animation it is the first frame. What is transparent becomes white, as on a page
    (training drops alpha; an aligned image of a data set has none). Grey of 16 bits is scaled to 8. Grey of floating
    point is taken as 0 to 1, or where it goes beyond 1 as 0 to 255, and beyond 255 as 0 to 65,535; and so are 32-bit
    integers, but never as 0 to 1. A colour profile is not applied, as it is not in training. A JPEG is decoded in full
    size (PIL's draft mode would halve the smallest face).

    Args:
        source: a file; or an image; or an array, uint8 (H, W, 3) RGB or (H, W) grey.
        most_pixels: height times width of the largest photo to decode, known from its header; memory is 10 to 20
            bytes a pixel.

    Returns:
        uint8 (H, W, 3), writable.

    Raises:
        PhotoError: the file is missing, no readable file (a folder, a pipe, no permission, a loop of links), empty, not
            an image, cut short or damaged, of more than ``most_pixels``, or under 12 pixels high or wide; or the array
            is of another shape or type.
    """
    name = "the array"
    try:
        if isinstance(source, np.ndarray):
            return _of_array(source, most_pixels)
        if isinstance(source, Image.Image):
            name = shown(getattr(source, "filename", "") or "the image")
            with decoding():
                return _decode(source, most_pixels)
        name = shown(source)
        with decoding(), _open_file(source) as file, _open_image(file, most_pixels) as image:
            return _decode(image, most_pixels)
    except BadImage as problem:
        raise PhotoError(f"{name}: {_one_line(problem)}") from problem


def find_photos(given: str | Path | Sequence[str | Path]) -> Iterator[Path]:
    """Find photos; folders are looked through while the result is consumed.

    Args:
        given: a file, whatever its name ends in; a folder, in which photos (`PHOTO_SUFFIXES`) are looked for at any
            depth, hidden files and folders left out; a glob, in which ``**`` stands for any depth and of whose files
            those that are named like photos count; or several of these.

    Returns:
        The photos in the order of ``given``, those of a folder or glob sorted by name, each file once even if links or
        ``given`` lead to it twice. Anything in a folder that is named like a photo is returned, be it a dangling link
        or a pipe, for `read_photo` to say what is wrong with it. Memory: the names in a folder and in the folders
        above it, and a few bytes for each folder, link and file of ``given``; the names that a glob matches.

    Raises:
        PhotoError: at once, before the first photo: there is no such file or folder, a folder can't be listed, a glob
            matches nothing, or there is no photo in any of it.
    """
    several = [given] if isinstance(given, (str, Path)) else list(given)
    walk = _Walk()
    photos = itertools.chain.from_iterable([walk.start(item) for item in several])
    first = next(photos, None)
    if first is None:
        where = ", ".join(shown(item) for item in several[:3]) + (", ..." if len(several) > 3 else "")
        endings = ", ".join(PHOTO_SUFFIXES)
        raise PhotoError(f"{where or 'images'}: there is no photo; expected files ending in {endings}.")
    return itertools.chain([first], photos)


def shown(path: str | Path) -> str:
    """Return a path as it can stand in one line: in quotes and escaped if it has newlines or undecodable bytes."""
    text = os.fspath(path)
    return text if text.isprintable() else repr(text)


def _open_file(source: str | Path) -> BinaryIO:
    try:
        # A pipe would block on opening, a device never end.
        mode = os.stat(source).st_mode
        if stat.S_ISDIR(mode):
            raise BadImage("this is a folder, not a file")
        if not stat.S_ISREG(mode):
            raise BadImage("this is a device, pipe or socket, not a file")
        return Path(source).open("rb")
    except OSError as error:
        raise BadImage(_PROBLEMS.get(error.errno or 0, error.strerror or str(error))) from error
    except ValueError as error:  # a NUL in the name
        raise BadImage(f"this can't be the name of a file ({error})") from error


def _open_image(file: BinaryIO, most_pixels: int) -> Image.Image:
    """Open an image, undecoded."""
    refuse_empty(file)
    head = file.read(16)
    brand = head[8:12] if head[4:8] == b"ftyp" else b""
    if brand in _HEIC and not _can_read_heic():
        raise BadImage("this is a HEIC photo; to read it: pip install pillow-heif")
    Image.init()
    formats = [known for known in _FORMATS if known in Image.OPEN]
    # PIL's limit is one for the process. With ours, it also refuses what a format allocates on opening. It warns of
    # half the limit, and of damaged EXIF, which under ``-W error`` would be a reason to refuse a photo.
    with _PILLOW_LIMIT, warnings.catch_warnings(action="ignore"):
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, most_pixels
        try:
            return Image.open(file, formats=formats)
        except Image.DecompressionBombError as error:
            found = re.search(r"\d+", str(error))
            raise BadImage(_too_large(f"{int(found[0]):,}" if found else "too many", most_pixels)) from error
        except UnidentifiedImageError as error:
            if brand in _AVIF and "AVIF" not in formats:
                raise BadImage("this is an AVIF photo, which this Pillow can't read; install a newer one") from error
            raise BadImage(f"this is not an image, or a damaged one; known are {_KNOWN}") from error
        finally:
            Image.MAX_IMAGE_PIXELS = before


@functools.cache
def _can_read_heic() -> bool:
    try:
        plugin: Any = importlib.import_module("pillow_heif")
    except ImportError:
        return False
    plugin.register_heif_opener()
    return True


def _decode(image: Image.Image, most_pixels: int) -> NDArray[np.uint8]:
    _check_size(image.height, image.width, most_pixels)
    image = upright(image)
    if image.mode == "F" or image.mode.startswith("I"):
        return _as_rgb(_scaled(np.asarray(image)))
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def _of_array(array: NDArray[Any], most_pixels: int) -> NDArray[np.uint8]:
    if array.dtype != np.uint8 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)):
        raise BadImage(
            f"expected uint8 (H, W, 3), RGB, or (H, W), grey, found {array.dtype} {' x '.join(map(str, array.shape))}"
        )
    _check_size(array.shape[0], array.shape[1], most_pixels)
    return _as_rgb(array) if array.ndim == 2 else array.copy()


def _check_size(height: int, width: int, most_pixels: int) -> None:
    if height * width > most_pixels:
        raise BadImage(_too_large(f"{width:,} x {height:,}", most_pixels))
    if min(height, width) < _LEAST_SIDE:
        raise BadImage(f"{width} x {height} pixels are too few for a face; expected at least {_LEAST_SIDE} a side")


def _too_large(found: str, most_pixels: int) -> str:
    return f"{found} pixels are too many; at most {most_pixels:,} are read"


def _scaled(grey: NDArray[Any]) -> NDArray[np.uint8]:
    """Scale grey levels of more than 8 bits to 8."""
    least, greatest = (0, 0) if grey.dtype.kind == "u" else (grey.min(), grey.max())
    if not (np.isfinite(greatest) and least >= 0 and greatest <= _WORD):
        raise BadImage(f"grey levels from {least} to {greatest}, of which none is known to be white; save it in 8 bits")
    white: float = _WORD
    if grey.dtype.kind != "u" and greatest <= _BYTE:
        white = 1 if grey.dtype.kind == "f" and greatest <= 1 else _BYTE
    levels: NDArray[np.uint8] = np.rint(grey * np.float32(_BYTE / white)).astype(np.uint8)
    return levels


def _as_rgb(grey: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.repeat(grey[..., None], 3, axis=2)


def _one_line(problem: BadImage) -> str:
    return " ".join(str(problem).split())


class _Walk:
    """The search of one `find_photos`: what it has been in already."""

    def __init__(self) -> None:
        # Identities (device, inode) of folders that were entered; and of files that were met where it is not sure that
        # they are met in a folder: given, or behind a link.
        self._folders: set[tuple[int, int]] = set()
        self._files: set[tuple[int, int]] = set()

    def start(self, given: str | Path) -> Iterator[Path]:
        """Return the photos of one file, folder or glob, after checking that it is there."""
        name = os.path.expanduser(given)
        try:
            mode = os.stat(name).st_mode
            if stat.S_ISDIR(mode):
                os.scandir(name).close()
                return self._in_folder(name)
            return self._file(name)
        except OSError as error:
            if os.path.islink(name) and error.errno in (errno.ENOENT, errno.ELOOP):
                return iter([Path(name)])
            problem = _PROBLEMS.get(error.errno or 0, error.strerror or str(error))
            missing = error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG)
        except ValueError as error:  # a NUL in the name
            problem, missing = f"this can't be the name of a file ({error})", False
        if not missing:
            raise PhotoError(f"{shown(given)}: {problem}.")
        if not glob.has_magic(name):
            raise PhotoError(f"{shown(given)}: there is no such file or folder.")
        matches = sorted(set(_matches(name)))
        if not matches:
            raise PhotoError(f"{shown(given)}: no file matches.")
        return self._matched(matches)

    def _matched(self, names: list[str]) -> Iterator[Path]:
        for name in names:
            if os.path.isdir(name):
                yield from self._in_folder(name)
            elif _is_photo(name):
                yield from self._file(name)

    def _file(self, name: str) -> Iterator[Path]:
        """Return a file that is given or behind a link, unless it was or will be met otherwise."""
        try:
            found = os.stat(name)
            folder = os.stat(os.path.dirname(os.path.realpath(name)))
        except OSError:
            # It vanished or is a broken link, of which `read_photo` tells.
            yield Path(name)
            return
        identity = (found.st_dev, found.st_ino)
        listed = (folder.st_dev, folder.st_ino) in self._folders and _is_photo(os.path.realpath(name))
        if identity not in self._files and not listed:
            self._files.add(identity)
            yield Path(name)

    def _in_folder(self, folder: str) -> Iterator[Path]:
        try:
            found = os.stat(folder)
            if (found.st_dev, found.st_ino) in self._folders:
                return
            self._folders.add((found.st_dev, found.st_ino))
            # Names alone, of which there is room for ten million.
            names, folders, links = [], set(), set()
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if _leads_to_folder(entry):
                        folders.add(entry.name)
                    elif not _is_photo(entry.name):
                        continue
                    elif entry.is_symlink():
                        links.add(entry.name)
                    names.append(entry.name)
        except OSError as error:
            _left_out(folder, error)
            return
        names.sort()
        for name in names:
            path = os.path.join(folder, name)
            if name in folders:
                yield from self._in_folder(path)
            elif name in links:
                yield from self._file(path)
            elif not (self._files and self._was_met(path)):
                yield Path(path)

    def _was_met(self, name: str) -> bool:
        try:
            found = os.stat(name)
        except OSError:
            return False
        return (found.st_dev, found.st_ino) in self._files


def _matches(pattern: str) -> Iterator[str]:
    """Yield what a pattern matches, as glob does, but enter a folder once for a ``**``: links may lead in circles."""
    parts = pattern.split(os.sep)
    if "**" not in parts:
        yield from glob.iglob(pattern)
        return
    place = parts.index("**")
    below = os.sep.join(parts[place + 1 :])
    for top in glob.iglob(os.sep.join([*parts[:place], ""])) if place else [os.curdir]:
        if not below:
            yield top
            continue
        for folder in _folders(top):
            yield from _matches(os.path.join(glob.escape(folder), below))


def _folders(top: str) -> Iterator[str]:
    """Yield a folder and those below it, hidden ones left out, each once even if links lead to it twice."""
    entered = set()
    for folder, names, _ in os.walk(top, onerror=lambda error: _left_out(error.filename, error), followlinks=True):
        try:
            found = os.stat(folder)
        except OSError as error:  # it vanished
            _left_out(folder, error)
            continue
        if (found.st_dev, found.st_ino) in entered:
            names.clear()
            continue
        entered.add((found.st_dev, found.st_ino))
        names[:] = sorted(name for name in names if not name.startswith("."))
        yield folder


def _left_out(folder: str, error: OSError) -> None:
    log.warning("%s can't be listed and was left out (%s).", shown(folder), error.strerror)


def _leads_to_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a loop of links
        return False


def _is_photo(name: str) -> bool:
    return os.path.basename(name)[:1] != "." and name.lower().endswith(PHOTO_SUFFIXES)
