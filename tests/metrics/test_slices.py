"""Slices against scikit-learn, a side and an attribute at a time."""

import itertools
import math

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, confusion_matrix

from faceattr_lightning.data.table import Slice
from faceattr_lightning.errors import ConfigError
from faceattr_lightning.metrics.slices import DEFAULT_SLICES, RATES, choose_slices, largest_gaps, slice_rows

NAMES = ["Bald", "Male", "Young"]


def example(samples: int = 300) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, dict[str, Slice]]:
    generator = torch.Generator().manual_seed(0)
    probabilities = torch.rand(samples, 3, generator=generator).double()
    labels = (torch.rand(samples, 3, generator=generator) < 0.4).to(torch.int8)
    labels[torch.rand(samples, 3, generator=generator) < 0.2] = -1
    rng = np.random.default_rng(0)
    slices = {
        "Male": Slice(("0", "1"), labels[:, 1].numpy()),
        "race": Slice(("a", "b", "c", "nobody"), rng.integers(-1, 3, samples)),
    }
    return probabilities, labels, torch.tensor([0.3, 0.5, 0.7]), slices


def test_against_scikit_learn() -> None:
    probabilities, labels, thresholds, slices = example()
    rows = slice_rows(probabilities, labels, thresholds, NAMES, slices)
    assert [(row["slice"], row["attribute"], row["side"]) for row in rows] == [
        *itertools.product(["Male"], ["Bald", "Young"], ["0", "1"]),
        *itertools.product(["race"], NAMES, ["a", "b", "c", "nobody"]),
    ]
    for row in rows:
        column, part = NAMES.index(row["attribute"]), slices[row["slice"]]
        chosen = (part.code == part.sides.index(row["side"])) & (labels[:, column] >= 0).numpy()
        truth = labels[:, column].numpy()[chosen]
        said = (probabilities[:, column] >= thresholds[column]).numpy()[chosen]
        assert (row["support"], row["positives"]) == (chosen.sum(), (truth == 1).sum())
        assert row["negatives"] == (truth == 0).sum() and isinstance(row["support"], int)
        if row["side"] == "nobody":
            assert math.isnan(row["accuracy"]) and math.isnan(row["false_positive_rate"])
            continue
        (tn, fp), (fn, tp) = confusion_matrix(truth, said, labels=[False, True])
        assert row["accuracy"] == pytest.approx(accuracy_score(truth, said), abs=1e-12)
        assert row["false_positive_rate"] == pytest.approx(fp / (fp + tn), abs=1e-12)
        assert row["false_negative_rate"] == pytest.approx(fn / (fn + tp), abs=1e-12)


def test_gaps_against_every_pair_of_sides() -> None:
    probabilities, labels, thresholds, slices = example()
    rows = slice_rows(probabilities, labels, thresholds, NAMES, slices)
    least = 33
    expected = {}
    for rate, support in RATES.items():
        for one, other in itertools.combinations(rows, 2):
            key = (one["slice"], one["attribute"], rate)
            if key[:2] == (other["slice"], other["attribute"]) and min(one[support], other[support]) >= least:
                expected[key] = max(expected.get(key, 0.0), abs(one[rate] - other[rate]))
    gaps = largest_gaps(rows, least)
    assert {(gap["slice"], gap["attribute"], gap["rate"]): gap["gap"] for gap in gaps} == expected
    # Some are too small to be compared, and some are not.
    assert 0 < len(expected) < 3 * 5
    assert [gap["gap"] for gap in gaps] == sorted(expected.values(), reverse=True)
    for gap in gaps:
        for end in ("high", "low"):
            (side,) = (
                row
                for row in rows
                if (row["slice"], row["attribute"], row["side"]) == (gap["slice"], gap["attribute"], gap[f"{end}_side"])
            )
            assert gap[end] == side[gap["rate"]] and gap[f"{end}_support"] == side[RATES[gap["rate"]]] >= least
    assert largest_gaps(rows, 10_000) == []


def test_one_class_on_a_side_has_no_rate_of_the_other() -> None:
    labels = torch.tensor([[1], [1], [0]], dtype=torch.int8)
    slices = {"race": Slice(("a", "b"), np.array([0, 0, 1]))}
    first, second = slice_rows(torch.ones(3, 1).double(), labels, torch.tensor([0.5]), ["Bald"], slices)
    assert math.isnan(first["false_positive_rate"]) and first["false_negative_rate"] == 0
    assert second["false_positive_rate"] == 1 and math.isnan(second["false_negative_rate"])
    (gap,) = largest_gaps([first, second], least_support=1)
    assert gap["rate"] == "accuracy" and gap["gap"] == 1 and (gap["high_side"], gap["low_side"]) == ("a", "b")


def test_an_attribute_without_a_label_on_any_side_has_no_row() -> None:
    labels = torch.tensor([[1, -1], [0, 1], [1, 0]], dtype=torch.int8)
    slices = {"race": Slice(("a", "b"), np.array([0, -1, -1]))}
    rows = slice_rows(torch.ones(3, 2).double(), labels, torch.full((2,), 0.5), ["Bald", "Young"], slices)
    assert [(row["attribute"], row["side"], row["support"]) for row in rows] == [("Bald", "a", 1), ("Bald", "b", 0)]


def test_the_choice_of_slices() -> None:
    available = {name: Slice(("0", "1"), np.zeros(1, dtype=np.int64)) for name in ("Bald", "Male", "race")}
    assert list(choose_slices(None, available)) == [name for name in DEFAULT_SLICES if name in available]
    assert list(choose_slices(["race", "Bald"], available)) == ["race", "Bald"]
    assert choose_slices([], available) == {}
    with pytest.raises(ConfigError, match=r"callbacks\.report\.slices: .*'Bold'.* Did you mean 'Bald'\?"):
        choose_slices(["Bold"], available)
