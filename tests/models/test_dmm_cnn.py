"""DMM-CNN: the switch of the pyramid, the order of the logits, gradients, and what a checkpoint holds."""

from typing import Any

import pytest
import torch

from faceattr_lightning.attributes import CELEBA_ATTRIBUTES, GROUPINGS
from faceattr_lightning.data.preprocessing import Preprocessing
from faceattr_lightning.errors import ConfigError
from faceattr_lightning.models.baseline import Baseline
from faceattr_lightning.models.dmm_cnn import DMMCNN
from faceattr_lightning.models.module import learning_rate_factor
from faceattr_lightning.networks.backbone import Backbone
from faceattr_lightning.networks.dmm_cnn import DMMCNNNetwork, SpatialPyramidPooling

PREPROCESSING = Preprocessing((218, 178), (0, 20, 178, 198), 64, (0.5,) * 3, (0.5,) * 3).to_dict()
BACKBONE = {"name": "test_resnet", "pretrained": False}


def module(**options: Any) -> DMMCNN:
    return DMMCNN(
        list(CELEBA_ATTRIBUTES),
        backbone=BACKBONE,
        preprocessing=PREPROCESSING,
        hidden=16,
        pyramid_channels=8,
        **options,
    )


def test_pyramid_against_plain_maxima() -> None:
    features = torch.randn(2, 3, 8, 8)
    pooled = SpatialPyramidPooling((1, 2, 4))(features).view(2, -1)
    assert pooled.shape == (2, 3 * 21)
    expected = []
    for bins in (1, 2, 4):
        step = 8 // bins
        cells = [
            features[:, c, y : y + step, x : x + step].amax(dim=(1, 2))
            for c in range(3)
            for y in range(0, 8, step)
            for x in range(0, 8, step)
        ]
        expected += cells
    torch.testing.assert_close(pooled, torch.stack(expected, dim=1))


@pytest.mark.parametrize(
    ("pyramid", "with_pyramid"),
    [
        ("objective", {"objective"}),
        ("subjective", {"subjective"}),
        ("both", {"objective", "subjective"}),
        ("none", set()),
    ],
)
def test_the_switch_of_the_pyramid(pyramid: Any, with_pyramid: set[str]) -> None:
    network = module(pyramid=pyramid).network
    assert isinstance(network, DMMCNNNetwork)
    found = {
        name
        for name, branch in zip(GROUPINGS["objective_subjective"], network.branches, strict=True)
        if any(isinstance(layer, SpatialPyramidPooling) for layer in branch)  # type: ignore[arg-type]
    }
    assert found == with_pyramid
    output = network(torch.zeros(2, 3, 64, 64, dtype=torch.uint8))
    assert output["logits"].shape == (2, 40) and output["landmarks"].shape == (2, 5, 2)


def test_logits_stand_in_the_order_of_the_attributes() -> None:
    network = module().network.eval()
    biases = {name: float(k) for k, name in enumerate(CELEBA_ATTRIBUTES)}
    with torch.no_grad():
        for branch, members in zip(network.branches, GROUPINGS["objective_subjective"].values(), strict=True):  # type: ignore[arg-type]
            last = branch[-1]  # type: ignore[index]
            last.weight.zero_()
            last.bias.copy_(torch.tensor([biases[name] for name in members]))
        logits = network(torch.zeros(1, 3, 64, 64))["logits"][0]
    assert logits.tolist() == list(range(40))


def test_gradients_reach_every_parameter() -> None:
    model = module(dropout=0.0)
    for part in model.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            torch.nn.init.ones_(part.weight)  # timm starts the last of each block at 0, which hides the block
    batch: Any = {
        "image": torch.randint(0, 256, (8, 3, 64, 64), dtype=torch.uint8),
        "attributes": torch.randint(0, 2, (8, 40), dtype=torch.int8),
        "landmarks": torch.rand(8, 5, 2),
        "landmarks_valid": torch.ones(8, 5, dtype=torch.bool),
    }
    model.log = lambda *args, **options: None  # type: ignore[method-assign, assignment]
    model.training_step(batch, 0)["loss"].backward()
    unreached = [
        name for name, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()
    ]
    assert not unreached


def test_the_loss_is_the_weighted_sum() -> None:
    model = module(landmark_weight=3.0).eval()
    model.weighting.weights.copy_(torch.linspace(0, 2, 40))
    batch: Any = {
        "image": torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8),
        "attributes": torch.randint(-1, 2, (4, 40), dtype=torch.int8),
        "landmarks": torch.rand(4, 5, 2),
        "landmarks_valid": torch.tensor([[True] * 5, [False] * 5, [True] * 5, [False] * 5]),
    }
    logged: dict[str, Any] = {}
    model._add_to_means = lambda values, count: logged.update(values)  # type: ignore[method-assign]
    loss = model.training_step(batch, 0)["loss"]
    output = model(batch["image"])
    expected = torch.zeros(())
    for column in range(40):
        known = batch["attributes"][:, column] >= 0
        if known.any():
            truth = batch["attributes"][known, column].float()
            expected = expected + model.weighting.weights[column] * torch.nn.BCEWithLogitsLoss()(
                output["logits"][known, column], truth
            )
    rows = torch.tensor([0, 2])
    distance = torch.nn.SmoothL1Loss(beta=0.05)(output["landmarks"][rows], batch["landmarks"][rows])
    torch.testing.assert_close(loss, expected + 3.0 * distance)
    torch.testing.assert_close(logged["train/loss_landmarks"], 3.0 * distance)


def test_without_landmarks_there_is_no_landmark_head() -> None:
    model = module(landmarks=0)
    assert "landmarks" not in model(torch.zeros(2, 3, 64, 64))


def test_any_grouping_has_a_branch_per_group() -> None:
    model = module(groups="face_parts")
    assert len(model.network.branches) == 8
    assert model(torch.zeros(2, 3, 64, 64))["logits"].shape == (2, 40)


def test_wrong_groups() -> None:
    with pytest.raises(ConfigError, match="in no group; add each to one: 'Young'"):
        module(groups={"objective": list(CELEBA_ATTRIBUTES[:-1])})


def test_the_network_knows_nothing_of_lightning() -> None:
    from lightning import LightningModule

    for model in (module(), Baseline(["a", "b"], backbone=BACKBONE, preprocessing=PREPROCESSING)):
        assert not any(isinstance(part, LightningModule) for part in model.network.modules())
    assert isinstance(module().network.backbone, Backbone)


def test_learning_rate() -> None:
    assert learning_rate_factor("constant", 0.9, 0.0) == 1
    assert learning_rate_factor("cosine", 0.0, 0.0) == 1
    assert learning_rate_factor("one_cycle", 0.0, 0.2) == pytest.approx(0.04)
    assert learning_rate_factor("one_cycle", 0.2, 0.2) == 1
    for schedule in ("cosine", "one_cycle"):
        assert learning_rate_factor(schedule, 0.6, 0.2) == pytest.approx(0.5)
        assert learning_rate_factor(schedule, 1.0, 0.2) == pytest.approx(0, abs=1e-9)
