"""Prepared data: equal to what is decoded, made anew when something changes, and never seen half made."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from faceattr_lightning.data import prepared
from faceattr_lightning.data.celeba import CelebA
from faceattr_lightning.data.fairface import FairFace
from faceattr_lightning.data.folder import Folder
from faceattr_lightning.data.fused import Fused
from faceattr_lightning.data.lfwa import LFWA
from faceattr_lightning.data.module import FaceDataModule
from faceattr_lightning.data.synthetic import Synthetic
from faceattr_lightning.errors import DataError
from tests.data.writers import assert_same_table, write_celeba, write_fairface, write_folder, write_lfwa
from tests.disks import small_disk
from tests.runs import ROOT

SIZE = 48


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A CelebA of forty images."""
    write_celeba(tmp_path / "celeba", n=40)
    return tmp_path / "celeba"


def celeba(root: Path, cache: Path, **options: Any) -> CelebA:
    return CelebA(root=str(root), **{"image_size": SIZE, "batch_size": 4, "cache_dir": str(cache), **options})


def images(module: FaceDataModule) -> torch.Tensor:
    module.setup()
    return module.source().images(np.arange(len(module.table)))


def parts(cache: Path) -> list[str]:
    return sorted(path.name.partition("-")[0] for path in cache.glob("prepared/*/*-*"))


def modules(folder: Path, cache: Path, prepared: bool) -> dict[str, FaceDataModule]:
    """Make a small data set of each kind, once, and its data module."""
    if not folder.exists():
        write_celeba(folder / "celeba", n=30)
        write_lfwa(folder / "lfwa")
        write_fairface(folder / "fairface")
        write_folder(folder / "folder")
    options: dict[str, Any] = {"image_size": SIZE, "cache_dir": str(cache), "prepared": prepared}
    target = "faceattr_lightning.data"
    members = {
        "celeba": {"_target_": f"{target}.celeba.CelebA", "root": str(folder / "celeba")},
        "lfwa": {"_target_": f"{target}.lfwa.LFWA", "root": str(folder / "lfwa")},
    }
    return {
        "celeba": CelebA(root=str(folder / "celeba"), **options),
        "lfwa": LFWA(root=str(folder / "lfwa"), **options),
        "fairface": FairFace(root=str(folder / "fairface"), **options),
        "folder": Folder(root=str(folder / "folder"), **options),
        "fused": Fused(["celeba", "lfwa"], members, **options),
        "synthetic": Synthetic(40, 25, 25, **options),
    }


@pytest.mark.parametrize("name", ["celeba", "lfwa", "fairface", "folder", "fused", "synthetic"])
def test_prepared_equals_decoded(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = modules(tmp_path / "data", tmp_path / "cache", False)[name]
    expected = images(plain)
    assert not (tmp_path / "cache" / "prepared").exists()
    for opening in ("made", "found"):
        module = modules(tmp_path / "data", tmp_path / "cache", True)[name]
        if opening == "found":
            monkeypatch.setattr(prepared, "_build", None)
        found = images(module)
        assert torch.equal(found, expected) and found.is_contiguous(memory_format=torch.channels_last)
        assert_same_table(module.table, plain.table)
        rows = np.arange(len(module.table))
        for one, other in zip(module.source().landmarks(rows), plain.source().landmarks(rows), strict=True):
            assert torch.equal(one, other)


def test_pixels_agree_with_pillow(root: Path, tmp_path: Path) -> None:
    module = celeba(root, tmp_path / "cache")
    found = images(module).permute(0, 2, 3, 1).numpy().astype(int)
    for row, file in enumerate(module.table.files):
        image = Image.open(module.table.root / file).convert("RGB").crop((0, 20, 178, 198))
        expected = np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BILINEAR), dtype=int)
        assert np.abs(found[row] - expected).max() <= 1


# PNG has no CMYK.
@pytest.mark.parametrize(
    ("mode", "options"),
    [
        (mode, options)
        for mode in ("RGB", "L", "CMYK")
        for options in ({}, {"progressive": True}, {"subsampling": 0}, {"format": "PNG"})
        if (mode, options) != ("CMYK", {"format": "PNG"})
    ],
)
def test_jpegs_of_every_kind_decode_as_by_pillow(
    root: Path, tmp_path: Path, mode: str, options: dict[str, Any]
) -> None:
    path = next((root / "img_align_celeba").iterdir())
    image = Image.open(path).convert(mode)
    image.save(path, **{"format": "JPEG", **options})
    module = celeba(root, tmp_path / "cache", prepared=False)
    module.setup()
    row = module.table.files.index(path.name)
    with Image.open(path) as expected:
        whole = module.open_store(module.table).read(np.array([row]))[0]
        np.testing.assert_array_equal(whole, np.asarray(expected.convert("RGB")))


