"""MTL-CNN in training; for what is published of it see `faceattr_lightning.networks.mtl_cnn`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from faceattr_lightning.attributes import GENDER
from faceattr_lightning.data.batch import Batch
from faceattr_lightning.errors import ConfigError
from faceattr_lightning.models.losses import labelled_count, summed_over_ranks
from faceattr_lightning.models.module import AttributeModule
from faceattr_lightning.networks.mtl_cnn import Correlation, Gates, MTLCNNNetwork
from faceattr_lightning.networks.output import Output

if TYPE_CHECKING:
    from faceattr_lightning.data.module import FaceDataModule

Task = Literal["age_group", "gender", "visual"]

_SHOWN_CORRELATIONS = 20


class CenterLoss(nn.Module):
    """A center loss per attribute (after Wen et al., ECCV 2016), over the samples that carry the attribute's label.

    ``1/2 ||e_a - c_{a, y_a}||^2 / n_a`` summed over the samples; after each step
    ``c_{a, y} <- c_{a, y} + rate * sum_i (e_a - c_{a, y}) / (1 + n_{a, y})``.

    Args:
        classes: of each of T tasks, the number of classes.
        width: D, of an embedding.
        rate: of the centres' update, in [0, 1].
    """

    centers: Tensor
    """float32 (T, C, D) with C the largest number of classes."""

    def __init__(self, classes: Sequence[int], width: int, rate: float = 0.5) -> None:
        super().__init__()
        self.rate = rate
        self.register_buffer("centers", torch.zeros(len(classes), max(classes), width))

    def distances(self, embeddings: Tensor) -> Tensor:
        """Return the squared distances of attributes to the centres of absence and presence, float (B, A, 2), for
        float (B, A, D) of the first A tasks.
        """
        centers = self.centers[: embeddings.shape[1], :2]
        # Without a tensor of (B, A, 2, D), which four hundred attributes would make large.
        products = torch.einsum("bad,acd->bac", embeddings, centers)
        squares = embeddings.square().sum(dim=2)[:, :, None] + centers.square().sum(dim=2)
        return (squares - 2 * products).clamp(min=0)

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Return each task's loss, float (T,), 0 for a task without a label; of a rank as `labelled_count` has it.

        Args:
            embeddings: float (B, T, D).
            labels: int64 (B, T), the class, -1 where not labelled.
        """
        labelled = labels >= 0
        own = self.centers[torch.arange(labels.shape[1], device=labels.device), labels.clamp(min=0)]
        losses = 0.5 * (embeddings - own).square().sum(dim=2)
        return (losses * labelled).sum(dim=0) / labelled_count(labelled)

    @torch.no_grad()
    def update(self, embeddings: Tensor, labels: Tensor) -> None:
        """Move the centres; equally on every rank, each of which has to call it. Arguments as of `forward`."""
        classes = torch.arange(self.centers.shape[1], device=labels.device)
        member = (labels[:, :, None] == classes).float()
        count = summed_over_ranks(member.sum(dim=0))
        # In mixed precision, sums over a batch would be too coarse.
        with torch.autocast(embeddings.device.type, enabled=False):
            total = summed_over_ranks(torch.einsum("btc,btd->tcd", member, embeddings.float()))
        step = (total - count[:, :, None] * self.centers) / (1 + count[:, :, None])
        self.centers.add_(self.rate * step)


