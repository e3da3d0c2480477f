"""MTL-CNN: fine-grained face annotation (Celona, Bianco, Schettini, Sensors 18(8) 2666, 2018).

Published: one CNN, all of its parameters shared, estimates up to 74 attributes in three tasks: age group, gender,
visual attributes. A gating mechanism controls how activations are shared and routes them adaptively to the attributes;
a module post-processes the predictions by the correlation among attributes. It is trained on fused databases, with a
center loss that disentangles the representations of the attributes in the embedding space.

Ours, not the paper's: the 74 as age group, gender and LFWA's other 72; the embedding e of 512; a gate per attribute
``m_a = sigmoid(theta_a)``, or dependent on the input, ``e_a = m_a * e``, ``z_a = w_a . e_a + b_a``; the correlation
module ``z' = z + M p`` with ``p = [softmax(age), sigmoid(rest)]``; the form and the update of the center loss; losses
averaged per attribute over the samples that carry its label; the mixing of databases
(`faceattr_lightning.data.fused`); a bias per database for shared names.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from faceattr_lightning.networks.backbone import Backbone
from faceattr_lightning.networks.heads import LogitLayer, hidden_layer
from faceattr_lightning.networks.output import Output

Gates = Literal["static", "input", "none"]
Correlation = Literal["detached", "joint", "none"]


class TaskGates(nn.Module):
    """A gate per attribute on a shared embedding. Published is that; the formulas are ours.

    Args:
        tasks: number of attributes T, the age group among them.
        width: D, of the embedding.
        kind: ``static`` ``m_a = sigmoid(theta_a)``; ``input`` ``m_a = sigmoid(theta_a + V_a relu(U e))``, which depends
            on the face; ``none`` no gates, ``m_a = 1``.
        bottleneck: width of ``U e``.
    """

    def __init__(self, tasks: int, width: int, kind: Gates, bottleneck: int = 32) -> None:
        super().__init__()
        self.tasks, self.kind = tasks, kind
        if kind != "none":
            self.theta = nn.Parameter(torch.zeros(tasks, width))
        if kind == "input":
            self.route = nn.Sequential(nn.Linear(width, bottleneck), nn.ReLU(), nn.Linear(bottleneck, tasks * width))

    def forward(self, embedding: Tensor) -> Tensor:
        """Return the gated embeddings ``m_a * e``, float (B, T, D), for float (B, D)."""
        if self.kind == "none":
            return embedding[:, None].expand(-1, self.tasks, -1)
        logits = self.theta
        if self.kind == "input":
            logits = logits + self.route(embedding).unflatten(1, (self.tasks, -1))
        return torch.sigmoid(logits) * embedding[:, None]


class CorrelationModule(nn.Module):
    """Post-processes predictions by what they say of each other: ``z' = z + M p``. Published is that it does; ours is
    how.

    M starts at 0, and no prediction takes part in its own, nor one age group in another's.

    Args:
        attributes: number of attributes A.
        age_groups: number of age groups G.
        detached: whether p is taken as it is, so that no gradient flows through it.
    """

    mask: Tensor

    def __init__(self, attributes: int, age_groups: int, detached: bool) -> None:
        super().__init__()
        self.age_groups, self.detached = age_groups, detached
        self.matrix = nn.Parameter(torch.zeros(age_groups + attributes, age_groups + attributes))
        mask = 1 - torch.eye(len(self.matrix))
        mask[:age_groups, :age_groups] = 0
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, age: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return the age groups' logits float (B, G) and the attributes' float (B, A), for the same before."""
        probabilities = torch.cat([age.softmax(dim=1), logits.sigmoid()], dim=1)
        if self.detached:
            probabilities = probabilities.detach()
        added = probabilities @ (self.mask * self.matrix).T
        return age + added[:, : self.age_groups], logits + added[:, self.age_groups :]

    def between(self, first: int, second: int) -> float:
        """Return ``M_ab + M_ba`` of two attributes: what presence of the one adds to the logit of the other."""
        first, second = first + self.age_groups, second + self.age_groups
        return float(self.matrix[first, second] + self.matrix[second, first])


class MTLCNNNetwork(nn.Module):
    """One shared embedding, a gate and a logit per attribute, the correlation module.

    Args:
        backbone: any.
        attributes: number of attributes A.
        age_groups: number of age groups G, one task more; 0 leaves it out.
        shared: for each database bool (A,), whether the attribute has a bias of its own there; empty for none.
        gates: see `TaskGates`.
        correlation: ``detached`` or ``joint``, see `CorrelationModule`; ``none`` leaves it out.
        width: D, of the embedding.
        dropout: probability in [0, 1), of the embedding.
    """

    shared: Tensor

    def __init__(
        self,
        backbone: Backbone,
        attributes: int,
        age_groups: int = 0,
        shared: Sequence[Sequence[bool]] = (),
        gates: Gates = "static",
        correlation: Correlation = "detached",
        width: int = 512,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.embedding = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), *hidden_layer(backbone.channels, width), nn.Dropout(dropout)
        )
        self.gates = TaskGates(attributes + (age_groups > 0), width, gates)
        self.weight = nn.Parameter(torch.randn(attributes, width) / width**0.5)
        self.bias = nn.Parameter(torch.zeros(attributes))
        self.age_head = LogitLayer(width, age_groups) if age_groups else None
        self.correlation = None
        if correlation != "none":
            self.correlation = CorrelationModule(attributes, age_groups, correlation == "detached")
        self.database_bias = nn.Parameter(torch.zeros(len(shared), attributes)) if len(shared) else None
        self.register_buffer("shared", torch.tensor(shared, dtype=torch.float32), persistent=False)

    def forward(self, image: Tensor, database: Tensor | None = None) -> Output:
        """Return ``logits``, ``embeddings`` and, where there are age groups, theirs; see `Output`.

        Args:
            image: (B, 3, H, W), in the range 0 to 255.
            database: int64 (B,), where the images are from; -1, as ``None`` for all, takes the mean of an attribute's
                biases.
        """
        embeddings = self.gates(self.embedding(self.backbone(image)))
        attributes = embeddings[:, : len(self.weight)]
        logits = (attributes * self.weight).sum(dim=2) + self.bias
        if self.database_bias is not None:
            biases = self.shared * self.database_bias
            mean = biases.sum(dim=0, keepdim=True) / self.shared.sum(dim=0).clamp(min=1)
            # The last row is that of -1.
            logits = logits + (mean if database is None else torch.cat([biases, mean])[database])
        age = logits.new_empty(len(logits), 0) if self.age_head is None else self.age_head(embeddings[:, -1])
        if self.correlation is not None:
            age, logits = self.correlation(age, logits)
        output: Output = {"logits": logits, "embeddings": attributes}
        if self.age_head is not None:
            output |= {"age_group": age, "age_embedding": embeddings[:, -1]}
        return output
