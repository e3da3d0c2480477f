"""Logical consistency against loops over images."""

import itertools
import math
from pathlib import Path

import pytest
import torch

from faceattr_lightning.attributes import CELEBA_ATTRIBUTES, LOGICAL_RULES, Rule
from faceattr_lightning.metrics.consistency import ANY_RULE, applicable_rules, consistency_rows

NAMES = ["Bald", "Black_Hair", "Blond_Hair", "Gray_Hair", "Bangs", "Goatee"]


def test_rules_are_about_known_attributes_and_say_why() -> None:
    for rule in LOGICAL_RULES:
        assert len(set(rule.attributes)) == len(rule.attributes) > 1
        assert set(rule.attributes) <= set(CELEBA_ATTRIBUTES) and rule.reason.endswith(".")
    assert len({rule.attributes for rule in LOGICAL_RULES}) == len(LOGICAL_RULES)


def test_rules_are_cut_down_to_the_models_attributes() -> None:
    assert [rule.attributes for rule in applicable_rules(NAMES)] == [
        ("Bald", "Bangs"),
        ("Black_Hair", "Blond_Hair", "Gray_Hair"),
    ]
    assert applicable_rules(["Goatee", "Smiling"]) == []
    empty = torch.zeros(2, 1)
    assert consistency_rows(empty, empty.to(torch.int8), torch.tensor([0.5]), ["Goatee"]) == []


def test_against_loops() -> None:
    generator = torch.Generator().manual_seed(0)
    probabilities = torch.rand(200, 6, generator=generator).double()
    labels = (torch.rand(200, 6, generator=generator) < 0.4).to(torch.int8)
    labels[torch.rand(200, 6, generator=generator) < 0.1] = -1
    thresholds = torch.tensor([0.6, 0.7, 0.8, 0.5, 0.6, 0.4])
    rows = consistency_rows(probabilities, labels, thresholds, NAMES)
    rules = [("Bald", "Bangs"), ("Black_Hair", "Blond_Hair", "Gray_Hair")]
    assert [row["attributes"] for row in rows] == ["Bald, Bangs", "Black_Hair, Blond_Hair, Gray_Hair", ANY_RULE]

    def share(said: torch.Tensor, chosen: list[tuple[str, ...]], images: list[int]) -> float:
        def breaks(image: int) -> bool:
            pairs = (pair for rule in chosen for pair in itertools.combinations(rule, 2))
            return any(said[image, NAMES.index(one)] and said[image, NAMES.index(two)] for one, two in pairs)

        return sum(map(breaks, images)) / len(images)

    for row, chosen in zip(rows, ([rules[0]], [rules[1]], rules), strict=True):
        concerned = [NAMES.index(name) for rule in chosen for name in rule]
        labelled = [image for image in range(200) if all(labels[image, column] >= 0 for column in concerned)]
        assert row["labelled"] == len(labelled) < row["images"] == 200
        assert row["label_violations"] == pytest.approx(share(labels == 1, chosen, labelled))
        assert row["prediction_violations"] == pytest.approx(
            share(probabilities >= thresholds, chosen, list(range(200)))
        )
        assert row["prediction_violations_at_half"] == pytest.approx(
            share(probabilities >= 0.5, chosen, list(range(200)))
        )


def test_without_labels_the_rate_is_not_defined() -> None:
    rule = Rule(("Bald", "Bangs"), "Because.")
    labels = torch.tensor([[1, -1]], dtype=torch.int8)
    row, _ = consistency_rows(torch.ones(1, 2).double(), labels, torch.tensor([0.5, 0.5]), ["Bald", "Bangs"], [rule])
    assert math.isnan(row["label_violations"]) and row["labelled"] == 0 and row["prediction_violations"] == 1


def test_the_official_labels(real_data: Path) -> None:
    from zipfile import ZipFile

    with ZipFile(real_data / "celeba_full_labels" / "list_attr_celeba.zip") as archive:
        lines = archive.read(archive.namelist()[0]).decode().splitlines()
    names = lines[1].split()
    values = torch.tensor([[int(word) for word in line.split()[1:]] for line in lines[2:20_002]], dtype=torch.int8)
    labels = (values > 0).to(torch.int8)
    rows = consistency_rows(labels.double(), labels, torch.full((40,), 0.5), names)
    assert [row["label_violations"] for row in rows] == [row["prediction_violations"] for row in rows]
    # No contradiction is the rule rather than the exception.
    assert all(row["label_violations"] < 0.03 for row in rows) and rows[-1]["label_violations"] > 0