def test_several_processes_pack_the_same(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = images(celeba(root, tmp_path / "one"))
    monkeypatch.setattr(prepared, "_MANY", 0)
    monkeypatch.setattr(prepared, "_CHUNK", 16)
    assert torch.equal(images(celeba(root, tmp_path / "many")), expected)


def test_nothing_but_the_images_and_the_table_counts(root: Path, tmp_path: Path) -> None:
    images(celeba(root, tmp_path / "cache"))
    before = {path: path.stat().st_ino for path in (tmp_path / "cache").rglob("*")}
    images(celeba(root, tmp_path / "cache", seed=7, attributes=["Male"], train_fraction=0.5, augmentation={"flip": 1}))
    assert {path: path.stat().st_ino for path in (tmp_path / "cache").rglob("*")} == before
    images(celeba(root, tmp_path / "cache", image_size=32))
    images(celeba(root, tmp_path / "cache", crop=[10, 30, 160, 180]))
    assert parts(tmp_path / "cache") == ["images", "images", "images", "table"]


def test_a_changed_image_is_packed_again(root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = images(celeba(root, tmp_path / "cache"))
    path = sorted((root / "img_align_celeba").iterdir())[3]
    Image.new("RGB", (178, 218), "red").save(path)
    with caplog.at_level(logging.INFO, logger="faceattr_lightning"):
        after = images(celeba(root, tmp_path / "cache"))
    assert f"1 image files changed, first {path}" in caplog.text
    changed = (before != after).flatten(start_dim=1).any(dim=1)
    assert changed.nonzero().flatten().tolist() == [3]
    assert parts(tmp_path / "cache") == ["images", "table"]


def test_changed_annotations_are_read_again(root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    module = celeba(root, tmp_path / "cache")
    images(module)
    pack = next((tmp_path / "cache").rglob("images.u8")).stat().st_ino
    # Of the same size and time, so that only the content tells.
    path = root / "list_attr_celeba.txt"
    lines = path.read_text().splitlines()
    name, first, *others = lines[2].split()
    status = path.stat()
    swapped = {"1": "-1", "-1": "1"}
    others[[label != first for label in others].index(True)] = first
    lines[2] = " ".join([name, swapped[first], *others])
    path.write_text("\n".join(lines) + "\n")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    (root / "identity_CelebA.txt").unlink()
    with caplog.at_level(logging.INFO, logger="faceattr_lightning"):
        again = celeba(root, tmp_path / "cache")
        images(again)
    assert "changed since the annotations were prepared" in caplog.text
    assert again.table.attributes[0, 0] != module.table.attributes[0, 0]
    assert (again.table.identity == -1).all() and not (module.table.identity == -1).all()
    assert next((tmp_path / "cache").rglob("images.u8")).stat().st_ino == pack


def test_landmarks_that_appear_are_read(root: Path, tmp_path: Path) -> None:
    landmarks = root / "list_landmarks_align_celeba.txt"
    landmarks.rename(tmp_path / "elsewhere.txt")
    module = celeba(root, tmp_path / "cache")
    images(module)
    assert np.isnan(module.table.landmarks).all()
    (tmp_path / "elsewhere.txt").rename(landmarks)
    module = celeba(root, tmp_path / "cache")
    images(module)
    assert not np.isnan(module.table.landmarks).all()


def damage_pack(part: Path) -> None:
    os.truncate(part / "images.u8", 1000)


def damage_manifest(part: Path) -> None:
    (part / "manifest.json").write_text("{ not json")


def damage_version(part: Path) -> None:
    manifest = json.loads((part / "manifest.json").read_text())
    (part / "manifest.json").write_text(json.dumps({**manifest, "version": "another"}))


def damage_stats(part: Path) -> None:
    (part / "files.npy").write_bytes(b"nothing")


@pytest.mark.parametrize("damage", [damage_pack, damage_manifest, damage_version, damage_stats])
def test_damaged_images_are_packed_again(root: Path, tmp_path: Path, damage: Any) -> None:
    expected = images(celeba(root, tmp_path / "cache"))
    damage(next((tmp_path / "cache").rglob("images.u8")).parent)
    assert torch.equal(images(celeba(root, tmp_path / "cache")), expected)
    assert parts(tmp_path / "cache") == ["images", "table"]


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut short", None])
def test_a_damaged_table_is_read_again(root: Path, tmp_path: Path, content: bytes | None) -> None:
    module = celeba(root, tmp_path / "cache")
    images(module)
    path = next((tmp_path / "cache").rglob("table.npz"))
    path.write_bytes(path.read_bytes()[:-300] if content is None else content)
    again = celeba(root, tmp_path / "cache")
    images(again)
    assert_same_table(again.table, module.table)


def test_a_flipped_byte_is_found_on_request(root: Path, tmp_path: Path) -> None:
    module = celeba(root, tmp_path / "cache")
    found = prepared.prepare(module)
    assert prepared.verify(module, found) == []
    path = next((tmp_path / "cache").rglob("images.u8"))
    with path.open("r+b") as file:
        file.seek(5000)
        byte = file.read(1)
        file.seek(5000)
        file.write(bytes([byte[0] ^ 1]))
    found = prepared.prepare(module)
    assert prepared.verify(module, found) == [f"rows 0 to 39 of {path}"]
    prepared.discard(found)
    assert prepared.verify(module, prepared.prepare(module)) == []


def test_without_preparing_nothing_is_written(root: Path, tmp_path: Path) -> None:
    images(celeba(root, tmp_path / "cache", prepared=False))
    assert not (tmp_path / "cache").exists()


def break_inside(path: Path) -> None:
    """Leave header and end marker, which are looked at first, and nothing that decodes between them."""
    content = path.read_bytes()
    path.write_bytes(content[: content.index(b"\xff\xc4")] + b"\xff\xd9")


def test_images_that_do_not_decode_are_told_before_training(root: Path, tmp_path: Path) -> None:
    paths = sorted((root / "img_align_celeba").iterdir())
    for path in (paths[2], paths[5]):
        break_inside(path)
    with pytest.raises(DataError) as caught:
        celeba(root, tmp_path / "cache").setup()
    assert "2 of 40 images can't be used:" in str(caught.value) and "data.on_bad_image=skip" in str(caught.value)
    assert str(paths[2]) in str(caught.value) and str(paths[5]) in str(caught.value)
    # Pillow before 13 sees such damage when the file is opened, and so before the table is kept.
    assert parts(tmp_path / "cache") in ([], ["table"])

    skipping = celeba(root, tmp_path / "cache", on_bad_image="skip")
    found = images(skipping)
    assert len(found) == 38 and paths[2].name not in skipping.table.files
    assert any("left out 2 of 40" in note for note in skipping.table.notes)
    pack = next((tmp_path / "cache").rglob("images.u8")).stat().st_ino
    assert torch.equal(images(celeba(root, tmp_path / "cache", on_bad_image="skip")), found)
    assert next((tmp_path / "cache").rglob("images.u8")).stat().st_ino == pack


def test_a_process_of_a_pool_ends_with_the_one_that_was_killed() -> None:
    code = """
import os, signal, time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from faceattr_lightning.processes import end_with_parent
if __name__ == "__main__":
    pool = ProcessPoolExecutor(1, get_context("fork"), initializer=end_with_parent)
    print(pool.submit(os.getpid).result(), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    printed = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=60
    ).stdout
    # The output, which the pool's process holds open too, ends with that process: this would wait for ever.
    assert printed.strip().isdecimal()


def no_room(*_: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("when", ["before", "while"])
def test_a_full_disk(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, when: str
) -> None:
    expected = images(celeba(root, tmp_path / "plain", prepared=False))
    if when == "before":
        monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))
    else:
        monkeypatch.setattr(prepared, "_write_chunk", no_room)
    assert torch.equal(images(celeba(root, tmp_path / "cache")), expected)
    assert "data.cache_dir: can't prepare celeba in" in caplog.text and "data.prepared=false" in caplog.text
    with pytest.raises(DataError, match=r"data\.cache_dir: can't prepare celeba .* Free some space or choose another"):
        prepared.prepare(celeba(root, tmp_path / "cache"), required=True)
    assert parts(tmp_path / "cache") == ["table"]


def test_a_disk_that_really_is_full(root: Path, tmp_path: Path) -> None:
    """A file system of 200 KB, which the annotations fit on and the images do not."""
    with small_disk(tmp_path / "disk", "size=200k") as disk:
        assert len(images(celeba(root, disk))) == 40
        assert not list(disk.rglob("*.partial")) and not list(disk.rglob("images.u8"))


def test_a_cache_that_can_not_be_made(root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    assert len(images(celeba(root, tmp_path / "file"))) == 40
    assert "data.cache_dir: can't prepare celeba" in caplog.text


PREPARE = """
import logging, sys, time
from pathlib import Path
from faceattr_lightning.data import prepared
from faceattr_lightning.data.celeba import CelebA
logging.basicConfig(level=logging.INFO)
root, cache, pause = sys.argv[1:]
prepared._CHUNK = 4
write = prepared._write_chunk
def slowly(chunk):
    time.sleep(float(pause))
    return write(chunk)
prepared._write_chunk = slowly
module = CelebA(root=root, image_size=48, cache_dir=cache)
module.setup()
print(prepared.PackedImages(module._packed.folder, 40, 48).images(__import__("numpy").arange(40)).sum().item())
"""


def start(root: Path, cache: Path, pause: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PREPARE, str(root), str(cache), str(pause)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_build(cache: Path) -> None:
    deadline = time.monotonic() + 120
    while not list(cache.rglob("images-*.partial/images.u8")) and time.monotonic() < deadline:
        time.sleep(0.05)


def test_a_killed_build_is_redone(root: Path, tmp_path: Path) -> None:
    expected = images(celeba(root, tmp_path / "plain", prepared=False))
    killed = start(root, tmp_path / "cache", pause=5)
    wait_for_build(tmp_path / "cache")
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert list((tmp_path / "cache").rglob("*.partial")), "it was killed too late"
    assert torch.equal(images(celeba(root, tmp_path / "cache")), expected)
    assert parts(tmp_path / "cache") == ["images", "table"] and not list((tmp_path / "cache").rglob("*.partial"))


@pytest.mark.parametrize("processes", [3, pytest.param(8, marks=pytest.mark.slow)])
def test_processes_that_start_together_build_once(root: Path, tmp_path: Path, processes: int) -> None:
    expected = int(images(celeba(root, tmp_path / "plain", prepared=False)).sum())
    together = [start(root, tmp_path / "cache", pause=0.1) for _ in range(processes)]
    said = [process.communicate() for process in together]
    assert [int(printed.split()[-1]) for printed, _ in said] == [expected] * processes
    built = [logged.count("celeba: packing 40 images") for _, logged in said]
    assert sorted(built) == [0] * (processes - 1) + [1]
    assert parts(tmp_path / "cache") == ["images", "table"] and not list((tmp_path / "cache").rglob("*.partial"))


@pytest.mark.slow
def test_whoever_waits_for_a_build_that_is_killed_builds(root: Path, tmp_path: Path) -> None:
    expected = int(images(celeba(root, tmp_path / "plain", prepared=False)).sum())
    killed = start(root, tmp_path / "cache", pause=10)
    wait_for_build(tmp_path / "cache")
    waiting = [start(root, tmp_path / "cache", pause=0) for _ in range(2)]
    # Until both have found the lock taken.
    seen = [process.stderr.readline() for process in waiting if process.stderr is not None]
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    said = [process.communicate() for process in waiting]
    assert all("Another process is preparing" in line for line in seen)
    assert [int(printed.split()[-1]) for printed, _ in said] == [expected] * 2
    assert sum(logged.count("celeba: packing 40 images") for _, logged in said) == 1
    assert parts(tmp_path / "cache") == ["images", "table"] and not list((tmp_path / "cache").rglob("*.partial"))


@pytest.mark.parametrize("workers", [0, 4])
def test_workers_change_nothing(root: Path, tmp_path: Path, workers: int) -> None:
    def epoch(prepared: bool, workers: int) -> list[Any]:
        options: dict[str, Any] = {"augmentation": {"flip": 0.5}, "num_workers": workers, "prepared": prepared}
        module = celeba(root, tmp_path / "cache", **options)
        module.setup()
        loader = module.train_dataloader()
        loader.sampler.set_epoch(3)  # type: ignore[attr-defined]
        return list(loader)

    for one, other in zip(epoch(False, 0), epoch(True, workers), strict=True):
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
