"""Photos of every kind become RGB, and each bad one is told in one line."""

from __future__ import annotations

import itertools
import logging
import os
import re
import struct
import subprocess
import sys
import tempfile
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import ExifTags, Image

from faceattr_lightning.data.synthetic_faces import draw_face, sample_people
from faceattr_lightning.errors import FaceAttrError
from faceattr_lightning.inference import photo
from faceattr_lightning.inference.photo import PhotoError, find_photos, read_photo
from tests.data.writers import smooth_image
from tests.runs import ROOT


@pytest.fixture(scope="module")
def image() -> Image.Image:
    return smooth_image(np.random.default_rng(3), (60, 40))


def pixels(image: Image.Image) -> NDArray[np.int64]:
    return np.asarray(image).astype(np.int64)


def difference(found: NDArray[np.uint8], expected: Image.Image | NDArray[Any]) -> float:
    return float(np.abs(found.astype(np.int64) - np.asarray(expected).astype(np.int64)).max())


# ---------------------------------------------------------------------------------------------------------------------
# Kinds
# ---------------------------------------------------------------------------------------------------------------------

KINDS = {
    "RGB JPEG": ("RGB", "JPEG", {"quality": 95}, 24),
    "CMYK JPEG, which is Adobe's and inverted": ("CMYK", "JPEG", {"quality": 95}, 24),
    "RGB PNG": ("RGB", "PNG", {}, 0),
    "RGB WebP": ("RGB", "WEBP", {"lossless": True}, 0),
    "RGB BMP": ("RGB", "BMP", {}, 0),
    "RGB TIFF": ("RGB", "TIFF", {"compression": "tiff_lzw"}, 0),
    "CMYK TIFF": ("CMYK", "TIFF", {}, 0),
    "JPEG 2000": ("RGB", "JPEG2000", {}, 0),
    "PPM": ("RGB", "PPM", {}, 0),
    "AVIF": ("RGB", "AVIF", {"quality": 95}, 24),
}


@pytest.mark.parametrize(("mode", "kind", "options", "tolerance"), KINDS.values(), ids=KINDS)
def test_colour(
    tmp_path: Path, image: Image.Image, mode: str, kind: str, options: dict[str, Any], tolerance: int
) -> None:
    path = tmp_path / "photo.jpg"
    image.convert(mode).save(path, kind, **options)
    found = read_photo(path)
    assert found.shape == (60, 40, 3) and found.dtype == np.uint8 and found.flags.writeable
    assert difference(found, image) <= tolerance
    np.testing.assert_array_equal(read_photo(str(path)), found)
    np.testing.assert_array_equal(read_photo(Image.open(path)), found)


@pytest.mark.parametrize(("mode", "kind"), [("L", "JPEG"), ("L", "PNG"), ("LA", "PNG"), ("1", "PNG"), ("1", "TIFF")])
def test_grey(tmp_path: Path, image: Image.Image, mode: str, kind: str) -> None:
    image.convert(mode).save(tmp_path / "photo", kind, quality=95)
    found = read_photo(tmp_path / "photo")
    assert (found == found[..., :1]).all()
    assert difference(found, image.convert("1" if mode == "1" else "L").convert("RGB")) <= (9 if kind == "JPEG" else 0)


def test_palette(tmp_path: Path, image: Image.Image) -> None:
    palette = image.quantize(200)
    palette.save(tmp_path / "photo.png")
    expected = np.array(palette.getpalette()).reshape(-1, 3)[np.asarray(palette)]
    assert difference(read_photo(tmp_path / "photo.png"), expected) == 0


def test_16_bit_grey_is_scaled_and_not_clipped(tmp_path: Path) -> None:
    levels = np.linspace(0, 65_535, 40 * 60).astype(np.uint16).reshape(60, 40)
    expected = np.round(levels / 257)
    for name, kind in (("16.png", "PNG"), ("16.tif", "TIFF"), ("16.pgm", "PPM")):
        Image.fromarray(levels).save(tmp_path / name, kind)
        found = read_photo(tmp_path / name)
        assert found.shape == (60, 40, 3) and difference(found, expected[..., None]) == 0
    big = Image.frombytes("I;16B", (40, 60), levels.astype(">u2").tobytes())
    assert difference(read_photo(big), expected[..., None]) == 0


