"""FAR-AMTN: the gate, the pooling, the cost of a group, the switches, weights for the block and its copies."""

from __future__ import annotations

import copy
from typing import Any, get_args

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from faceattr_lightning.attributes import CELEBA_ATTRIBUTES
from faceattr_lightning.errors import ConfigError
from faceattr_lightning.models.far_amtn import FARAMTN
from faceattr_lightning.networks.backbone import Backbone, load_pretrained
from faceattr_lightning.networks.far_amtn import (
    WSGSA,
    Attention,
    CrossGroupFusion,
    FARAMTNNetwork,
    Fusion,
    GroupGate,
)
from tests.models.test_dmm_cnn import BACKBONE, PREPROCESSING


def backbone(name: str = "test_resnet") -> Backbone:
    return Backbone(name, (0.5,) * 3, (0.5,) * 3, 64)


def columns(groups: int, attributes: int = 40) -> dict[str, list[int]]:
    return {f"group {group}": list(range(group, attributes, groups)) for group in range(groups)}


def size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_the_gate_is_the_formula() -> None:
    gate, pooled = GroupGate(32, 48), torch.randn(5, 32)
    squeezed = (pooled @ gate.squeeze.weight.T + gate.squeeze.bias).clamp(min=0)
    assert squeezed.shape == (5, 2)
    expected = 1 / (1 + torch.exp(-(squeezed @ gate.excite.weight.T + gate.excite.bias)))
    torch.testing.assert_close(gate(pooled), expected)


def test_wsgsa_gates_one_convolution_for_all_groups() -> None:
    block = nn.Conv2d(16, 24, 3, padding=1)
    attention = WSGSA(block, 16, 24, groups=3, attention="shared")
    features = torch.randn(2, 16, 4, 4)
    stacked = attention(features)
    assert stacked.shape == (6, 24, 4, 4)
    for group in range(3):
        for sample in range(2):
            pooled = features[sample].mean(dim=(1, 2))[None]
            gate = attention.gates[group](pooled)[0]
            expected = block(features)[sample] * gate[:, None, None]
            torch.testing.assert_close(stacked[2 * group + sample], expected)


def test_separate_blocks_start_alike_and_part() -> None:
    attention = WSGSA(nn.Conv2d(16, 24, 3), 16, 24, groups=3, attention="separate")
    weights = [block.weight for block in attention.blocks]
    assert len(weights) == 3 and all(torch.equal(weights[0], weight) for weight in weights)
    assert len({weight.data_ptr() for weight in weights}) == 3


def test_without_gates_every_group_sees_the_same() -> None:
    network = FARAMTNNetwork(backbone(), columns(4), attention="none", fusion="none", width=16).eval()
    with torch.no_grad():
        for head in network.heads.heads:
            nn.init.ones_(head.weight)
            nn.init.zeros_(head.bias)
    logits = network(torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8))["logits"]
    torch.testing.assert_close(logits, logits[:, :1].expand_as(logits))


def test_a_group_costs_a_gate_and_a_head_and_nothing_else() -> None:
    few, many = (FARAMTNNetwork(backbone("resnet18"), columns(groups), width=512) for groups in (3, 4))
    gate = 512 * 32 + 32 + 32 * 512 + 512
    # The same forty attributes in more heads: their weights only change places.
    assert size(many) - size(few) == gate == few.costs()["gate"]
    wider = FARAMTNNetwork(backbone("resnet18"), {**columns(3), "new": [40]}, width=512)
    assert size(wider) - size(few) == gate + 512 + 1


def test_the_published_size_on_resnet50() -> None:
    with torch.device("meta"):
        network = FARAMTNNetwork(backbone("resnet50"), columns(8))
    assert network.costs() == {"gate": 526_464, "last_stage": 14_964_736}
    assert 28e6 < size(network) < 32e6
    clones = size(network) - 8 * 526_464 + 7 * 14_964_736
    print(
        f"FAR-AMTN, eight groups: {size(network) / 1e6:.1f} M parameters; with cloned last stages {clones / 1e6:.1f} M"
    )
    assert clones > 4 * size(network)


