"""Tests of `faceattr_lightning.data.splits`."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from faceattr_lightning.data.splits import (
    check_fractions,
    draw_people,
    draw_split,
    note_shared_people,
    stratified_order,
)
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


def celeba_like(n_rows: int, seed: int) -> np.ndarray:  # type: ignore[type-arg]
    """Labels int8 (n, 20) of shares from 0.01 to 0.9 that hang together, and of which some are missing."""
    generator = np.random.default_rng(seed)
    shares = np.concatenate([[0.01, 0.02], np.linspace(0.05, 0.9, 18)])
    common = generator.random((n_rows, 1))
    drawn = np.where(generator.random((n_rows, 20)) < 0.3, common, generator.random((n_rows, 20)))
    labels = (drawn < shares).astype(np.int8)
    labels[generator.random(n_rows) < 0.4, 15:] = -1
    return labels


def deviations(labels: np.ndarray, rows: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
    """How many of each attribute's positives, negatives and missing labels the rows have too many or too few."""
    counts = [[(part == value).sum(axis=0) for value in (1, 0, -1)] for part in (labels, labels[rows])]
    return np.abs(np.array(counts[1]) - np.array(counts[0]) * len(rows) / len(labels))


@pytest.mark.parametrize("count", [50, 200, 800, 2500])
def test_a_stratified_draw_has_the_shares_of_the_whole(count: int) -> None:
    stratified, random = [], []
    for seed in range(6):
        labels = celeba_like(4000, seed)
        rows = stratified_order(list(labels.T), count, seed)
        assert rows.dtype == np.int64 and len(set(rows)) == len(rows) == count and rows.min() >= 0 and rows.max() < 4000
        stratified.append(deviations(labels, rows))
        random.append(deviations(labels, np.random.default_rng(seed).permutation(4000)[:count]))
        positives, present = (labels[rows] == 1).sum(axis=0), (labels == 1).sum(axis=0)
        # Of a rare one there may be too few among the candidates: less than a random draw's deviation of three.
        assert (positives >= np.floor(present * count / 4000) - (1 if count < 2500 else 2)).all()
    assert np.max(stratified) < 3
    assert np.mean(stratified) < 0.2 * np.mean(random)


def test_pairs_of_attributes_come_no_less_near_than_in_a_random_draw() -> None:
    """Only single sides are looked at; that must not cost what attributes have in common."""
    errors: dict[str, list[float]] = {"stratified": [], "random": []}
    for seed in range(10):
        labels = celeba_like(4000, seed)
        present = (labels == 1).astype(np.float64)
        draws = {"stratified": stratified_order(list(labels.T), 400, seed)}
        draws["random"] = np.random.default_rng(seed).permutation(4000)[:400]
        for name, rows in draws.items():
            difference = present[rows].T @ present[rows] / 400 - present.T @ present / 4000
            errors[name].append(float((difference[np.triu_indices(20, 1)] ** 2).mean()))
    assert np.mean(errors["stratified"]) < np.mean(errors["random"])


def test_a_smaller_draw_is_the_beginning_of_a_larger() -> None:
    divisions = list(celeba_like(300, 0).T)
    whole = stratified_order(divisions, 300, seed=1)
    assert sorted(whole) == list(range(300))
    for count in (0, 1, 17, 150, 299):
        np.testing.assert_array_equal(stratified_order(divisions, count, seed=1), whole[:count])
    assert not np.array_equal(stratified_order(divisions, 300, seed=2), whole)


def test_each_row_is_the_one_that_comes_nearest_to_the_whole() -> None:
    """Against the definition, where every row is a candidate: up to 25."""
    labels = np.array([[row % 2, row % 3 - 1, row // 12] for row in range(24)])
    sides = [labels[:, 0] == 1, *(labels[:, 1] == value for value in (-1, 0, 1)), labels[:, 2] == 1]

    def distance(rows: list[int]) -> float:
        shares = [side.mean() for side in sides]
        return sum(
            (side[rows].sum() - len(rows) * share) ** 2 / (share * (1 - share))
            for side, share in zip(sides, shares, strict=True)
        )

    order = stratified_order(list(labels.T), 24, seed=5).tolist()
    for place, row in enumerate(order):
        distances = {other: distance([*order[:place], other]) for other in order[place:]}
        assert distances[row] == pytest.approx(min(distances.values()))


def test_the_order_never_changes() -> None:
    """Every process of a job draws for itself, on whatever machine."""
    labels = np.array([[row % 2, row % 5 == 0, row % 3 - 1] for row in range(40)])
    assert stratified_order(list(labels.T), 8, seed=0).tolist() == [27, 16, 20, 39, 29, 4, 3, 10]


@pytest.mark.parametrize("labels", [np.ones((7, 2)), np.full((7, 1), -1), np.zeros((1, 3))])
def test_labels_of_which_there_is_one_side_only(labels: np.ndarray) -> None:  # type: ignore[type-arg]
    divisions = list(labels.astype(np.int8).T)
    assert sorted(stratified_order(divisions, len(labels), seed=0)) == list(range(len(labels)))
