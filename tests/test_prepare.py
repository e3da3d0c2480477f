"""``task=prepare`` through the real program, and a run that finds what it made."""

from __future__ import annotations

from pathlib import Path

import pytest

from faceattr_lightning.processes import quote
from tests.data.writers import write_celeba, write_lfwa
from tests.runs import SMALL, run, run_dirs, summary


@pytest.mark.slow
def test_prepare_verify_and_train(tmp_path: Path) -> None:
    write_celeba(tmp_path / "celeba", n=64)
    write_lfwa(tmp_path / "lfwa")
    cache = f"paths.cache_dir={quote(str(tmp_path / 'cache'))}"

    def say(*overrides: str, check: bool = True) -> str:
        finished = run(*overrides, cache, data=tmp_path, output=tmp_path / "outputs", check=check)
        assert "Traceback" not in finished.stderr
        return finished.stdout + finished.stderr

    both = ["task=prepare", "data=fused", "data.sets=[celeba,lfwa]", "data.image_size=64"]
    said = say(*both)
    assert "celeba: packing 64 images of 64 pixels into" in said and "0.8 MB of" in said
    packs = sorted((tmp_path / "cache").rglob("images.u8"))
    assert len(packs) == 2 and all(f"in {pack} (" in said for pack in packs)
    said = say(*both, "task.verify=true")
    assert "packing" not in said and said.count("every image is as it was written") == 2

    with packs[0].open("r+b") as file:
        file.write(b"\xff" * 100)
    said = say(*both, "task.verify=true")
    assert "1 parts are damaged, first rows 0 to 63" in said and said.count("packing 64 images") == 1

    said = say(*SMALL, "model=baseline", "trainer.max_epochs=1")
    assert "packing" not in said
    said = say(*SMALL, "model=baseline", "trainer.max_epochs=1", "data.prepared=false", "~data.cache_dir")
    first, second = (summary(folder) for folder in run_dirs(tmp_path / "outputs"))
    assert first["average_precision"] == second["average_precision"]


@pytest.mark.slow
def test_no_room_is_an_error_of_the_task_alone(tiny_data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cache = f"paths.cache_dir={quote(str(tmp_path / 'file'))}"
    finished = run("task=prepare", "data=celeba", cache, data=tiny_data, output=tmp_path, check=False)
    assert finished.returncode == 1 and "Traceback" not in finished.stderr
    assert "data.cache_dir: can't prepare celeba in" in finished.stderr
    finished = run(*SMALL, "model=baseline", "trainer.max_epochs=1", cache, data=tiny_data, output=tmp_path)
    assert "choose another data.cache_dir" in finished.stdout + finished.stderr
