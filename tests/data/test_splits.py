"""Tests of `faceattr_lightning.data.splits`."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from faceattr_lightning.data.splits import check_fractions, draw_people, draw_split, note_shared_people
from faceattr_lightning.data.table import Split
from faceattr_lightning.errors import ConfigError

# One to four images of each of 60 people.
PEOPLE = [f"person {person}" for person in range(60) for _ in range(1 + person * 7 % 4)]


def people_of(split: np.ndarray, code: Split) -> set[str]:  # type: ignore[type-arg]
    return {PEOPLE[row] for row in np.flatnonzero(split == code)}


def test_people_are_taken_in_the_order_of_hashes() -> None:
    singles = [f"person {person}" for person in range(50)]
    ordered = sorted(singles, key=lambda name: hashlib.sha256(f"3:{name}".encode()).hexdigest())
    assert draw_people(singles, 0.2, seed=3) == set(ordered[:10])


@pytest.mark.parametrize("seed", range(5))
def test_nobody_stands_in_two_splits_and_the_shares_are_near(seed: int) -> None:
    split = draw_split(PEOPLE, 0.1, seed, 0.2)
    train, validation, test = (people_of(split, code) for code in Split)
    assert not (train & validation or train & test or validation & test)
    assert split.dtype == np.int8 and len(split) == len(PEOPLE)
    # Nobody has more than four images, so the nearest number is at most two away.
    assert abs((split == Split.VALIDATION).sum() - 0.1 * len(PEOPLE)) <= 2
    assert abs((split == Split.TEST).sum() - 0.2 * len(PEOPLE)) <= 2


def test_each_image_a_person_gives_exact_shares() -> None:
    split = draw_split([str(row) for row in range(1000)], 0.1, 0, 0.2)
    assert np.bincount(split).tolist() == [700, 100, 200]


def test_the_draw_depends_on_people_and_seed_only() -> None:
    split = draw_split(PEOPLE, 0.1, 7, 0.2)
    order = np.random.default_rng(0).permutation(len(PEOPLE))
    np.testing.assert_array_equal(draw_split([PEOPLE[row] for row in order], 0.1, 7, 0.2), split[order])
    assert people_of(draw_split(PEOPLE, 0.1, 8, 0.2), Split.TEST) != people_of(split, Split.TEST)


def test_without_test_images_validation_is_the_draw_itself() -> None:
    for seed in range(5):
        split = draw_split(PEOPLE, 0.3, seed)
        assert people_of(split, Split.VALIDATION) == draw_people(PEOPLE, 0.3, seed)
        assert not people_of(split, Split.TEST)


def test_the_draw_never_changes() -> None:
    """A user's scores stay comparable over versions of this package and of its dependencies."""
    split = draw_split([f"p{person}" for person in range(10)], 0.1, 0, 0.2)
    assert split.tolist() == [0, 0, 2, 0, 1, 0, 0, 2, 0, 0]


@pytest.mark.parametrize("people", [[], ["one"], ["one", "one"]])
def test_too_few_people(people: list[str]) -> None:
    assert len(draw_split(people, 0.1, 0, 0.8)) == len(people)


@pytest.mark.parametrize(
    ("fractions", "problem"),
    [
        ((-0.1, 0.2), "data.validation_fraction: expected a number from 0 to below 1, found -0.1."),
        ((0.1, 1.0), "data.test_fraction: expected a number from 0 to below 1, found 1.0."),
        ((0.5, 0.5), "leave nothing to train on"),
    ],
)
def test_fractions_out_of_range(fractions: tuple[float, float], problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_fractions(*fractions)
    assert problem in str(caught.value)


def test_shared_people_are_noted() -> None:
    notes: list[str] = []
    note_shared_people(np.array([0, 0, 1, 1, -1, -1]), np.array([0, 0, 1, 1, 0, 2], dtype=np.int8), notes)
    assert notes == []
    note_shared_people(np.array([0, 0, 1, 1, 2, 2]), np.array([0, 0, 1, 2, 0, 2], dtype=np.int8), notes)
    assert len(notes) == 1 and notes[0].endswith(": 2.")