class MTLCNN(AttributeModule):
    """`MTLCNNNetwork` trained with cross-entropies and center losses; for the other arguments see `AttributeModule`.

    Args:
        groups: nothing in it depends on groups; they order the report, and a weighting may use them.
        databases: names of the fused data sets; one where nothing is fused. Another data set gets the mean bias.
        labelled: for each database bool (A,), whether it labels the attribute.
        database_bias: whether an attribute that several databases label has a bias of its own in each.
        gates: see `MTLCNNNetwork`, like ``correlation``, ``width`` and ``dropout``.
        center_weight: k_a, of each attribute's center loss. Ours.
        center_rate: of the centres' update, in [0, 1].
        required_tasks: training is refused if the data lacks one of these.

    Raises:
        ConfigError: a required task is missing.
    """

    network: MTLCNNNetwork

    def __init__(
        self,
        attribute_names: list[str],
        backbone: dict[str, Any],
        preprocessing: dict[str, Any],
        groups: str | dict[str, list[str]] | None = "face_parts",
        weighting: dict[str, Any] | None = None,
        calibration: dict[str, Any] | None = None,
        optimizer: dict[str, Any] | None = None,
        schedule: dict[str, Any] | None = None,
        age_groups: list[str] | None = None,
        databases: list[str] | None = None,
        labelled: list[list[bool]] | None = None,
        database_bias: bool = False,
        gates: Gates = "static",
        correlation: Correlation = "detached",
        width: int = 512,
        dropout: float = 0.2,
        center_weight: float = 0.0001,
        center_rate: float = 0.5,
        required_tasks: list[Task] | None = None,
    ) -> None:
        super().__init__(
            attribute_names, preprocessing, groups, weighting, calibration, optimizer, schedule, age_groups
        )
        self.save_hyperparameters(logger=False)
        check_tasks(required_tasks or [], attribute_names, bool(age_groups))
        self.databases = list(databases or ())
        self._trained_as = list(range(max(1, len(self.databases))))
        counts = np.array(labelled or [[True] * len(attribute_names)]).sum(axis=0)
        shared = [[bool(here and count > 1) for here, count in zip(row, counts, strict=True)] for row in labelled or ()]
        self.network = self.make_network(
            {
                "_target_": "faceattr_lightning.networks.mtl_cnn.MTLCNNNetwork",
                "backbone": self.backbone_node(backbone),
                "attributes": len(attribute_names),
                "age_groups": len(self.age_groups),
                "shared": shared if database_bias else (),
                "gates": gates,
                "correlation": correlation,
                "width": width,
                "dropout": dropout,
            }
        )
        self.center_weight = center_weight
        classes = [2] * len(attribute_names) + [len(self.age_groups)] * bool(self.age_groups)
        self.center_loss = CenterLoss(classes, width, center_rate)

    def setup(self, stage: str) -> None:
        # A data set may stand at another place than in training, or alone.
        present = self.trainer.datamodule.table.databases  # type: ignore[attr-defined]
        self._trained_as = [self.databases.index(name) if name in self.databases else -1 for name in present]

    def predict(self, batch: Batch) -> Output:
        database = torch.tensor(self._trained_as, device=self.device)[batch["database"]]
        return self.network(batch["image"], database)  # type: ignore[no-any-return]

    def extra_losses(self, output: Output, batch: Batch) -> dict[str, Tensor]:
        embeddings, labels = self._tasks(output, batch)
        loss = self.center_weight * self.center_loss(embeddings, labels).sum()
        self.center_loss.update(embeddings.detach(), labels)
        return {"center": loss}

    def measures(self, output: Output, batch: Batch) -> dict[str, Tensor]:
        """Also two means over the labelled attributes: ``center_distance``, an embedding's distance to the centre of
        its own class in units of its length, 0 where a class is a point; and ``center_distance_ratio``, that distance
        over the one to the other class's centre, below 1 where it is nearer to its own.
        """
        distances, labels = self.center_loss.distances(output["embeddings"]), batch["attributes"]
        lengths = output["embeddings"].norm(dim=2).clamp(min=1e-6)
        own = distances.gather(2, labels.long().clamp(min=0)[:, :, None])[:, :, 0].sqrt()
        found = {"center_distance_ratio": _ratio(distances, labels)}
        found["center_distance"] = torch.where(labels >= 0, own / lengths, torch.nan).nanmean(dim=1)
        return {**super().measures(output, batch), **found}

    def facts(self, datamodule: FaceDataModule) -> dict[str, Any]:
        """Return what gates and correlation module learned.

        ``gate_spread``: how far the attributes' gates lie apart (standard deviation over attributes, mean over the
        embedding; 0 if all share it alike, as at the start). ``correlations``: for the attribute pairs whose training
        labels correlate most, that correlation (``labels``) and `CorrelationModule.between` (``learned``), with the
        share of pairs in which the signs agree.
        """
        found: dict[str, Any] = {}
        if self.network.gates.kind != "none" and self.network.gates.tasks > 1:
            found["gate_spread"] = float(self.network.gates.theta.sigmoid().std(dim=0).mean())
        if self.network.correlation is not None:
            pairs = {}
            strongest = label_correlations(datamodule.table.attributes[datamodule.train_rows()])[:_SHOWN_CORRELATIONS]
            for first, second, correlation in strongest:
                name = f"{self.attribute_names[first]}/{self.attribute_names[second]}"
                pairs[name] = {"labels": correlation, "learned": self.network.correlation.between(first, second)}
            agree = [pair["labels"] * pair["learned"] > 0 for pair in pairs.values()]
            found |= {"correlations": pairs, "correlation_signs_agree": sum(agree) / len(agree) if agree else None}
        return found

    def _tasks(self, output: Output, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return every task's embedding, float (B, T, D), and class, int64 (B, T)."""
        # Of a mixed image the class of the greater share.
        embeddings, labels = output["embeddings"], batch["attributes"].round().long()
        if "age_embedding" in output:
            embeddings = torch.cat([embeddings, output["age_embedding"][:, None]], dim=1)
            labels = torch.cat([labels, batch["age_group"][:, None]], dim=1)
        return embeddings, labels


def check_tasks(tasks: Sequence[Task], attribute_names: Sequence[str], age_groups: bool) -> None:
    """Raise a ConfigError for each of the tasks that data with such labels lacks."""
    present = {
        "age_group": age_groups,
        "gender": GENDER in attribute_names,
        "visual": any(name != GENDER for name in attribute_names),
    }
    problems = [
        f"model.required_tasks: the data has no {task.replace('_', ' ')} labels; choose a data set that has (the "
        "README's table says which), or leave it out of the list."
        for task in tasks
        if not present[task]
    ]
    if problems:
        raise ConfigError(problems)


def _ratio(distances: Tensor, labels: Tensor) -> Tensor:
    """Return float (B,) for squared distances float (B, A, >= 2) and labels (B, A), NaN without a label."""
    absent, present = distances[:, :, 0].sqrt(), distances[:, :, 1].sqrt()
    ratio = torch.where(labels == 1, present / absent.clamp(min=1e-6), absent / present.clamp(min=1e-6))
    return torch.where(labels >= 0, ratio, torch.nan).nanmean(dim=1)


def label_correlations(labels: np.ndarray[Any, np.dtype[np.int8]]) -> list[tuple[int, int, float]]:
    """Return the pairs of attributes with their correlation (phi), the strongest first.

    Args:
        labels: int8 (N, A) in {0, 1, -1}; a pair's correlation is that over the samples that carry both.
    """
    known = (labels >= 0).astype(np.float64)
    positive = (labels == 1).astype(np.float64)
    both, together = known.T @ known, positive.T @ positive
    first, second = positive.T @ known, known.T @ positive
    with np.errstate(invalid="ignore", divide="ignore"):
        covariance = together / both - first * second / both**2
        variance = (first / both * (1 - first / both)) * (second / both * (1 - second / both))
        correlation = covariance / np.sqrt(variance)
    pairs = [
        (row, column, float(correlation[row, column]))
        for row in range(len(correlation))
        for column in range(row)
        if np.isfinite(correlation[row, column])
    ]
    return sorted(pairs, key=lambda pair: -abs(pair[2]))
