"""MTL-CNN: gates, correlation module, center loss and biases by hand, on small tensors."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import nn

from faceattr_lightning.errors import ConfigError
from faceattr_lightning.models.mtl_cnn import MTLCNN, CenterLoss, label_correlations
from faceattr_lightning.networks.backbone import Backbone
from faceattr_lightning.networks.mtl_cnn import Correlation, CorrelationModule, Gates, MTLCNNNetwork, TaskGates
from tests.models.test_dmm_cnn import BACKBONE, PREPROCESSING


def network(**options: Any) -> MTLCNNNetwork:
    return MTLCNNNetwork(Backbone("test_resnet", (0.5,) * 3, (0.5,) * 3, 64), 5, width=16, dropout=0.0, **options)


def module(names: list[str], **options: Any) -> MTLCNN:
    return MTLCNN(names, backbone=BACKBONE, preprocessing=PREPROCESSING, width=16, **options)


def test_gates_by_hand() -> None:
    embedding = torch.randn(3, 4)
    static = TaskGates(2, 4, "static")
    nn.init.normal_(static.theta)
    expected = torch.stack([embedding * (1 / (1 + torch.exp(-static.theta[task]))) for task in range(2)], dim=1)
    torch.testing.assert_close(static(embedding), expected)

    routed = TaskGates(2, 4, "input", bottleneck=3)
    first, _, second = routed.route
    hidden = (embedding @ first.weight.T + first.bias).clamp(min=0)
    moved = (hidden @ second.weight.T + second.bias).view(3, 2, 4)
    torch.testing.assert_close(routed(embedding), torch.sigmoid(routed.theta + moved) * embedding[:, None])

    assert torch.equal(TaskGates(2, 4, "none")(embedding), torch.stack([embedding, embedding], dim=1))


def test_the_correlation_module_by_hand() -> None:
    correlation = CorrelationModule(attributes=2, age_groups=3, detached=True)
    nn.init.normal_(correlation.matrix)
    age, logits = torch.randn(4, 3, requires_grad=True), torch.randn(4, 2, requires_grad=True)
    new_age, new_logits = correlation(age, logits)
    p = torch.cat([age.softmax(1), logits.sigmoid()], dim=1)
    for out in range(5):
        added = sum(
            correlation.matrix[out, into] * p[:, into]
            for into in range(5)
            if into != out and not (into < 3 and out < 3)
        )
        before, after = (age[:, out], new_age[:, out]) if out < 3 else (logits[:, out - 3], new_logits[:, out - 3])
        torch.testing.assert_close(after, before + added)
    (gradient,) = torch.autograd.grad(new_logits[0, 0], logits)
    assert gradient[0].tolist() == [1, 0]  # detached: nothing through p
    joint = CorrelationModule(2, 3, detached=False)
    nn.init.normal_(joint.matrix)
    (gradient,) = torch.autograd.grad(joint(age, logits)[1][0, 0], logits)
    assert gradient[0, 1] != 0


def test_the_correlation_module_starts_as_nothing() -> None:
    age, logits = torch.randn(4, 3), torch.randn(4, 2)
    new_age, new_logits = CorrelationModule(2, 3, detached=True)(age, logits)
    assert torch.equal(new_age, age) and torch.equal(new_logits, logits)


def test_center_loss_and_update_by_hand() -> None:
    loss = CenterLoss([2, 3], width=2, rate=0.5)
    loss.centers.copy_(torch.arange(12.0).view(2, 3, 2))
    embeddings = torch.tensor([[[1.0, 2.0], [0.0, 0.0]], [[3.0, 3.0], [5.0, 5.0]], [[0.0, 1.0], [1.0, 1.0]]])
    labels = torch.tensor([[1, 2], [1, -1], [0, 0]])
    # Task 0: centres (0, 1) and (2, 3); task 1: (6, 7) and (10, 11).
    first = (0.5 * (1 + 1) + 0.5 * (1 + 0) + 0.5 * (0 + 0)) / 3
    second = (0.5 * (100 + 121) + 0.5 * (25 + 36)) / 2
    assert loss(embeddings, labels).tolist() == pytest.approx([first, second])
    loss.update(embeddings, labels)
    # c + 0.5 * sum(e - c) / (1 + n)
    assert loss.centers[0, 1].tolist() == pytest.approx([2 + 0.5 * (-1 + 1) / 3, 3 + 0.5 * (-1 + 0) / 3])
    assert loss.centers[0, 0].tolist() == pytest.approx([0, 1])
    assert loss.centers[1, 2].tolist() == pytest.approx([10 + 0.5 * -10 / 2, 11 + 0.5 * -11 / 2])
    assert loss.centers[1, 1].tolist() == [8, 9]  # no sample of this class


def test_distances_to_the_two_centres() -> None:
    loss, embeddings = CenterLoss([2, 2, 9], width=4), torch.randn(3, 2, 4)
    torch.nn.init.normal_(loss.centers)
    expected = (embeddings[:, :, None] - loss.centers[:2, :2]).square().sum(dim=3)
    torch.testing.assert_close(loss.distances(embeddings), expected)


def test_a_task_without_a_label_has_no_center_loss() -> None:
    embeddings = torch.randn(3, 2, 4, requires_grad=True)
    loss = CenterLoss([2, 2], width=4)
    losses = loss(embeddings, torch.tensor([[0, -1], [1, -1], [1, -1]]))
    assert losses[1] == 0
    losses.sum().backward()
    assert embeddings.grad is not None and not embeddings.grad[:, 1].any()


def test_the_update_shrinks_the_distance_to_the_own_centre() -> None:
    torch.manual_seed(0)
    loss = CenterLoss([2], width=4)
    labels = torch.randint(0, 2, (64, 1))
    embeddings = torch.randn(64, 1, 4) + 4 * labels[:, :, None]
    before = float(loss(embeddings, labels))
    for _ in range(20):
        loss.update(embeddings, labels)
    assert float(loss(embeddings, labels)) < before / 4
    means = torch.stack([embeddings[labels[:, 0] == label, 0].mean(dim=0) for label in (0, 1)])
    torch.testing.assert_close(loss.centers[0], means, atol=0.05, rtol=0)


def test_a_bias_per_database_for_shared_names_only() -> None:
    shared = [[True, True, False, False, False], [True, True, False, False, True]]
    model = network(shared=shared, correlation="none").eval()
    assert model.database_bias is not None
    with torch.no_grad():
        model.database_bias.copy_(torch.tensor([[1.0] * 5, [3.0] * 5]))
        image = torch.zeros(2, 3, 64, 64)
        first, second, unknown = (
            model(image, None if database is None else torch.full((2,), database))["logits"][0]
            for database in (0, 1, None)
        )
    torch.testing.assert_close(second - first, torch.tensor([2.0, 2.0, 0.0, 0.0, 3.0]))
    torch.testing.assert_close(unknown - first, torch.tensor([1.0, 1.0, 0.0, 0.0, 3.0]))
    with torch.no_grad():
        torch.testing.assert_close(model(image, torch.full((2,), -1))["logits"][0], unknown)


def test_only_attributes_of_several_databases_are_shared() -> None:
    labelled = [[True, True, False], [True, False, True]]
    model = module(["Male", "a", "b"], databases=["x", "y"], labelled=labelled, database_bias=True)
    assert model.network.shared.tolist() == [[1, 0, 0], [1, 0, 0]]
    assert module(["Male", "a", "b"], databases=["x", "y"], labelled=labelled).network.database_bias is None


@pytest.mark.parametrize("gates", get_args(Gates))
@pytest.mark.parametrize("correlation", get_args(Correlation))
@pytest.mark.parametrize("age_groups", [0, 3])
def test_gradients_reach_every_parameter(gates: Any, correlation: Any, age_groups: int) -> None:
    model = network(age_groups=age_groups, gates=gates, correlation=correlation, shared=[[True] * 5, [True] * 5])
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.ones_(part.weight)
    output = model(torch.randint(0, 256, (8, 3, 64, 64), dtype=torch.uint8), torch.arange(8) % 2)
    loss = output["logits"].square().sum() + output["embeddings"].square().sum()
    if age_groups:
        loss = loss + output["age_group"].square().sum()
    loss.backward()
    unreached = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not unreached


def test_the_losses_of_a_step() -> None:
    names, age_groups = ["Male", "Smiling", "Young"], ["young", "old"]
    model = module(names, age_groups=age_groups, center_weight=0.1, dropout=0.0)
    batch: Any = {
        "image": torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8),
        "attributes": torch.tensor([[1, 0, -1], [0, -1, -1], [1, 1, -1], [-1, 1, -1]], dtype=torch.int8),
        "age_group": torch.tensor([0, -1, 1, 1]),
        "database": torch.zeros(4, dtype=torch.int64),
    }
    logged: dict[str, Any] = {}
    model.log = lambda name, value, **options: logged.update({name: value})  # type: ignore[method-assign, assignment]
    nn.init.normal_(model.center_loss.centers)
    centers = model.center_loss.centers.clone()
    model.eval()
    output = model.predict(batch)
    loss = model.training_step(batch, 0)["loss"]
    expected = torch.zeros(())
    for column in range(3):
        known = batch["attributes"][:, column] >= 0
        if known.any():
            truth = batch["attributes"][known, column]
            expected = expected + nn.BCEWithLogitsLoss()(output["logits"][known, column], truth.float())
            own = centers[column, truth.long()]
            expected = expected + 0.1 * 0.5 * (output["embeddings"][known, column] - own).square().sum(1).mean()
    known = batch["age_group"] >= 0
    truth = batch["age_group"][known]
    expected = expected + nn.CrossEntropyLoss()(output["age_group"][known], truth)
    expected = expected + 0.1 * 0.5 * (output["age_embedding"][known] - centers[3, truth]).square().sum(1).mean()
    torch.testing.assert_close(loss, expected)
    assert not torch.equal(model.center_loss.centers, centers)
    assert torch.equal(model.center_loss.centers[2], centers[2])  # no label of the third attribute


def test_the_distance_to_the_own_centre_in_lengths() -> None:
    model = module(["Male", "Smiling"])
    nn.init.normal_(model.center_loss.centers)
    embeddings, labels = torch.randn(3, 2, 16), torch.tensor([[1, 0], [0, -1], [-1, -1]], dtype=torch.int8)
    batch: Any = {"attributes": labels}
    found = model.measures({"logits": torch.zeros(3, 2), "embeddings": embeddings}, batch)
    centers = model.center_loss.centers

    def distance(sample: int, task: int, label: int) -> float:
        return float((embeddings[sample, task] - centers[task, label]).norm() / embeddings[sample, task].norm())

    expected = [(distance(0, 0, 1) + distance(0, 1, 0)) / 2, distance(1, 0, 0)]
    assert found["center_distance"][:2].tolist() == pytest.approx(expected, rel=1e-4)
    ratios = [distance(0, 0, 1) / distance(0, 0, 0), distance(0, 1, 0) / distance(0, 1, 1)]
    assert float(found["center_distance_ratio"][0]) == pytest.approx(sum(ratios) / 2, rel=1e-4)
    assert found["center_distance"][2].isnan() and found["center_distance_ratio"][2].isnan()


def test_label_correlations_against_numpy() -> None:
    labels = np.random.default_rng(0).integers(-1, 2, (200, 4)).astype(np.int8)
    labels[:, 3] = np.where(labels[:, 0] >= 0, 1 - labels[:, 0], -1)
    found = label_correlations(labels)
    assert found[0][:2] == (3, 0) and found[0][2] == pytest.approx(-1)
    for first, second, correlation in found:
        both = (labels[:, first] >= 0) & (labels[:, second] >= 0)
        assert correlation == pytest.approx(np.corrcoef(labels[both, first], labels[both, second])[0, 1])


def test_a_task_that_the_data_lacks_is_refused() -> None:
    with pytest.raises(ConfigError) as raised:
        module(["Smiling"], required_tasks=["age_group", "gender", "visual"])
    assert [problem.split(" labels")[0] for problem in raised.value.problems] == [
        "model.required_tasks: the data has no age group",
        "model.required_tasks: the data has no gender",
    ]