def test_gated_mean_and_concatenation_by_hand() -> None:
    groups = torch.randn(2, 3, 8)
    gated = CrossGroupFusion(3, 8, "gated_mean")
    others = torch.stack(
        [(groups[:, 1] + groups[:, 2]) / 2, (groups[:, 0] + groups[:, 2]) / 2, groups[:, :2].mean(1)], 1
    )
    gate = torch.sigmoid(torch.cat([groups, others], dim=2) @ gated.layer.weight.T + gated.layer.bias)
    torch.testing.assert_close(gated(groups), nn.functional.layer_norm(groups + gate * others, (8,)))
    joined = CrossGroupFusion(3, 8, "concatenation")
    added = torch.cat(list(groups.unbind(1)), dim=1) @ joined.layer.weight.T + joined.layer.bias
    torch.testing.assert_close(joined(groups), nn.functional.layer_norm(groups + added[:, None], (8,)))
    assert torch.equal(CrossGroupFusion(3, 8, "none")(groups), groups)


def test_attention_looks_at_the_other_groups() -> None:
    fusion, groups = CrossGroupFusion(3, 8, "attention"), torch.randn(1, 3, 8)
    changed = groups.clone()
    changed[:, 2] += 1
    assert not torch.allclose(fusion(groups)[:, 0], fusion(changed)[:, 0])


@pytest.mark.parametrize("attention", get_args(Attention))
@pytest.mark.parametrize("fusion", get_args(Fusion))
@pytest.mark.parametrize("groups", [1, 4])
def test_gradients_reach_every_parameter(attention: Any, fusion: Any, groups: int) -> None:
    network = FARAMTNNetwork(backbone(), columns(groups), 3, attention, fusion, width=16, dropout=0.0)
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.ones_(part.weight)  # timm starts the last of each block at 0, which hides the block
    output = network(torch.randint(0, 256, (8, 3, 64, 64), dtype=torch.uint8))
    (output["logits"].square().sum() + output["age_group"].square().sum()).backward()
    # One group attends to itself alone, whatever its query and key; with gated_mean it has no others.
    alone = groups == 1 and fusion in ("attention", "gated_mean")
    unreached = [
        name
        for name, parameter in network.named_parameters()
        if parameter.grad is None or not (parameter.grad.any() or (alone and "fusion.layer" in name))
    ]
    assert not unreached


@pytest.mark.parametrize(
    "name", ["resnet18", "tf_efficientnet_lite0", "mobilenetv2_100", "convnext_atto", "regnety_002"]
)
def test_any_network_with_stages(name: str) -> None:
    plain = backbone(name)
    network = FARAMTNNetwork(copy.deepcopy(plain), columns(3), width=16)
    assert network(torch.zeros(2, 3, 64, 64))["logits"].shape == (2, 40)
    # Its weights are timm's, by timm's names: none lost, none new.
    assert network.backbone.tensors().keys() == plain.tensors().keys()


@pytest.mark.parametrize("name", ["vgg11", "densenet121"])
def test_a_network_without_stages_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"backbone.name: '{name}' has no stages of blocks"):
        FARAMTNNetwork(backbone(name), columns(3))


def test_weights_are_loaded_into_the_block_and_its_copies(tmp_path: Any) -> None:
    source = backbone()
    torch.save(source.body.state_dict(), tmp_path / "weights.pth")
    network = FARAMTNNetwork(backbone(), columns(3), attention="separate", width=16)
    load_pretrained(network.backbone, str(tmp_path / "weights.pth"))
    wanted = source.body.state_dict()
    for name, tensors in network.backbone.tensors().items():
        assert len(tensors) == (3 if name.startswith("layer4.0.") else 1)
        assert all(torch.equal(tensor, wanted[name]) for tensor in tensors), name


@pytest.mark.parametrize("decay", [0.9, 0.9999])
def test_weight_averaging_keeps_the_order_of_the_attributes(decay: float) -> None:
    network = FARAMTNNetwork(backbone(), columns(7), width=16).eval()
    averaged = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
    for _ in range(3):
        averaged.update_parameters(network)
    image = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    torch.testing.assert_close(averaged(image)["logits"], network(image)["logits"])


def test_the_module_makes_a_gate_per_group() -> None:
    options: dict[str, Any] = {"backbone": BACKBONE, "preprocessing": PREPROCESSING, "width": 16}
    for groups, count in (("face_parts", 8), ("mcnn_aux", 9), ("ps_mcnn", 4), (None, 1)):
        model = FARAMTN(list(CELEBA_ATTRIBUTES), groups=groups, **options)
        assert len([part for part in model.modules() if isinstance(part, GroupGate)]) == count