def test_16_bit_colour(tmp_path: Path, image: Image.Image) -> None:
    rows = (pixels(image) * 257).astype(">u2")
    scanlines = b"".join(b"\0" + row.tobytes() for row in rows)
    path = tmp_path / "16.png"
    path.write_bytes(png(40, 60, bits=16) + chunk(b"IDAT", zlib.compress(scanlines)) + chunk(b"IEND", b""))
    assert difference(read_photo(path), image) <= 1


@pytest.mark.parametrize("white", [1, 255, 65_535])
def test_floating_point(tmp_path: Path, white: int) -> None:
    shares = np.linspace(0, 1, 40 * 60, dtype=np.float32).reshape(60, 40)
    Image.fromarray(shares * np.float32(white)).save(tmp_path / "float.tif")
    found = read_photo(tmp_path / "float.tif")
    assert np.abs(found[..., 1] - 255 * shares).max() <= 0.51


@pytest.mark.parametrize("white", [255, 65_535])
def test_integers_of_32_bits(tmp_path: Path, white: int) -> None:
    levels = np.linspace(0, white, 40 * 60).reshape(60, 40).astype(np.int32)
    Image.fromarray(levels).save(tmp_path / "integers.tif")
    found = read_photo(tmp_path / "integers.tif")
    assert np.abs(found[..., 1] - 255 * levels / white).max() <= 0.51


def test_levels_without_a_known_white() -> None:
    for levels in (
        np.full((20, 20), -1.0),
        np.full((20, 20), 1e6),
        np.full((20, 20), np.nan),
        np.full((20, 20), 1 << 20),
    ):
        kind = np.float32 if levels.dtype.kind == "f" else np.int32
        with pytest.raises(PhotoError, match=r"the image: grey levels from .* save it in 8 bits"):
            read_photo(Image.fromarray(levels.astype(kind)))


def test_transparency_becomes_white(tmp_path: Path, image: Image.Image) -> None:
    alpha = np.zeros((60, 40), dtype=np.uint8)
    alpha[20:40], alpha[40:] = 128, 255
    shares = alpha[..., None] / 255
    expected = np.round(pixels(image) * shares + 255 * (1 - shares))
    rgba = image.copy()
    rgba.putalpha(Image.fromarray(alpha))
    for kind in ("PNG", "TIFF"):
        rgba.save(tmp_path / "photo", kind)
        assert difference(read_photo(tmp_path / "photo"), expected) <= 1
    assert (read_photo(rgba.convert("LA"))[:20] == 255).all()

    palette = Image.new("P", (40, 60), 1)
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.paste(0, (0, 0, 40, 30))
    palette.save(tmp_path / "palette.png", transparency=0)
    found = read_photo(tmp_path / "palette.png")
    assert (found[:30] == 255).all() and (found[30:] == (40, 50, 60)).all()
    # One colour of an RGB image may be transparent, too.
    Image.new("RGB", (40, 60), (9, 9, 9)).save(tmp_path / "colour.png", transparency=(9, 9, 9))
    assert (read_photo(tmp_path / "colour.png") == 255).all()


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_frame_of_an_animation(tmp_path: Path, kind: str) -> None:
    red, *others = (Image.new("RGB", (40, 60), colour) for colour in ("red", "lime", "blue"))
    red.save(tmp_path / "moving", kind, save_all=True, append_images=others, **({} if kind == "TIFF" else {"loop": 0}))
    assert Image.open(tmp_path / "moving").n_frames == 3  # type: ignore[attr-defined]
    assert difference(read_photo(tmp_path / "moving"), np.array([255, 0, 0])) <= 2


