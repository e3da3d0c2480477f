"""The baseline: averaging the answers to a face and to its mirror image."""

from __future__ import annotations

import copy

import torch
from torch.testing import assert_close

from faceattr_lightning.networks.backbone import Backbone
from faceattr_lightning.networks.baseline import BaselineNetwork


def test_mirror_images_are_averaged_in_evaluation_only() -> None:
    network = BaselineNetwork(Backbone("test_resnet", (0.5,) * 3, (0.5,) * 3), 40, age_groups=3)
    averaging = copy.deepcopy(network)
    averaging.mirror = True
    image = torch.rand(2, 3, 64, 64) * 255
    assert_close(averaging.train()(image), network.train()(image))
    found = averaging.eval()(image)
    # Columns in reverse order, by hand.
    other = image[:, :, :, torch.arange(63, -1, -1)]
    network.eval()
    for name in ("logits", "age_group"):
        assert_close(found[name], torch.stack([network(image)[name], network(other)[name]]).mean(dim=0))
        assert not torch.allclose(found[name], network(image)[name])
