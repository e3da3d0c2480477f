"""The data modules: batches, their order and augmentation, subsets, and bad input through the real program."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from faceattr_lightning.data.celeba import CelebA
from faceattr_lightning.data.lfwa import LFWA
from faceattr_lightning.data.module import DATA_ENVIRONMENT_VARIABLE
from faceattr_lightning.data.order import EpochOrder
from faceattr_lightning.data.synthetic import Synthetic
from faceattr_lightning.data.table import Split
from faceattr_lightning.errors import ConfigError, DataError
from tests.data.writers import write_celeba, write_lfwa
from tests.runs import SMALL, run

FLIP = {"flip": 0.5, "scale": 0.1}


def celeba(root: Path, **options: Any) -> CelebA:
    module = CelebA(root=str(root), **{"image_size": 32, "batch_size": 8, "augmentation": FLIP, **options})
    module.setup()
    return module


def epoch(module: CelebA, number: int) -> list[Any]:
    loader = module.train_dataloader()
    order: Any = loader.sampler
    order.set_epoch(number)
    return [module.on_after_batch_transfer(batch, 0) for batch in loader]


def test_what_a_batch_holds(tiny_data: Path) -> None:
    module = celeba(tiny_data / "celeba")
    (batch, *_), (plain, *_) = epoch(module, 0), list(module.val_dataloader())
    table = module.table
    assert batch["image"].shape == plain["image"].shape == (8, 3, 32, 32)
    assert batch["image"].dtype == torch.float32 and plain["image"].dtype == torch.uint8
    assert plain["attributes"].dtype == torch.int8 and plain["landmarks_valid"].dtype == torch.bool
    assert plain["identity"].dtype == plain["index"].dtype == torch.int64
    for found in (batch, plain):
        rows = found["index"].numpy()
        np.testing.assert_array_equal(found["attributes"].numpy(), table.attributes[rows])
        np.testing.assert_array_equal(found["identity"].numpy(), table.identity[rows])
        assert ((found["landmarks"] >= 0) & (found["landmarks"] <= 1)).all()
    rows = plain["index"].numpy()
    inside = plain["landmarks_valid"].numpy()
    expected = (table.landmarks[rows] + 0.5 - (0, 20)) / 178
    np.testing.assert_allclose(plain["landmarks"].numpy()[inside], expected[inside], atol=1e-6)
    assert set(table.split[batch["index"].numpy()]) == {Split.TRAIN}


def test_workers_change_nothing(tiny_data: Path) -> None:
    alone, helped = (celeba(tiny_data / "celeba", num_workers=workers) for workers in (0, 2))
    for number in (0, 1):
        for first, second in zip(epoch(alone, number), epoch(helped, number), strict=True):
            assert first.keys() == second.keys()
            assert all(torch.equal(first[key], second[key]) for key in first)


def test_augmentation_belongs_to_the_position_not_to_the_rank(tiny_data: Path) -> None:
    """Two ranks of four samples see, together, the very pixels that one process of eight sees."""
    module = celeba(tiny_data / "celeba")
    dataset = module.dataset(Split.TRAIN)
    whole = [module.on_after_batch_transfer(dataset[request], 0) for request in EpochOrder(48, 8, 0, training=True)]
    parts = [
        [module.on_after_batch_transfer(dataset[request], 0) for request in EpochOrder(48, 4, 0, True, rank, 2)]
        for rank in range(2)
    ]
    for batch, first, second in zip(whole, *parts, strict=True):
        torch.testing.assert_close(torch.cat([first["image"], second["image"]]), batch["image"])
        assert torch.equal(torch.cat([first["index"], second["index"]]), batch["index"])


def test_epochs_differ_in_order_and_augmentation(tiny_data: Path) -> None:
    module = celeba(tiny_data / "celeba")
    first, second = ({int(k): v for b in epoch(module, n) for k, v in zip(b["index"], b["image"])} for n in (0, 1))  # noqa: B905
    assert list(first) != list(second) and set(first) == set(second)
    assert any(not torch.equal(first[row], second[row]) for row in first)


def test_a_fraction_of_the_training_images(tiny_data: Path) -> None:
    rows = [set(celeba(tiny_data / "celeba", train_fraction=share).train_rows()) for share in (0.25, 0.5, 1.0)]
    assert [len(part) for part in rows] == [12, 24, 48]
    assert rows[0] < rows[1] < rows[2]
    with pytest.raises(ConfigError, match=r"data\.train_fraction: expected a share in \(0, 1\], found 1\.5"):
        celeba(tiny_data / "celeba", train_fraction=1.5).train_rows()


def test_a_fraction_has_the_labels_of_the_whole(tmp_path: Path) -> None:
    write_celeba(tmp_path / "celeba", n=384)
    errors: dict[str, list[float]] = {"stratified": [], "random": []}
    for seed in range(5):
        module = celeba(tmp_path / "celeba", train_fraction=0.25, seed=seed)
        rows, whole = module.train_rows(), module.table.rows(Split.TRAIN)
        assert (np.diff(rows) > 0).all() and set(rows) <= set(whole) and module.train_rows() is rows
        random = np.random.default_rng(seed).permutation(whole)[: len(rows)]
        for name, drawn in (("stratified", rows), ("random", random)):
            shares = [module.table.attributes[part].mean(axis=0) for part in (drawn, whole)]
            errors[name].append(float(np.abs(shares[0] - shares[1]).mean()))
    assert np.mean(errors["stratified"]) < 0.4 * np.mean(errors["random"])
    everything = celeba(tmp_path / "celeba")
    np.testing.assert_array_equal(everything.train_rows(), everything.table.rows(Split.TRAIN))


def test_chosen_attributes(tiny_data: Path) -> None:
    everything = celeba(tiny_data / "celeba")
    module = celeba(tiny_data / "celeba", attributes=["Young", "Bald"])
    assert module.attribute_names == ["Young", "Bald"]
    np.testing.assert_array_equal(module.table.attributes, everything.table.attributes[:, [39, 4]])
    expected = module.table.attributes[module.table.split == Split.TRAIN].mean(axis=0)
    np.testing.assert_allclose(module.training_prevalence().numpy(), expected, atol=1e-6)


def test_prevalence_leaves_out_what_is_not_labelled(tiny_data: Path) -> None:
    module = celeba(tiny_data / "celeba", attributes=["Young", "Bald"])
    train = np.flatnonzero(module.table.split == Split.TRAIN)
    module.table.attributes[train, 0] = -1
    module.table.attributes[train[:4], 0] = [1, 1, 0, 1]
    module.table.attributes[train, 1] = -1
    prevalence = module.training_prevalence()
    assert float(prevalence[0]) == 0.75 and prevalence[1].isnan()


def test_the_template_is_the_mean_shape_in_the_crop(tiny_data: Path) -> None:
    module = celeba(tiny_data / "celeba")
    mean = module.table.landmarks[module.table.split == Split.TRAIN].mean(axis=0)
    np.testing.assert_allclose(module.preprocessing((), ()).template, (mean + 0.5 - (0, 20)) / 178, atol=1e-4)


def test_skipped_images_are_left_out(tmp_path: Path) -> None:
    write_celeba(tmp_path / "celeba", n=24)
    bad = tmp_path / "celeba" / "img_align_celeba" / "000002.jpg"
    bad.write_bytes(bad.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"000002\.jpg"):
        celeba(tmp_path / "celeba")
    module = celeba(tmp_path / "celeba", on_bad_image="skip")
    assert len(module.table) == 23 and "000002.jpg" not in module.table.files
    assert any("000002.jpg" in note for note in module.table.notes)


def test_where_the_data_is_looked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(DATA_ENVIRONMENT_VARIABLE, raising=False)
    with pytest.raises(DataError, match=r"data\.root.*'celeba' is not known.*FACEATTR_DATA"):
        CelebA().data_root()
    monkeypatch.setenv(DATA_ENVIRONMENT_VARIABLE, str(tmp_path))
    with pytest.raises(DataError, match=r"there is no folder .*lfwa.*Set data\.root="):
        LFWA().data_root()
    (tmp_path / "lfwa").mkdir()
    assert LFWA().data_root() == tmp_path / "lfwa"


def test_lfwa_has_no_landmarks(tmp_path: Path) -> None:
    write_lfwa(tmp_path / "lfwa", people=20)
    module = LFWA(root=str(tmp_path / "lfwa"), image_size=32, batch_size=4, validation_fraction=0.3)
    module.setup()
    (batch, *_) = module.train_dataloader()
    assert batch["landmarks"].shape == (4, 0, 2) and "augmentation" not in batch
    assert module.landmark_count() == 0
    # Where its photos are aligned to is known nevertheless.
    expected = (np.array(LFWA.mean_landmarks) + 0.5 - (36, 22)) / 178
    np.testing.assert_allclose(module.preprocessing((), ()).template, expected, atol=1e-4)


def test_drawn_faces_are_kept_and_people_stay_in_one_split(tmp_path: Path) -> None:
    options: dict[str, Any] = {"train_size": 80, "validation_size": 50, "test_size": 50, "cache_dir": str(tmp_path)}
    module = Synthetic(**options)
    module.prepare_data()
    module.setup()
    table = module.table
    people = [set(table.identity[table.split == split]) for split in Split]
    assert all(people) and not (people[0] & people[1] or people[1] & people[2] or people[0] & people[2])
    first, second = (np.stack(list(module.source_images(np.arange(k, k + 3)))) for k in (0, 3))
    assert (first != second).any()
    (cache,) = (tmp_path / "synthetic").glob("[!.]*")
    drawn = (cache / "images.npy").stat().st_mtime_ns
    again = Synthetic(**options)
    again.prepare_data()
    again.setup()
    assert (cache / "images.npy").stat().st_mtime_ns == drawn
    assert torch.equal(next(iter(again.test_dataloader()))["image"], next(iter(module.test_dataloader()))["image"])
    assert list((tmp_path / "synthetic").glob("[!.]*")) == [cache]


def test_a_cache_that_can_not_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match=r"data\.cache_dir: can't write .*file"):
        Synthetic(10, 10, 10, cache_dir=str(tmp_path / "file")).prepare_data()


@pytest.mark.parametrize("fault", ["missing image", "name outside"])
def test_bad_files_stop_the_program_before_training(fault: str, tiny_data: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(tiny_data, data)
    if fault == "missing image":
        (data / "celeba" / "img_align_celeba" / "000009.jpg").unlink()
        expected = "000009.jpg"
    else:
        path = data / "celeba" / "list_attr_celeba.txt"
        path.write_text(path.read_text().replace("000009.jpg", "../../x.jpg"))
        expected = "list_attr_celeba.txt, line 11"
    finished = run(*SMALL, "model=baseline", data=data, output=tmp_path / "outputs", check=False)
    assert finished.returncode == 1
    assert expected in finished.stderr and "Traceback" not in finished.stderr + finished.stdout
    assert not list((tmp_path / "outputs").rglob("*.ckpt")) and not list((tmp_path / "outputs").rglob("report"))