# How the stored picture has to be turned, by numpy alone; EXIF says where row 0 and column 0 are.
ORIENTATIONS: dict[int, Callable[[NDArray[Any]], NDArray[Any]]] = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: stored.swapaxes(0, 1)[:, ::-1],
    7: lambda stored: stored.swapaxes(0, 1)[::-1, ::-1],
    8: lambda stored: stored.swapaxes(0, 1)[::-1],
}


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "JPEG", "AVIF", "grey", "image"])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_orientation(tmp_path: Path, image: Image.Image, orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    stored = Image.fromarray((pixels(image)[..., 0] * 257).astype(np.uint16)) if kind == "grey" else image
    options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {"quality": 100, "subsampling": "4:4:4"}
    path = tmp_path / "photo"
    stored.save(path, {"grey": "PNG", "image": "PNG"}.get(kind, kind), exif=exif, **options)
    found = read_photo(Image.open(path) if kind == "image" else path)
    expected = ORIENTATIONS[orientation](pixels(image)[..., :1] if kind == "grey" else pixels(image))
    assert difference(found, expected) <= (8 if kind in ("JPEG", "AVIF") else 0)


def exif(orientation: bytes, following: int = 0) -> bytes:
    """Return EXIF of one entry, the orientation: its type, count and value; and the place of the next entries."""
    return b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01" + orientation + struct.pack("<I", following)


DAMAGED_EXIF = {
    "garbage": b"Exif\0\0MM\0*\0\0\0\x08\0\x09garbage",
    "a place beyond the file": b"Exif\0\0II*\0\xff\xff\xff\xffgarbage",
    "orientation 9": exif(struct.pack("<HII", 3, 1, 9)),
    "orientation in words": exif(struct.pack("<HI4s", 2, 4, b"six\0")),
    "a loop": exif(struct.pack("<HII", 3, 1, 1), following=8),
}


@pytest.mark.parametrize("content", DAMAGED_EXIF.values(), ids=DAMAGED_EXIF)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_damaged_exif_is_no_reason_to_refuse(tmp_path: Path, image: Image.Image, kind: str, content: bytes) -> None:
    image.save(tmp_path / "photo", kind, exif=content, quality=95, lossless=True)
    with warnings.catch_warnings():
        # PIL warns of it.
        warnings.simplefilter("error")
        found = read_photo(tmp_path / "photo")
    assert difference(found, image) <= (24 if kind == "JPEG" else 0)


def test_a_damaged_colour_profile_is_no_reason_to_refuse(tmp_path: Path, image: Image.Image) -> None:
    for kind in ("JPEG", "PNG"):
        image.save(tmp_path / "photo", kind, icc_profile=b"garbage" * 20, quality=95)
        assert difference(read_photo(tmp_path / "photo"), image) <= 24


def test_what_follows_a_photo_in_its_file(tmp_path: Path, image: Image.Image) -> None:
    """A second picture, as cameras and phones write it (MPO), a further page, or anything else."""
    image.save(tmp_path / "camera.jpg", "MPO", save_all=True, append_images=[image.rotate(180)], quality=95)
    assert difference(read_photo(tmp_path / "camera.jpg"), image) <= 24
    image.save(tmp_path / "phone.jpg", quality=95)
    with (tmp_path / "phone.jpg").open("ab") as file:
        file.write(b"a short film" * 10_000)
    assert difference(read_photo(tmp_path / "phone.jpg"), image) <= 24
    grey = Image.fromarray(np.linspace(0, 1, 40 * 60, dtype=np.float32).reshape(60, 40))
    grey.save(tmp_path / "pages.tif", save_all=True, append_images=[Image.new("F", (400, 600))])
    assert read_photo(tmp_path / "pages.tif").shape == (60, 40, 3)


def test_adobes_cmyk_in_both_ways(tmp_path: Path, image: Image.Image) -> None:
    """Adobe's marker says whether the inks lie as they are or as a brightness and two colours (YCCK)."""
    path = tmp_path / "photo.jpg"
    image.convert("CMYK").save(path, quality=95)
    stored = path.read_bytes()
    marker = stored.index(b"Adobe") + 11
    assert stored[marker] == 0 and difference(read_photo(path), image) <= 24
    # The same bytes, taken for YCCK, are other colours; what libjpeg makes of them is PIL's business, not that it is.
    path.write_bytes(stored[:marker] + b"\2" + stored[marker + 1 :])
    assert difference(read_photo(path), image) > 24


def test_arrays(image: Image.Image) -> None:
    rgb = np.asarray(image)
    found = read_photo(rgb)
    np.testing.assert_array_equal(found, rgb)
    assert found.flags.writeable and not np.shares_memory(found, rgb)
    np.testing.assert_array_equal(read_photo(rgb[..., 0]), np.stack([rgb[..., 0]] * 3, axis=2))
    for array, found_text in (
        (rgb.transpose(2, 0, 1), "uint8 3 x 60 x 40"),
        (rgb / 255, "float64 60 x 40 x 3"),
        (rgb[None], "uint8 1 x 60 x 40 x 3"),
        (np.zeros((20, 20, 4), dtype=np.uint8), "uint8 20 x 20 x 4"),
    ):
        with pytest.raises(PhotoError, match=rf"the array: expected uint8 \(H, W, 3\).* found {found_text}"):
            read_photo(array)
    with pytest.raises(PhotoError, match=r"the array: 40 x 60 pixels are too many; at most 2,399"):
        read_photo(rgb, most_pixels=2_399)
    assert read_photo(rgb, most_pixels=2_400).shape == rgb.shape


def test_a_heic_photo_needs_its_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    photo._can_read_heic.cache_clear()
    path = tmp_path / "IMG_0001.HEIC"
    path.write_bytes(struct.pack(">I4s4sI4s4s", 24, b"ftyp", b"heic", 0, b"mif1", b"heic") + bytes(100))
    with pytest.raises(PhotoError, match=r"IMG_0001.HEIC: this is a HEIC photo.* pip install pillow-heif"):
        read_photo(path)
    photo._can_read_heic.cache_clear()


def test_a_heic_photo(tmp_path: Path, image: Image.Image) -> None:
    plugin = pytest.importorskip("pillow_heif")
    photo._can_read_heic.cache_clear()
    plugin.from_pillow(image).save(tmp_path / "photo.jpg", quality=95)
    assert np.abs(pixels(image) - read_photo(tmp_path / "photo.jpg")).mean() < 4


def test_a_drawn_face(tmp_path: Path) -> None:
    face = draw_face(sample_people(1, 0).attributes[0], 0, 0, 0)[0]
    Image.fromarray(face).save(tmp_path / "face.png")
    np.testing.assert_array_equal(read_photo(tmp_path / "face.png"), face)


# ---------------------------------------------------------------------------------------------------------------------
# Bad input
# ---------------------------------------------------------------------------------------------------------------------


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, bits: int = 8) -> bytes:
    """Return the start of a PNG file, whose pixels are missing."""
    header = struct.pack(">IIBBBBB", width, height, bits, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"")


