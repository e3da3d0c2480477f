"""Tests of `faceattr_lightning.data.images`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile, ImageOps

from faceattr_lightning.data.celeba import read_celeba
from faceattr_lightning.data.images import check_image, check_images, fit_image, fit_landmarks, image_sizes, read_image
from faceattr_lightning.errors import DataError
from tests.data.writers import smooth_image, write_celeba, write_lfwa

SIZE = (218, 178)


@pytest.fixture
def image() -> Image.Image:
    return smooth_image(np.random.default_rng(3), SIZE)


@pytest.mark.parametrize(
    ("mode", "kind"),
    [("RGB", "JPEG"), ("L", "JPEG"), ("CMYK", "JPEG"), ("RGB", "PNG"), ("RGBA", "PNG"), ("L", "PNG"), ("LA", "PNG"),
     ("P", "PNG"), ("1", "PNG")],
)  # fmt: skip
def test_every_kind_of_image_becomes_rgb(tmp_path: Path, image: Image.Image, mode: str, kind: str) -> None:
    path = tmp_path / "000001.jpg"
    converted = image.convert(mode)
    converted.save(path, kind)
    pixels = read_image(path, SIZE)
    assert pixels.shape == (*SIZE, 3) and pixels.dtype == np.uint8 and pixels.flags.writeable
    expected = image.convert("L").convert("RGB") if mode in ("L", "LA") else image
    if mode == "1":
        assert set(np.unique(pixels)) == {0, 255}
    else:
        # The palette has 216 colours; the rest is JPEG's loss.
        difference = np.abs(pixels.astype(int) - np.asarray(expected).astype(int))
        assert difference.mean() < (30 if mode == "P" else 3)
    assert check_image(path, SIZE) is None


def save_wrong_size(path: Path, image: Image.Image) -> None:
    image.resize((218, 178)).save(path, "JPEG")


def save_truncated(path: Path, image: Image.Image) -> None:
    image.save(path, "JPEG")
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


def save_truncated_png(path: Path, image: Image.Image) -> None:
    image.save(path, "PNG")
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


def save_truncated_png_with_jpeg_end(path: Path, image: Image.Image) -> None:
    save_truncated_png(path, image)
    path.write_bytes(path.read_bytes() + b"\xff\xd9")


def save_header_only(path: Path, image: Image.Image) -> None:
    image.save(path, "JPEG")
    path.write_bytes(path.read_bytes()[:12])


BAD = {
    "missing": (lambda path, image: None, "the file is missing"),
    "empty": (lambda path, image: path.touch(), "the file is empty"),
    "text": (lambda path, image: path.write_text("<html>404</html>"), "the file is not an image"),
    "folder": (lambda path, image: path.mkdir(), "can't be decoded"),
    "wrong size": (save_wrong_size, "expected 178 x 218 pixels, found 218 x 178"),
    "truncated": (save_truncated, "can't be decoded (image file is truncated"),
    "truncated png": (save_truncated_png, "can't be decoded"),
    "truncated png with a JPEG's end": (save_truncated_png_with_jpeg_end, "can't be decoded"),
    "header only": (save_header_only, "fetch it again"),
    "16 bits": (lambda path, image: Image.new("I;16", image.size).save(path, "PNG"), "expected 8 bits per channel"),
}


@pytest.mark.parametrize(("save", "problem"), BAD.values(), ids=BAD)
def test_a_bad_image_is_found_by_both(tmp_path: Path, image: Image.Image, save, problem: str) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "000001.jpg"
    save(path, image)
    found = check_image(path, SIZE)
    assert found is not None and problem in found
    with pytest.raises(DataError) as caught:
        read_image(path, SIZE)
    assert str(caught.value) == f"{path}: {found}"


def test_a_whole_jpeg_is_checked_without_decoding(
    tmp_path: Path, image: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "000001.jpg"
    image.save(path, "JPEG")
    monkeypatch.setattr(ImageFile.ImageFile, "load", None)
    assert check_image(path, SIZE) is None


def test_bytes_behind_the_end_marker_are_fine(tmp_path: Path, image: Image.Image) -> None:
    path = tmp_path / "000001.jpg"
    image.save(path, "JPEG")
    path.write_bytes(path.read_bytes() + bytes(500))
    assert check_image(path, SIZE) is None
    assert read_image(path, SIZE).shape == (*SIZE, 3)


def test_good_images_pass_unchanged(tmp_path: Path) -> None:
    table = write_celeba(tmp_path)
    for mode in ("error", "skip"):
        checked = check_images(table, mode)
        assert checked == table and checked.notes == []


def test_unlisted_images_are_noted(tmp_path: Path) -> None:
    table = write_lfwa(tmp_path, people=3)
    folder = table.root / "Ann_A"
    (folder / "other.JPG").touch()
    (folder / "notes.txt").touch()
    assert check_images(table, "error").notes == [
        f"{table.root}: 1 image files beside the listed ones have no labels and were ignored."
    ]


def test_error_lists_the_first_ten_and_the_count(tmp_path: Path) -> None:
    table = write_celeba(tmp_path, n=14)
    for file in table.files[1:13]:
        (table.root / file).unlink()
    (table.root / table.files[1]).write_bytes(b"")
    with pytest.raises(DataError) as caught:
        check_images(table, "error")
    lines = str(caught.value).splitlines()
    assert lines[0] == "12 of 14 images can't be used:"
    assert lines[1] == f"  - {table.root / '000002.jpg'}: the file is empty; fetch it again"
    assert lines[10] == f"  - {table.root / '000011.jpg'}: the file is missing"
    assert lines[11] == "  - and 2 more" and "data.on_bad_image=skip" in lines[12] and len(lines) == 13


def test_skip_leaves_the_rows_out(tmp_path: Path) -> None:
    table = write_celeba(tmp_path)
    table.notes.append("An earlier note.")
    (table.root / "000003.jpg").unlink()
    save_truncated(table.root / "000007.jpg", smooth_image(np.random.default_rng(0), SIZE))
    checked = check_images(table, "skip")
    kept = [0, 1, 3, 4, 5, 7, 8, 9, 10, 11]
    assert checked.files == [table.files[row] for row in kept]
    for name in ("attributes", "split", "landmarks", "identity"):
        np.testing.assert_array_equal(getattr(checked, name), getattr(table, name)[kept], err_msg=name)
    earlier, note = checked.notes
    assert earlier == "An earlier note." and "left out 2 of 12 images" in note
    assert "000003.jpg (the file is missing), 000007.jpg (the image can't be decoded" in note
    assert len(table) == 12 and table.notes == ["An earlier note."]


@pytest.mark.parametrize("folder_exists", [True, False])
def test_skip_does_not_leave_out_everything(tmp_path: Path, folder_exists: bool) -> None:
    table = write_celeba(tmp_path, images=False)
    if not folder_exists:
        table.root.rmdir()
    with pytest.raises(DataError, match="12 of 12 images can't be used"):
        check_images(table, "skip")


@pytest.mark.parametrize("orientation", [None, 1, 3, 6, 8])
def test_images_of_any_size_are_turned_upright(tmp_path: Path, image: Image.Image, orientation: int | None) -> None:
    path = tmp_path / "photo.jpg"
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    image.save(path, "JPEG", exif=exif, quality=98)
    pixels = read_image(path, None)
    expected = np.rot90(np.asarray(image), {3: 2, 6: -1, 8: 1}.get(orientation or 1, 0))
    assert pixels.shape == expected.shape
    assert np.abs(pixels.astype(int) - expected.astype(int)).mean() < 3
    assert check_image(path, None) is None
    # The official data sets' labels and landmarks belong to the pixels as they are stored.
    assert read_image(path, SIZE).shape == (*SIZE, 3)
    table = write_celeba(tmp_path / "celeba", n=4, images=False)
    for file in table.files:
        image.save(table.root / file, "JPEG", exif=exif)
    assert image_sizes(table).tolist() == [list(expected.shape[:2])] * 4


def test_a_bad_image_of_any_size(tmp_path: Path, image: Image.Image) -> None:
    path = tmp_path / "photo.jpg"
    save_truncated(path, image)
    assert "can't be decoded" in str(check_image(path, None))
    with pytest.raises(DataError, match="can't be decoded"):
        read_image(path, None)


def test_images_of_other_sizes_pass_if_any_size_will_do(tmp_path: Path) -> None:
    table = write_celeba(tmp_path)
    save_wrong_size(table.root / table.files[3], smooth_image(np.random.default_rng(0), SIZE))
    assert check_images(table, "error", any_size=True) == table
    with pytest.raises(DataError, match="1 of 12 images"):
        check_images(table, "error")


@pytest.mark.parametrize("size", [(50, 50), (70, 30), (31, 64)])
@pytest.mark.parametrize("frame", [(50, 50), (100, 40), (17, 90)])
def test_landmarks_move_with_a_fitted_image(size: tuple[int, int], frame: tuple[int, int]) -> None:
    ramp = np.indices(size, dtype=np.float32)[::-1]
    # What ImageOps.fit does to the coordinates themselves, pictured in two channels.
    x, y = (np.asarray(ImageOps.fit(Image.fromarray(axis), frame[::-1])) for axis in ramp)
    rows, columns = frame[0] // 2, frame[1] // 2
    source = np.array([[[x[rows, columns], y[rows, columns]]]], dtype=np.float32)
    moved = fit_landmarks(source, np.array([size]), frame)
    np.testing.assert_allclose(moved[0, 0], [columns, rows], atol=1e-3)
    assert fit_image(np.zeros((*size, 3), dtype=np.uint8), frame).shape == (*frame, 3)


def test_real_images_are_good(real_data: Path) -> None:
    table = read_celeba(real_data / "celeba")
    checked = check_images(table, "error")
    assert len(checked) == 5_999 and checked.notes == []
    assert read_image(table.root / table.files[0], table.image_size).std() > 10
