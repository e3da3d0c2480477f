"""Exact and one-off accuracy of age groups, beside the constant answer."""

import torch

from faceattr_lightning.metrics.age_groups import age_group_measures


def test_by_hand() -> None:
    predicted = [0, 1, 2, 3, 1]
    age_group = torch.tensor([0, 2, 2, 1, -1])
    logits = torch.nn.functional.one_hot(torch.tensor(predicted), 4).float()
    found = age_group_measures(logits, age_group, torch.tensor([0.1, 0.2, 0.6, 0.1]))
    assert found["age_accuracy"][:4].tolist() == [1, 0, 1, 0]
    assert found["age_one_off_accuracy"][:4].tolist() == [1, 1, 1, 0]
    assert found["age_majority_accuracy"][:4].tolist() == [0, 1, 1, 0]
    assert all(values[4].isnan() for values in found.values())