def cut(path: Path, kind: str) -> None:
    smooth_image(np.random.default_rng(0), (200, 200)).save(path, kind)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


def looped(path: Path) -> None:
    path.symlink_to(path.with_name("other"))
    path.with_name("other").symlink_to(path)


BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (lambda path: None, "the file is missing"),
    "in no folder": (lambda path: path.parent.rmdir(), "the file is missing"),
    "empty": (lambda path: path.touch(), "the file is empty"),
    "text": (lambda path: path.write_text("<html>404 not found</html>"), "this is not an image, or a damaged one"),
    "PostScript, which would start a program": (
        lambda path: smooth_image(np.random.default_rng(0), (20, 20)).save(path, "EPS"),
        "this is not an image, or a damaged one; known are JPEG",
    ),
    "truncated JPEG": (lambda path: cut(path, "JPEG"), "can't be decoded (image file is truncated"),
    "truncated PNG": (lambda path: cut(path, "PNG"), "can't be decoded"),
    "truncated WebP": (lambda path: cut(path, "WEBP"), "can't be decoded"),
    "truncated GIF": (lambda path: cut(path, "GIF"), "can't be decoded"),
    "truncated TIFF": (lambda path: cut(path, "TIFF"), ""),
    "header only": (lambda path: path.write_bytes(png(50, 50)), "can't be decoded"),
    "of no height": (lambda path: path.write_bytes(png(50, 0)), "this is not an image, or a damaged one"),
    "of a damaged header": (
        lambda path: path.write_bytes(png(50, 50).replace(b"IHDR\0\0\0\x32", b"IHDR\0\0\0\x33")),
        "this is not an image, or a damaged one",
    ),
    "drawing": (lambda path: path.write_text("<svg xmlns='http://www.w3.org/2000/svg'/>"), "this is not an image"),
    "bomb of text": (
        lambda path: path.write_bytes(png(50, 50)[:33] + chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(20_000_000)))),
        "can't be decoded (Decompressed data too large",
    ),
    "more pixels than memory": (lambda path: path.write_bytes(png(2**31 - 1, 2**31 - 1)), "pixels are too many"),
    "1 x 1": (lambda path: Image.new("RGB", (1, 1)).save(path, "PNG"), "1 x 1 pixels are too few"),
    "bomb": (lambda path: path.write_bytes(png(11_000, 10_000)), "11,000 x 10,000 pixels are too many; at most 100,0"),
    "20,000 x 20,000": (lambda path: path.write_bytes(png(20_000, 20_000)), "400,000,000 pixels are too many; at most"),
    "folder": (lambda path: path.mkdir(), "this is a folder"),
    "pipe": (lambda path: os.mkfifo(path), "this is a device, pipe or socket"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "this is a device, pipe or socket"),
    "loop of links": (looped, "the symbolic links lead back to themselves"),
    "dangling link": (lambda path: path.symlink_to(path.with_name("gone")), "the file is missing"),
}


