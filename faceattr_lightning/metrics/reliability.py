"""Reliability diagrams: what a stated probability was worth, bin by bin; the calibration error is their summary."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from faceattr_lightning.metrics.ranking import labelled_columns

ECE_BINS = 15

POOLED = "(all)"
"""Stands for all attributes together where an attribute's name would stand."""


@dataclass(frozen=True)
class ReliabilityBins:
    """Labelled samples of each attribute in B bins of equal width over the probability of presence in [0, 1].

    A bin holds its lower end; the last one also 1.

    Attributes:
        count: float64 (A, B), labelled samples.
        probability_sum: float64 (A, B), sum of their probabilities.
        positives: float64 (A, B), how many of them have the attribute.
    """

    count: Tensor
    probability_sum: Tensor
    positives: Tensor

    @property
    def mean_probability(self) -> Tensor:
        """float64 (A, B) in [0, 1], NaN in a bin without a sample."""
        return self.probability_sum / self.count

    @property
    def positive_share(self) -> Tensor:
        """float64 (A, B) in [0, 1], NaN in a bin without a sample."""
        return self.positives / self.count

    def calibration_error(self) -> Tensor:
        """Return the expected calibration error (Naeini et al., AAAI 2015), float64 (A,), NaN without a sample.

        sum_b (n_b / N) |mean probability in b - share of positives in b|.
        """
        return (self.probability_sum - self.positives).abs().sum(dim=1) / self.count.sum(dim=1)

    def pooled(self) -> ReliabilityBins:
        """Return the bins of all attributes together, as of one, (1, B): every label counts alike.

        Errors of opposite sign in different attributes cancel out, so its calibration error is at most the mean of
        the attributes' own, weighted by their labels.
        """
        return ReliabilityBins(*(part.sum(dim=0, keepdim=True) for part in vars(self).values()))


def bin_of(probability: NDArray[np.floating], bins: int = ECE_BINS) -> NDArray[np.int64]:
    """Return the bin of each probability in [0, 1], from 0."""
    return np.minimum((probability * bins).astype(np.int64), bins - 1)


def reliability_bins(probabilities: Tensor, labels: Tensor, bins: int = ECE_BINS) -> ReliabilityBins:
    """Sort labelled samples into bins of equal width by their probability.

    Args:
        probabilities: float (N, A) of presence.
        labels: int8 (N, A) in {0, 1, -1}.
        bins: number of bins B.
    """
    found = []
    for probability, positive in labelled_columns(probabilities.double(), labels):
        member = bin_of(probability, bins)
        sums = np.bincount(member, weights=probability, minlength=bins)
        # One count of bin and label together, which is faster than one of each.
        by_label = np.bincount(2 * member + positive, minlength=2 * bins).reshape(bins, 2)
        found.append(np.stack([by_label.sum(axis=1), sums, by_label[:, 1]]))
    return ReliabilityBins(*torch.from_numpy(np.stack(found)).unbind(dim=1))


def reliability_rows(bins: ReliabilityBins, names: list[str]) -> list[dict[str, Any]]:
    """Return a row for each attribute and bin, those of all attributes pooled first, under the name ``(all)``.

    Args:
        bins: of A attributes.
        names: A names.

    Returns:
        rows with ``attribute``, ``bin`` from 0, ``from`` and ``to`` (its ends), ``count``, ``mean_probability`` and
        ``positive_share`` (fractions, NaN in an empty bin).
    """
    rows = []
    for part, part_names in ((bins.pooled(), [POOLED]), (bins, names)):
        columns = (part.count, part.mean_probability, part.positive_share)
        for name, *values in zip(part_names, *(column.tolist() for column in columns), strict=True):
            for index, (count, mean, share) in enumerate(zip(*values, strict=True)):
                ends = {"from": index / len(values[0]), "to": (index + 1) / len(values[0])}
                shown = {"count": int(count), "mean_probability": mean, "positive_share": share}
                rows.append({"attribute": name, "bin": index, **ends, **shown})
    return rows
