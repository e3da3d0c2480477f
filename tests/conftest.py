"""Fixtures for all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.data.writers import write_celeba, write_fairface, write_lfwa


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Prepared data of tests, also of the programs that they run, belongs into no user's cache."""
    os.environ["FACEATTR_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with ``celeba/``, ``lfwa/`` and ``celeba_full_labels/``; the test is skipped where it is not."""
    folder = Path(os.environ.get("FACEATTR_DATA") or Path(__file__).parents[2] / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"needs real faces, and there is no folder {folder}; set FACEATTR_DATA")
    return folder


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds a CelebA of 96 drawn images: 48 to train on, 24 to validate and 24 to test."""
    folder = tmp_path_factory.mktemp("data")
    write_celeba(folder / "celeba", n=96)
    return folder


@pytest.fixture(scope="session")
def fused_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds a tiny CelebA, LFWA and FairFace."""
    folder = tmp_path_factory.mktemp("fused")
    write_celeba(folder / "celeba", n=96)
    write_lfwa(folder / "lfwa", people=24)
    write_fairface(folder / "fairface", n_train=40, n_val=12)
    return folder