@pytest.mark.parametrize(("make", "problem"), BAD.values(), ids=BAD)
@pytest.mark.parametrize("name", ["photo.jpg", 'it\'s a "photo"\n2 \udcff.jpg'])
def test_bad_input_is_told_in_one_line(tmp_path: Path, make: Callable[[Path], Any], problem: str, name: str) -> None:
    limit = Image.MAX_IMAGE_PIXELS
    path = tmp_path / "photos" / name
    path.parent.mkdir()
    make(path)
    with warnings.catch_warnings(), pytest.raises(PhotoError) as caught:
        warnings.simplefilter("error")
        read_photo(path)
    message = str(caught.value)
    assert isinstance(caught.value, FaceAttrError) and problem in message and message.isprintable()
    assert message.startswith(str(path) if name == "photo.jpg" else repr(str(path)))
    assert limit == Image.MAX_IMAGE_PIXELS


READ = """
import os, sys
from faceattr_lightning.inference.photo import PhotoError, read_photo
if os.geteuid() == 0:
    os.setuid(65534)  # nobody: root may read anything
try:
    read_photo(sys.argv[1])
except PhotoError as error:
    print(error)
"""


def test_no_permission(image: Image.Image) -> None:
    # Below pytest's folder, which is for its user only, nobody could not even look.
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "private.png"
        image.save(path)
        path.chmod(0)
        path.parent.chmod(0o755)
        command = [sys.executable, "-c", READ, str(path)]
        said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert said.strip() == f"{path}: there is no permission to read the file"


def test_names_that_no_file_has() -> None:
    for name in ("a\0b.jpg", "x" * 5_000):
        with pytest.raises(PhotoError, match=r"(can't be the name|name is too long)"):
            read_photo(name)
        with pytest.raises(PhotoError, match=r"(can't be the name|no such file)"):
            find_photos(name)


def test_any_limit_of_pixels(tmp_path: Path) -> None:
    Image.new("L", (200, 200)).save(tmp_path / "photo.png")
    assert read_photo(tmp_path / "photo.png", most_pixels=40_000).shape == (200, 200, 3)
    with pytest.raises(PhotoError, match=r"200 x 200 pixels are too many; at most 39,999 are read"):
        read_photo(tmp_path / "photo.png", most_pixels=39_999)
    with pytest.raises(PhotoError, match=r"40,000 pixels are too many; at most 10,000 are read"):
        read_photo(tmp_path / "photo.png", most_pixels=10_000)


