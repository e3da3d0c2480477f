"""Fused data sets: union of attributes, missing labels, each image from its own set, sampling by weight."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from faceattr_lightning.attributes import ADIENCE_AGE_GROUPS, CELEBA_ATTRIBUTES
from faceattr_lightning.data.celeba import CelebA
from faceattr_lightning.data.fused import Fused
from faceattr_lightning.data.lfwa import LFWA
from faceattr_lightning.data.order import BatchRequest, EpochOrder, Mix
from faceattr_lightning.data.table import Slice, Split
from faceattr_lightning.errors import ConfigError, DataError
from tests.data.writers import write_adience, write_celeba, write_fairface, write_lfwa

Make = Callable[..., Fused]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fused")
    write_celeba(folder / "celeba", n=24)
    write_lfwa(folder / "lfwa", people=16)
    write_lfwa(folder / "lfwa73", people=16, attributes=73)
    return folder


@pytest.fixture
def make(root: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    monkeypatch.setenv("FACEATTR_DATA", str(root))

    def fused(sets: list[str], label_set: int = 40, **options: Any) -> Fused:
        members = {
            "celeba": {"_target_": "faceattr_lightning.data.celeba.CelebA"},
            "lfwa": {
                "_target_": "faceattr_lightning.data.lfwa.LFWA",
                "label_set": label_set,
                "root": str(root / ("lfwa" if label_set == 40 else "lfwa73")),
            },
        }
        return Fused(sets, members, image_size=32, batch_size=4, **options)

    return fused


def test_each_row_is_that_of_its_own_data_set(make: Make) -> None:
    fused = make(["celeba", "lfwa"])
    fused.setup()
    alone = [CelebA(image_size=32), LFWA(image_size=32)]
    for module in alone:
        module.setup()
    table, count = fused.table, len(alone[0].table)
    assert len(table) == count + len(alone[1].table)
    assert table.databases == ("celeba", "lfwa") and table.database.tolist() == [0] * count + [1] * len(alone[1].table)
    # Rows of both sets, mixed.
    rows = np.array([count + 2, 0, count, 5, 1])
    source = fused.source()
    images, (landmarks, valid) = source.images(rows), source.landmarks(rows)
    for place, row in enumerate(rows):
        owner, own = (alone[0], row) if row < count else (alone[1], row - count)
        assert torch.equal(images[place], owner.source().images(np.array([own]))[0])
        assert table.files[row] == f"{owner.name}/{owner.table.files[own]}"
        assert np.array_equal(fused.source_images(np.array([row]))[0], owner.source_images(np.array([own]))[0])
        if owner is alone[0]:
            expected, known = owner.source().landmarks(np.array([own]))
            assert torch.equal(landmarks[place], expected[0]) and torch.equal(valid[place], known[0])
        else:
            assert not valid[place].any()
    batch = fused.dataset(Split.VALIDATION)[BatchRequest(np.arange(3), np.arange(3), 0)]
    assert batch["database"].dtype == torch.int64


def test_identities_of_two_sets_never_meet(make: Make) -> None:
    fused = make(["celeba", "lfwa"])
    fused.setup()
    first, second = (set(fused.table.identity[fused.table.database == index]) for index in (0, 1))
    assert not first & second and -1 not in first | second


def test_the_union_of_vocabularies(make: Make) -> None:
    fused = make(["celeba", "lfwa"], label_set=73)
    fused.setup()
    table = fused.table
    assert table.attribute_names[:40] == CELEBA_ATTRIBUTES
    # "5 o'Clock Shadow" and Male are CelebA's; "No Eyewear" and the others are not.
    assert len(table.attribute_names) == 40 + 71 and "No_Eyewear" in table.attribute_names
    of_lfwa = table.attributes[table.database == 1]
    labelled = {name for name, column in zip(table.attribute_names, of_lfwa.T, strict=True) if (column >= 0).any()}
    assert {"Male", "5_o_Clock_Shadow", "No_Eyewear"} <= labelled and len(labelled) == 73
    assert (table.attributes[table.database == 0][:, 40:] == -1).all()
    assert fused.labelled_attributes()[0] == [True] * 40 + [False] * 71


def test_an_epoch_has_the_shares_and_its_part_of_every_set() -> None:
    # 90 rows of one part, 10 of the other, by the square root: 3 to 1.
    part = np.array([0] * 90 + [1] * 10)
    order = EpochOrder(100, 4, seed=1, training=True, mix=Mix(part, np.array([0.75, 0.25])))
    seen = np.concatenate([request.rows for request in order])
    assert len(seen) == 100
    counts = np.bincount(seen, minlength=100)
    assert counts[:90].sum() == 75 and counts[:90].max() == 1
    # 25 of 10: each twice, five of them three times.
    assert sorted(counts[90:]) == [2] * 5 + [3] * 5
    order.set_epoch(1)
    again = np.concatenate([request.rows for request in order])
    assert set(again) != set(seen)
    ranks = [EpochOrder(100, 2, 1, True, rank, 2, mix=order.mix) for rank in range(2)]
    first = [request.rows for rank in ranks for request in [next(iter(rank))]]
    assert np.array_equal(np.concatenate(first), seen[:4])


def test_a_fraction_takes_its_part_of_every_set(make: Make) -> None:
    whole, part = (make(["celeba", "lfwa"], label_set=73, train_fraction=share) for share in (1.0, 0.5))
    for fused in (whole, part):
        fused.setup()
    sizes = [np.bincount(fused.table.database[fused.train_rows()], minlength=2) for fused in (whole, part)]
    assert (np.abs(sizes[1] - sizes[0] / 2) <= 1).all()
    assert part.labelled_attributes() == whole.labelled_attributes()
    roots = np.sqrt(sizes[1])
    np.testing.assert_allclose(part.mix(part.train_rows()).shares, roots / roots.sum())


def test_shares_are_square_roots_or_given(make: Make) -> None:
    fused = make(["celeba", "lfwa"])
    fused.setup()
    rows = fused.train_rows()
    mix = fused.mix(rows)
    sizes = [int((fused.table.database[rows] == index).sum()) for index in (0, 1)]
    roots = [size**0.5 for size in sizes]
    assert mix.shares.tolist() == pytest.approx([value / sum(roots) for value in roots])
    given = make(["celeba", "lfwa"], weights={"celeba": 1, "lfwa": 3})
    given.setup()
    assert given.mix(rows).shares.tolist() == [0.25, 0.75]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sets": ["celeba", "lwfa"]}, "data.sets: there is no 'lwfa'"),
        ({"sets": ["celeba", "celeba"]}, "data.sets: 'celeba' is given twice"),
        ({"sets": []}, "data.sets: the list is empty"),
        ({"sets": ["celeba", "lfwa"], "weights": {"celeba": 1}}, "data.weights: expected a weight for each"),
        ({"sets": ["celeba"], "weights": {"celeba": 0}}, "data.weights.celeba: expected a positive number"),
    ],
)
def test_bad_lists(options: dict[str, Any], message: str, make: Make) -> None:
    with pytest.raises(ConfigError, match=message):
        make(**options)


def test_slices_are_fused(make: Make) -> None:
    fused = make(["celeba", "lfwa"])
    for module in fused.members:
        module.setup()
    first, second = (module.table for module in fused.members)
    rng = np.random.default_rng(0)
    first.slices = {"light": Slice(("day", "night"), rng.integers(-1, 2, len(first)))}
    second.slices = {
        "light": Slice(("dusk", "night"), rng.integers(-1, 2, len(second))),
        "race": Slice(("a",), np.zeros(len(second), dtype=np.int64)),
    }
    fused.setup()
    light, race = fused.table.slices["light"], fused.table.slices["race"]
    assert light.sides == ("day", "night", "dusk") and race.sides == ("a",)

    def named(part: Slice) -> list[str | None]:
        return [None if code < 0 else part.sides[code] for code in part.code]

    assert named(light) == named(first.slices["light"]) + named(second.slices["light"])
    assert named(race) == [None] * len(first) + ["a"] * len(second)
    assert fused.table.all_slices()["database"].sides == ("celeba", "lfwa")


def test_sets_that_share_nothing_are_refused(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    fused = make(["celeba", "lfwa"])
    for module in fused.members:
        module.setup()
    fused.members[1].table.attribute_names = tuple(f"x{k}" for k in range(40))
    with pytest.raises(ConfigError, match="celeba shares no attribute with lfwa"):
        fused.setup()


def test_two_names_of_one_attribute_are_refused(make: Make) -> None:
    fused = make(["celeba", "lfwa"])
    for module in fused.members:
        module.setup()
    names = list(CELEBA_ATTRIBUTES)
    names[0] = "gender"
    fused.members[1].table.attribute_names = tuple(names)
    with pytest.raises(DataError, match="'gender' and 'Male' mean the same attribute"):
        fused.setup()


def test_different_age_groups_have_to_be_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_fairface(tmp_path / "fairface", n_train=20, n_val=8)
    write_adience(tmp_path / "adience", people=15)
    monkeypatch.setenv("FACEATTR_DATA", str(tmp_path))

    def make(**options: Any) -> Fused:
        members = {
            "fairface": {"_target_": "faceattr_lightning.data.fairface.FairFace", "validation_fraction": 0.3},
            "adience": {"_target_": "faceattr_lightning.data.adience.Adience"},
        }
        return Fused(["fairface", "adience"], members, image_size=32, **options)

    # Known from the names alone, before a file is read.
    with pytest.raises(ConfigError, match="an age in one is outside every group of the other"):
        make()
    with pytest.raises(ConfigError, match="'celeba' has no age groups"):
        make(age_groups="celeba")
    fused = make(age_groups="adience")
    fused.setup()
    table = fused.table
    assert table.age_groups == ADIENCE_AGE_GROUPS
    assert (table.age_group[table.database == 0] == -1).all()
    ages = table.age_group[table.database == 1]
    assert np.array_equal(ages, fused.members[1].table.age_group) and (ages >= 0).any()
    shares = fused.training_age_groups()
    assert len(shares) == 8 and float(shares.sum()) == pytest.approx(1)


def test_errors_name_the_members_keys(make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FACEATTR_DATA", str(tmp_path))
    with pytest.raises(
        DataError, match=r"data\.members\.celeba\.root: there is no folder .* Set data\.members\.celeba\.root="
    ):
        make(["celeba", "lfwa"]).find_data()
    with pytest.raises(ConfigError, match=r"data\.members\.celeba\.train_fraction: it is not used"):
        members = {"celeba": {"_target_": "faceattr_lightning.data.celeba.CelebA", "train_fraction": 0.5}}
        Fused(["celeba"], members)
