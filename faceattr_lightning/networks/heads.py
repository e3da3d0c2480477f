"""Heads that several networks have."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class LogitLayer(nn.Linear):
    """A linear layer that computes in 32 bits under mixed precision too.

    Logits of bfloat16 have three digits: scores that differ would be ties, and thresholds steps.
    """

    def forward(self, input: Tensor) -> Tensor:
        device = input.device.type
        if not torch.is_autocast_enabled(device):
            return super().forward(input)
        with torch.autocast(device, enabled=False):
            return super().forward(input.to(self.weight.dtype))


def pooled_head(channels: int, outputs: int, dropout: float = 0.0) -> nn.Sequential:
    """Return global average pooling, dropout, one linear layer: (B, channels, h, w) to (B, outputs)."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout), LogitLayer(channels, outputs))


def hidden_layer(inputs: int, outputs: int) -> list[nn.Module]:
    """Return a fully connected layer, normalised over the batch, without which the trunk behind three of them learns
    late: its gradient shrinks at each. Ours.
    """
    return [nn.Linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs), nn.ReLU(inplace=True)]


class InAttributeOrder(nn.Module):
    """Puts what is predicted group after group into the attributes' order.

    Args:
        columns: for each group the columns of the logits that it predicts; together each column once.
    """

    def __init__(self, columns: Sequence[Sequence[int]]) -> None:
        super().__init__()
        order = torch.tensor([column for members in columns for column in members])
        # No buffer: weight averaging would average it with itself, and cut the result down to whole numbers.
        self._position = order.argsort()

    def forward(self, logits: Sequence[Tensor]) -> Tensor:
        """Return float (B, A) for a float (B, A_g) of each group."""
        joined = torch.cat(list(logits), dim=1)
        self._position = self._position.to(joined.device)
        return joined[:, self._position]


class GroupHeads(nn.Module):
    """One fully connected head per group of attributes.

    Args:
        columns: see `InAttributeOrder`; K groups.
        width: D, of the group vectors.
        dropout: probability in [0, 1), of their entries.
    """

    def __init__(self, columns: Sequence[Sequence[int]], width: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.heads = nn.ModuleList(LogitLayer(width, len(members)) for members in columns)
        self.order = InAttributeOrder(columns)

    def forward(self, groups: Tensor) -> Tensor:
        """Return logits float (B, A) for group vectors float (B, K, D)."""
        dropped = self.dropout(groups)
        ordered: Tensor = self.order([head(dropped[:, group]) for group, head in enumerate(self.heads)])
        return ordered