def test_a_limit_above_pillows_own(tmp_path: Path, image: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    image.save(tmp_path / "photo.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_photo(tmp_path / "photo.png").shape == (60, 40, 3)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "JPEG2000", "AVIF"])
def test_damage_of_any_kind_is_a_photo_error(tmp_path: Path, kind: str) -> None:
    rng = np.random.default_rng(5)
    path = tmp_path / "photo"
    smooth_image(rng, (32, 32)).save(path, kind)
    whole = np.frombuffer(path.read_bytes(), dtype=np.uint8)
    refused = 0
    for _ in range(40):
        damaged = whole[: rng.integers(1, len(whole) + 1)].copy()
        damaged[rng.integers(0, len(damaged), 6)] = rng.integers(0, 256, 6)
        path.write_bytes(damaged.tobytes())
        try:
            found = read_photo(path, most_pixels=1_000_000)
            assert found.ndim == 3 and found.dtype == np.uint8
        except PhotoError:
            refused += 1
    assert refused > 10


# ---------------------------------------------------------------------------------------------------------------------
# Finding
# ---------------------------------------------------------------------------------------------------------------------


def make_files(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def found_in(given: Any, root: Path) -> list[str]:
    return [path.relative_to(root).as_posix() for path in find_photos(given)]


def test_a_folder_is_sorted_and_filtered(tmp_path: Path) -> None:
    names = ["b.JPG", "a/2.png", "a/1.webp", "a.jpeg", "c/d/e.heic", "Ärger/日本.tif", 'it\'s "one"\n.jpg', " .jpg"]
    make_files(tmp_path, *names, ".hidden.jpg", ".git/x.jpg", "notes.txt", "a/._1.jpg", "c/list.jpg.txt", "jpg")
    expected = sorted(names, key=lambda name: name.split("/"))
    assert found_in(tmp_path, tmp_path) == expected
    assert found_in(str(tmp_path), tmp_path) == expected


def test_a_file_whatever_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_files(tmp_path, "photo[1].bin", ".hidden", "photo1.bin", "home.jpg")
    for name in ("photo[1].bin", ".hidden"):
        assert found_in(tmp_path / name, tmp_path) == [name]
    monkeypatch.setenv("HOME", str(tmp_path))
    assert found_in("~/home.jpg", tmp_path) == ["home.jpg"]


def test_globs(tmp_path: Path) -> None:
    make_files(tmp_path, "a/2.jpg", "a/1.jpg", "a/notes.txt", "b/1.jpg", "b/deep/3.jpg", "a/.4.jpg")
    assert found_in(f"{tmp_path}/a/*", tmp_path) == ["a/1.jpg", "a/2.jpg"]
    assert found_in(f"{tmp_path}/*/1.jpg", tmp_path) == ["a/1.jpg", "b/1.jpg"]
    assert found_in(f"{tmp_path}/**/*.jpg", tmp_path) == ["a/1.jpg", "a/2.jpg", "b/1.jpg", "b/deep/3.jpg"]
    assert found_in(f"{tmp_path}/*", tmp_path) == ["a/1.jpg", "a/2.jpg", "b/1.jpg", "b/deep/3.jpg"]


def test_a_pattern_over_links_in_circles(tmp_path: Path) -> None:
    """Which glob follows some forty times around, each link as often as there are others."""
    make_files(tmp_path, "1.jpg", "sub/2.jpg", "sub/deep/3.jpg", ".hidden/4.jpg")
    for name in ("sub/up", "sub/again", "sub/deep/top", "loop"):
        (tmp_path / name).symlink_to(tmp_path)
    for pattern in ("**/*.jpg", "**", "**/", "**/sub/**/*.jpg", "**/**/*.jpg"):
        found = found_in(f"{tmp_path}/{pattern}", tmp_path)
        assert sorted(Path(name).name for name in found) == ["1.jpg", "2.jpg", "3.jpg"], pattern


def test_a_pattern_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_files(tmp_path, "1.jpg", "sub/2.jpg")
    monkeypatch.chdir(tmp_path)
    assert list(find_photos("**/*.jpg")) == [Path("1.jpg"), Path("sub/2.jpg")]
    assert sorted(find_photos("**")) == [Path("1.jpg"), Path("sub/2.jpg")]
    assert list(find_photos("sub/**/*.jpg")) == [Path("sub/2.jpg")]


def test_each_file_once_and_no_loop(tmp_path: Path) -> None:
    make_files(tmp_path, "a/1.jpg", "a/2.jpg", "z/3.jpg", "outside/4.jpg")
    root = tmp_path / "root"
    root.mkdir()
    for name in ("a", "z"):
        (tmp_path / name).rename(root / name)
    (root / "a" / "up").symlink_to(root)
    (root / "b").symlink_to(root / "a")
    (root / "a" / "0.jpg").symlink_to(root / "z" / "3.jpg")  # met before the file
    (root / "z" / "9.jpg").symlink_to(root / "a" / "1.jpg")  # and after it
    (root / "z" / "4.jpg").symlink_to(tmp_path / "outside" / "4.jpg")
    (root / "z" / "5.jpg").symlink_to(tmp_path / "outside" / "4.jpg")
    assert found_in(root, root) == ["a/0.jpg", "a/1.jpg", "a/2.jpg", "z/4.jpg"]
    given = [root / "a" / "2.jpg", root, root / "a", root / "a" / "1.jpg", f"{root}/a/*.jpg"]
    assert found_in(given, root) == ["a/2.jpg", "a/0.jpg", "a/1.jpg", "z/4.jpg"]


def test_what_cannot_be_read_is_not_kept_quiet(tmp_path: Path) -> None:
    (tmp_path / "gone.jpg").symlink_to("nowhere")
    looped(tmp_path / "loop.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    make_files(tmp_path, "z.jpg")
    assert found_in(tmp_path, tmp_path) == ["gone.jpg", "loop.jpg", "pipe.jpg", "z.jpg"]
    assert found_in([tmp_path / "gone.jpg", tmp_path / "loop.jpg"], tmp_path) == ["gone.jpg", "loop.jpg"]


def test_nothing_found_is_said_at_once(tmp_path: Path) -> None:
    make_files(tmp_path, "texts/notes.txt", "a.jpg")
    for given, problem in (
        (tmp_path / "nowhere", r"nowhere: there is no such file or folder"),
        (tmp_path / "a.jpg" / "b", r"b: there is no such file or folder"),
        (f"{tmp_path}/*.png", r"\*.png: no file matches"),
        (tmp_path / "texts", r"texts: there is no photo; expected files ending in .jpg, .jpeg"),
        (f"{tmp_path}/texts/*", r"\*: there is no photo"),
        ([], r"images: there is no photo"),
        ([tmp_path / "a.jpg", tmp_path / "new\nline"], r"'.*new\\nline': there is no such file"),
    ):
        with pytest.raises(PhotoError, match=problem) as caught:
            find_photos(given)
        assert str(caught.value).isprintable()


def test_a_folder_that_cannot_be_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    make_files(tmp_path, "a/1.jpg", "b/2.jpg")
    scandir = os.scandir

    def refuse(folder: str) -> Any:
        if folder.endswith("/a"):
            raise PermissionError(13, "Permission denied")
        return scandir(folder)

    monkeypatch.setattr("os.scandir", refuse)
    with caplog.at_level(logging.WARNING):
        assert found_in(tmp_path, tmp_path) == ["b/2.jpg"]
    assert re.search(r"/a can't be listed and was left out \(Permission denied\)", caplog.text)
    with pytest.raises(PhotoError, match=r"/a: there is no permission"):
        find_photos(tmp_path / "a")


def test_folders_are_looked_through_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_files(tmp_path, *(f"{folder}/{file}.jpg" for folder, file in itertools.product("abcdef", "12")))
    listed = []
    scandir = os.scandir
    monkeypatch.setattr("os.scandir", lambda folder: (listed.append(folder), scandir(folder))[1])
    photos = find_photos(tmp_path)
    assert next(photos).name == "1.jpg" and len(listed) == 3  # the folder, to check it; again; and its first
    assert len(list(photos)) == 11 and len(listed) == 8
