"""Draws that a data set's files do not give, ours: splits, by whole people, and a share of the training split that has
the whole's labels.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from faceattr_lightning.data.table import Split
from faceattr_lightning.errors import ConfigError

_CANDIDATES = 5
"""Times sqrt(N): half of a random order has too many or too few of a side by sqrt(N) / 4 (standard deviation, sides of
equal size), and the worst of forty attributes by some three times that."""


def check_fractions(validation_fraction: float, test_fraction: float = 0.0) -> None:
    """Raise a `ConfigError` unless both are in [0, 1) and leave images to train on."""
    problems = [
        f"data.{name}: expected a number from 0 to below 1, found {fraction}."
        for name, fraction in (("validation_fraction", validation_fraction), ("test_fraction", test_fraction))
        if not 0 <= fraction < 1
    ]
    if not problems and validation_fraction + test_fraction >= 1:
        problems.append(
            f"data.validation_fraction: {validation_fraction} to validate on and {test_fraction} to test on leave "
            "nothing to train on."
        )
    if problems:
        raise ConfigError(problems)


def draw_people(people: Sequence[str], fraction: float, seed: int) -> set[str]:
    """Draw people whose images are about ``fraction`` of all.

    The order of the draw is that of hashes, so it depends on no random generator and on no order of rows.

    Args:
        people: (N,) the person of each image.
        fraction: in [0, 1).
        seed: of the draw; the same people and seed always give the same draw.
    """
    images = Counter(people)
    wanted = fraction * len(people)
    drawn: set[str] = set()
    n_drawn = 0
    for person in sorted(images, key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest()):
        # Taken if that brings the number nearer to what is wanted; so someone with 500 images can't overshoot by far.
        if images[person] < 2 * (wanted - n_drawn):
            drawn.add(person)
            n_drawn += images[person]
    if not drawn and wanted and len(images) > 1:
        drawn.add(min(images, key=lambda name: (images[name], name)))
    return drawn


def draw_split(
    people: Sequence[str], validation_fraction: float, seed: int, test_fraction: float = 0.0
) -> NDArray[np.int8]:
    """Draw a split in which nobody stands twice: int8 (N,), a `Split` each.

    Args:
        people: (N,) the person of each image; an image whose person is not known is a person of its own.
        validation_fraction: about which part of the images to validate on.
        seed: see `draw_people`.
        test_fraction: about which part of the images to test on; the test images are drawn first.

    Raises:
        ConfigError: see `check_fractions`.
    """
    check_fractions(validation_fraction, test_fraction)
    test = draw_people(people, test_fraction, seed)
    rest = [person for person in people if person not in test]
    # The quotient is exactly 1 where nobody is in test.
    validation = draw_people(rest, validation_fraction * (len(people) / max(1, len(rest))), seed)
    codes = {**dict.fromkeys(test, Split.TEST), **dict.fromkeys(validation, Split.VALIDATION)}
    return np.fromiter((codes.get(person, Split.TRAIN) for person in people), dtype=np.int8, count=len(people))


def note_shared_people(identity: NDArray[np.int64], split: NDArray[np.int8], notes: list[str]) -> None:
    """Add a sentence to ``notes`` if there are people with images in more than one split.

    Args:
        identity: int64 (N,), -1 where unknown.
        split: int8 (N,).
        notes: of the table.
    """
    pairs = np.unique(np.stack([identity, split.astype(np.int64)], axis=1)[identity >= 0], axis=0)
    shared = int((np.unique(pairs[:, 0], return_counts=True)[1] > 1).sum())
    if shared:
        notes.append(f"People with images in more than one split, which makes a test too easy: {shared:,}.")


def stratified_order(divisions: Sequence[NDArray[np.signedinteger]], count: int, seed: int) -> NDArray[np.int64]:
    """Return the first rows of an order in which each beginning holds every side of every division about as often as
    the whole does.

    The next row is the one of the next `_CANDIDATES` sqrt(N) rows of a random order that brings the counts nearest to
    their expectation, by the squared distances in units of a random draw's variance: the greedy choice of herding
    (Welling, Herding dynamical weights to learn, 2009) without replacement. Ours are the candidates, which are more
    than what a random order of N rows can lack of a side, and whole numbers in place of real ones, so that every
    machine draws the same. Iterative stratification (Sechidis, Tsoumakas, Vlahavas, On the stratification of
    multi-label data, 2011) draws one share alone, no order, and on CelebA's labels comes less near.

    Args:
        divisions: the side of each row, integers (N,) each, such as an attribute's labels; a label that is missing is a
            side too.
        count: rows to return, at most N. Fewer are the beginning of more.
        seed: of the random order.

    Returns:
        int64 (count,), row numbers.
    """
    n_rows = len(divisions[0])
    order = np.random.Generator(np.random.Philox(key=[seed, 0x7261696E])).permutation(n_rows)
    sides = _sides(divisions)
    share = sides.mean(axis=1)
    variance = share * (1 - share)
    n_read = min(n_rows, math.ceil(_CANDIDATES * math.sqrt(n_rows)))
    rows = order[:n_read].copy()
    # Of float, for a fast product, (K, S); the sums of whole numbers are exact in whatever order they are taken.
    candidates = np.ascontiguousarray(sides[:, rows].T, dtype=np.float64)
    excess = np.zeros(len(sides))
    taken = np.empty(count, dtype=np.int64)
    for place in range(count):
        excess -= share
        # (excess + side)^2 - excess^2, where a side is 0 or 1.
        growth = np.rint(2.0**16 * (2 * excess + 1) / variance)
        chosen = int((candidates @ growth).argmin())
        taken[place] = rows[chosen]
        excess += candidates[chosen]
        if n_read < n_rows:
            rows[chosen], candidates[chosen] = order[n_read], sides[:, order[n_read]]
            n_read += 1
        else:
            rows[chosen], candidates[chosen] = rows[-1], candidates[-1]
            rows, candidates = rows[:-1], candidates[:-1]
    return taken


def _sides(divisions: Sequence[NDArray[np.signedinteger]]) -> NDArray[np.bool_]:
    """Return for each distinct side which rows are on it, (S, N); of two sides one says it all, of one none does."""
    distinct: dict[bytes, NDArray[np.bool_]] = {}
    for division in divisions:
        values = np.unique(division)
        if len(values) > 1:
            for value in values[len(values) == 2 :]:
                side = division == value
                distinct.setdefault(np.packbits(side).tobytes(), side)
    return np.stack(list(distinct.values())) if distinct else np.zeros((0, len(divisions[0])), dtype=np.bool_)
