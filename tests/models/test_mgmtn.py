"""MGMTN: masked pooling and fusion by hand, the switches, the parts of groups, where masks come from."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from torch import nn

from faceattr_lightning.attributes import CELEBA_ATTRIBUTES, GROUPINGS
from faceattr_lightning.data.preprocessing import Preprocessing
from faceattr_lightning.errors import ConfigError
from faceattr_lightning.models.mgmtn import MGMTN, PARTS_OF_GROUP, parts_of_groups
from faceattr_lightning.networks.backbone import Backbone
from faceattr_lightning.networks.face_masks import PARTS
from faceattr_lightning.networks.mask_network import MaskNetwork
from faceattr_lightning.networks.mgmtn import Fusion, Masks, MGMTNNetwork, masked_average
from tests.models.test_dmm_cnn import BACKBONE, PREPROCESSING

IMAGE = torch.randint(0, 256, (8, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def module(**options: Any) -> MGMTN:
    given = {"preprocessing": PREPROCESSING, "width": 16, "mask_width": 4, "dropout": 0.0, **options}
    return MGMTN(list(CELEBA_ATTRIBUTES), backbone=BACKBONE, **given)


def test_masked_average_by_hand() -> None:
    features, masks = torch.randn(2, 5, 4, 4), torch.rand(2, 3, 8, 8)
    found = masked_average(features, masks, 3)
    for sample in range(2):
        for group in range(3):
            total, weight = torch.zeros(5), 0.0
            for y in range(4):
                for x in range(4):
                    share = float(masks[sample, group, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2].mean())
                    total, weight = total + share * features[sample, :, y, x], weight + share
            torch.testing.assert_close(found[sample, group], total / weight)
    whole = masked_average(features, torch.ones(2, 3, 8, 8), 3)
    torch.testing.assert_close(whole, masked_average(features, None, 3))


def test_an_empty_mask_gives_zeros_and_gradients() -> None:
    features = torch.randn(1, 5, 4, 4, requires_grad=True)
    found = masked_average(features, torch.zeros(1, 1, 8, 8), 1)
    assert not found.any()
    found.sum().backward()
    assert features.grad is not None and features.grad.isfinite().all()


def test_group_global_feature_fusion_by_hand() -> None:
    masks = torch.rand(2, 16, 16)
    backbone = Backbone("test_resnet", (0.5,) * 3, (0.5,) * 3, 64)
    network = MGMTNNetwork(backbone, {"a": [0, 2], "b": [1]}, masks, width=8, dropout=0.0).eval()
    output = network(IMAGE)
    scales = backbone.scales(IMAGE)
    pooled = torch.cat([masked_average(scale, masks.expand(8, -1, -1, -1), 2) for scale in scales], dim=2)
    assert pooled.shape[2] == sum(backbone.scale_channels())
    assert network.global_layer is not None and network.gate is not None
    shared = network.global_layer(scales[-1].mean(dim=(2, 3)))
    for group, columns in enumerate(([0, 2], [1])):
        own = network.group_layers[group](pooled[:, group])
        share = 1 / (1 + torch.exp(-network.gate(torch.cat([own, shared], dim=1))))
        fused = share * own + (1 - share) * shared
        torch.testing.assert_close(output["logits"][:, columns], network.heads.heads[group](fused))


def test_the_last_three_scales_end_with_the_feature_map() -> None:
    backbone = Backbone("tf_efficientnet_lite0", (0.5,) * 3, (0.5,) * 3, 64).eval()
    scales = backbone.scales(IMAGE)
    assert [scale.shape[-1] for scale in scales] == [8, 4, 2]
    assert [scale.shape[1] for scale in scales] == backbone.scale_channels() == [40, 112, 1280]
    torch.testing.assert_close(scales[-1], backbone(IMAGE))


@pytest.mark.parametrize("masks", get_args(Masks))
@pytest.mark.parametrize("fusion", get_args(Fusion))
def test_gradients_reach_every_trainable_parameter(masks: Any, fusion: Any) -> None:
    network = module(masks=masks, fusion=fusion, age_groups=["young", "old"], joint=True).network
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.ones_(part.weight)
    output = network(IMAGE)
    loss = output["logits"].square().sum() + output["age_group"].square().sum()
    if "mask_logits" in output:
        loss = loss + output["mask_logits"].square().sum()
    loss.backward()
    unreached = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert not unreached


def test_a_frozen_mask_network_gets_no_gradient() -> None:
    model = module()
    assert model.network.mask_network is not None
    assert not any(parameter.requires_grad for parameter in model.network.mask_network.parameters())
    assert model.pretraining in model.own_callbacks and model.pretraining not in module(joint=True).own_callbacks


def test_the_masks_of_the_switches() -> None:
    template, blobs = module(masks="template").network, module(masks="random").network
    assert template.constant_masks is not None and blobs.constant_masks is not None
    assert template.constant_masks.shape == (8, 64, 64)
    assert torch.equal(template.constant_masks.sum(dim=(1, 2)), blobs.constant_masks.sum(dim=(1, 2)))
    assert not torch.equal(template.constant_masks, blobs.constant_masks)
    assert torch.equal(blobs.constant_masks, module(masks="random").network.constant_masks)
    # The object is the union of all.
    assert torch.equal(template.constant_masks[-1], template.constant_masks.amax(dim=0))
    assert "masks" not in module(masks="none").network(IMAGE)
    assert isinstance(module().network.mask_network, MaskNetwork)


def test_data_without_landmarks_gets_the_template(caplog: pytest.LogCaptureFixture) -> None:
    model = module(landmarks=0)
    assert model.network.mask_network is None and model.network.constant_masks is not None
    assert "task=annotate" in caplog.text


def test_an_unknown_layout_is_refused() -> None:
    seven = Preprocessing((218, 178), (0, 20, 178, 198), 64, (0.5,) * 3, (0.5,) * 3, ((0.5, 0.5),) * 7)
    with pytest.raises(ConfigError, match="7 landmarks are a landmark layout that a mask drawer does not know"):
        module(landmarks=7, preprocessing=seven.to_dict())


def test_the_parts_of_every_named_grouping() -> None:
    assert parts_of_groups(list(GROUPINGS["face_parts"])) == [(part,) for part in PARTS]
    assert all(part in PARTS for parts in PARTS_OF_GROUP.values() for part in parts)
    assert parts_of_groups(["gender", "eyes"]) == [("object",), ("eyes",)]
    assert parts_of_groups(["mine"], {"mine": ["hair", "eyes"]}) == [("hair", "eyes")]
    with pytest.raises(ConfigError) as raised:
        parts_of_groups(["mine"], {"mien": ["hair"], "mine": ["eye"]})
    assert "Did you mean 'mine'?" in str(raised.value) and "Did you mean 'eyes'?" in str(raised.value)


def test_the_loss_of_joint_training_leaves_out_faces_without_landmarks() -> None:
    model = module(joint=True, mask_weight=2.0)
    landmarks = torch.rand(8, 5, 2)
    batch: Any = {"image": IMAGE, "landmarks": landmarks, "landmarks_valid": torch.ones(8, 5, dtype=torch.bool)}
    output = model.network(IMAGE)
    all_faces = model.extra_losses(output, batch)["masks"]
    batch["landmarks_valid"][4:, 0] = False
    half = model.extra_losses(output, batch)["masks"]
    first = {name: values[:4] for name, values in batch.items()}
    torch.testing.assert_close(
        half, model.extra_losses({**output, "mask_logits": output["mask_logits"][:4]}, first)["masks"]
    )
    assert not torch.isclose(all_faces, half)
    batch["landmarks_valid"][:] = False
    assert model.extra_losses(output, batch)["masks"] == 0
    assert model.measures(output, {**batch, "age_group": None})["mask_iou"].isnan().all()  # type: ignore[typeddict-item]
