"""How often labels and predictions say of one face what can't be true together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from faceattr_lightning.attributes import LOGICAL_RULES, Rule

ANY_RULE = "any of these"
"""Names the row of all rules together."""


def applicable_rules(names: Sequence[str], rules: Sequence[Rule] = LOGICAL_RULES) -> list[Rule]:
    """Return the rules cut down to the attributes ``names``, without those of which fewer than two are left."""
    cut = [Rule(tuple(name for name in rule.attributes if name in names), rule.reason) for rule in rules]
    return [rule for rule in cut if len(rule.attributes) > 1]


def consistency_rows(
    probabilities: Tensor,
    labels: Tensor,
    thresholds: Tensor,
    names: Sequence[str],
    rules: Sequence[Rule] = LOGICAL_RULES,
) -> list[dict[str, Any]]:
    """Return for each rule how many images break it, in the labels and in the predictions, and last for all together.

    Args:
        probabilities: float64 (N, A) of presence.
        labels: int8 (N, A) in {0, 1, -1}.
        thresholds: float (A,) in [0, 1]; a probability at or above it counts as present.
        names: of the A attributes.
        rules: cut down to ``names``, see `applicable_rules`; with none left there is no row.

    Returns:
        rows with ``attributes``, of which at most one can be true, and the ``reason``; ``labelled``, the images in
        which all of them are labelled, and ``label_violations``, the share of those in which two or more are present;
        ``images`` N, and ``prediction_violations`` and, with thresholds at 0.5, ``prediction_violations_at_half``,
        shares of those (fractions, NaN over no image).
    """
    chosen = applicable_rules(names, rules)
    if not chosen:
        return []
    columns = [[names.index(name) for name in rule.attributes] for rule in chosen]
    concerned = sorted({column for part in columns for column in part})

    def broken(present: Tensor) -> list[Tensor]:
        """Return a bool (N,) for each rule, and one for any of them."""
        found = [present[:, part].sum(dim=1) > 1 for part in columns]
        return [*found, torch.stack(found).any(dim=0)]

    known = [(labels[:, part] >= 0).all(dim=1) for part in (*columns, concerned)]
    in_labels = broken(labels == 1)
    predicted = broken(probabilities >= thresholds.double().cpu())
    at_half = broken(probabilities >= 0.5)
    titles = [(", ".join(rule.attributes), rule.reason) for rule in chosen] + [(ANY_RULE, "")]
    return [
        {
            "attributes": title,
            "reason": reason,
            "labelled": int(known[index].sum()),
            "label_violations": _share(in_labels[index][known[index]]),
            "images": len(labels),
            "prediction_violations": _share(predicted[index]),
            "prediction_violations_at_half": _share(at_half[index]),
        }
        for index, (title, reason) in enumerate(titles)
    ]


def _share(chosen: Tensor) -> float:
    return float(chosen.double().mean())
