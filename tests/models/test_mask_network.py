"""The mask network: sizes, gradients and learning; its loss and measure by hand."""

import math

import pytest
import torch
from torch import Tensor

from faceattr_lightning.data.preprocessing import Preprocessing
from faceattr_lightning.data.synthetic_faces import draw_faces, sample_people
from faceattr_lightning.models.losses import mask_iou, mask_loss
from faceattr_lightning.networks.face_masks import draw_masks
from faceattr_lightning.networks.mask_network import MaskNetwork


@pytest.mark.parametrize(("height", "width"), [(64, 64), (37, 50), (1, 3), (227, 16)])
def test_logits_are_of_the_input_size(height: int, width: int) -> None:
    network = MaskNetwork(groups=3, width=8)
    image = torch.randint(0, 256, (2, 3, height, width), dtype=torch.uint8)
    logits = network(image)
    assert logits.shape == (2, 3, height, width) and logits.isfinite().all()
    torch.testing.assert_close(network(image.float()), logits)


def test_padding_does_not_move_the_masks() -> None:
    # A filter's worth of context apart, a crop of the logits is the logits of the crop, but for the normalisation.
    network = MaskNetwork(groups=1, width=4, depth=1)
    for layer in (1, 4):
        network.stem[layer] = torch.nn.Identity()
    image = 255 * torch.rand(1, 3, 41, 45)
    torch.testing.assert_close(network(image)[..., :20, :20], network(image[..., :32, :32])[..., :20, :20])


def test_a_sample_does_not_depend_on_the_batch() -> None:
    network, image = MaskNetwork(groups=2, width=8), 255 * torch.rand(4, 3, 32, 32)
    torch.testing.assert_close(network(image)[1:2], network(image[1:2]), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("depth", [1, 4])
def test_every_parameter_has_a_gradient(depth: int) -> None:
    network = MaskNetwork(groups=3, width=12, depth=depth)
    masks = torch.rand(2, 3, 40, 40) > 0.5
    mask_loss(network(255 * torch.rand(2, 3, 40, 40)), masks, torch.tensor([True, True])).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name


def loss_by_hand(probabilities: list[float], masks: list[int]) -> float:
    pairs = list(zip(probabilities, masks, strict=True))
    cross_entropy = -sum(math.log(p if m else 1 - p) for p, m in pairs) / len(pairs)
    dice = (2 * sum(p * m for p, m in pairs) + 1) / (sum(probabilities) + sum(masks) + 1)
    return cross_entropy + 1 - dice


def test_loss_by_hand() -> None:
    probabilities = torch.tensor([[[0.9, 0.2, 0.6, 0.5]], [[0.3, 0.7, 0.1, 0.8]], [[0.5, 0.5, 0.5, 0.5]]])
    masks = torch.tensor([[[1, 0, 1, 0]], [[0, 0, 0, 0]], [[1, 1, 1, 1]]])
    logits = probabilities.logit().view(3, 1, 2, 2)
    first = loss_by_hand(probabilities[0, 0].tolist(), masks[0, 0].tolist())
    second = loss_by_hand(probabilities[1, 0].tolist(), masks[1, 0].tolist())
    found = mask_loss(logits, masks.view(3, 1, 2, 2), torch.tensor([True, True, False]))
    assert float(found) == pytest.approx((first + second) / 2)
    groups = mask_loss(logits[:2].view(1, 2, 2, 2), masks[:2].view(1, 2, 2, 2), torch.tensor([True]))
    assert float(groups) == pytest.approx((first + second) / 2)


def test_a_loss_without_a_valid_sample() -> None:
    logits = torch.randn(2, 3, 4, 4, requires_grad=True)
    loss = mask_loss(logits, torch.ones(2, 3, 4, 4, dtype=torch.bool), torch.zeros(2, dtype=torch.bool))
    assert loss.item() == 0
    loss.backward()
    assert logits.grad is not None and not logits.grad.any()


def test_iou_by_hand() -> None:
    predicted = torch.tensor([[[1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 1]]]).bool().view(1, 3, 2, 2).repeat(2, 1, 1, 1)
    masks = torch.tensor([[[0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 1, 1]]]).bool().view(1, 3, 2, 2).repeat(2, 1, 1, 1)
    found = mask_iou(predicted, masks, torch.tensor([True, False]))
    assert found[0].tolist() == pytest.approx([1 / 3, math.nan, 1], nan_ok=True)
    assert found[1].isnan().all()


def test_training_raises_the_iou() -> None:
    parts, size, learnt, steps = [["mouth"], ["eyes"], ["hair"]], 32, 64, 80
    preprocessing = Preprocessing((218, 178), (0, 20, 178, 198), size, (0.5,) * 3, (0.5,) * 3)
    source, points = draw_faces(sample_people(learnt + 24, seed=0), 0, range(learnt + 24))
    images, (landmarks, valid) = preprocessing.images(source), preprocessing.landmarks(points)
    masks, valid = draw_masks(landmarks, parts, size), valid.all(dim=1)
    torch.manual_seed(0)
    network = MaskNetwork(len(parts), width=8)

    def iou() -> Tensor:
        with torch.no_grad():
            predicted = network(images[learnt:]) > 0
        return mask_iou(predicted, masks[learnt:], valid[learnt:]).nanmean(dim=0)

    before = iou()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, total_steps=steps)
    for step in range(steps):
        rows = slice(16 * step % learnt, 16 * step % learnt + 16)
        optimizer.zero_grad()
        mask_loss(network(images[rows]), masks[rows], valid[rows]).backward()
        optimizer.step()
        schedule.step()
    after = iou()
    assert (after > 0.5).all() and (after - before > 0.25).all(), (before, after)


def test_a_network_with_a_prior_starts_from_it() -> None:
    prior = torch.zeros(2, 16, 16)
    prior[0, :8], prior[1, :, 8:] = 1, 1
    network = MaskNetwork(2, prior, width=4)
    torch.nn.init.zeros_(network.heads.weight)
    torch.nn.init.zeros_(network.heads.bias)
    masks = network(torch.rand(3, 3, 32, 32)) > 0
    expected = torch.zeros(2, 32, 32, dtype=torch.bool)
    expected[0, :16], expected[1, :, 16:] = True, True
    assert torch.equal(masks, expected.expand(3, -1, -1, -1))
