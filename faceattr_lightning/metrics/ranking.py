"""An attribute's scores in order, with what a threshold at each of them would count."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


def labelled_columns(scores: Tensor, labels: Tensor) -> Iterator[tuple[NDArray[np.floating], NDArray[np.bool_]]]:
    """Yield each attribute's scores and whether they are of positives, (n,) each, of its n labelled samples alone.

    One attribute at a time: its arrays stay in the processor's cache, where those of all attributes do not.

    Args:
        scores: float (N, A).
        labels: int8 (N, A) in {0, 1, -1}.
    """
    columns = (tensor.T.contiguous().numpy() for tensor in (scores, labels))
    for column, label in zip(*columns, strict=True):
        labelled = label >= 0
        yield (column, label > 0) if labelled.all() else (column[labelled], label[labelled] > 0)


def operating_points(
    bits: NDArray[np.unsignedinteger], positive: NDArray[np.bool_]
) -> tuple[NDArray[np.unsignedinteger], NDArray[np.int64], NDArray[np.int64]]:
    """Return the K distinct scores, ascending, and for each how many positives and how many samples reach it.

    Sorted with the label in the lowest bit: numpy sorts integers several times faster than it, or torch, finds the
    permutation that would sort them.

    Args:
        bits: (n,), n > 0, of scores that are floats without a sign, whose bits are in the floats' order.
        positive: bool (n,).

    Returns:
        bits (K,), int64 (K,) and int64 (K,).
    """
    packed: NDArray[np.unsignedinteger] = bits << 1 | positive
    packed.sort()
    ranked = packed >> 1
    first = np.flatnonzero(np.concatenate([[True], ranked[1:] != ranked[:-1]]))
    positives = np.concatenate([[0], np.cumsum(packed & 1, dtype=np.int64)])
    reached: NDArray[np.int64] = positives[-1] - positives[first]
    return ranked[first], reached, (len(packed) - first).astype(np.int64)
