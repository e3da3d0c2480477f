"""Drawing the splits that a data set's files do not give, by whole people; ours, as the data sets publish no draw."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from faceattr_lightning.data.table import Split
from faceattr_lightning.errors import ConfigError


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
