"""An attribute's scores in order, with what a threshold at each of them would count."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

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
    bits: NDArray[Any], positive: NDArray[np.bool_]
) -> tuple[NDArray[Any], NDArray[np.int64], NDArray[np.int64]]:
    """Return the K distinct scores, ascending, and for each how many positives and how many samples reach it.

    Sorted with the label in the lowest bit, so that nothing has to be put into the order of something else.

    Args:
        bits: (n,), n > 0, of scores that are floats without a sign, whose bits are in the floats' order.
        positive: bool (n,).

    Returns:
        bits (K,), int64 (K,) and int64 (K,).
    """
    packed = _sorted(bits << 1 | positive)
    ranked = packed >> 1
    first = np.flatnonzero(np.concatenate([[True], ranked[1:] != ranked[:-1]]))
    positives = np.concatenate([[0], np.cumsum(packed & 1, dtype=np.int64)])
    reached: NDArray[np.int64] = positives[-1] - positives[first]
    return ranked[first], reached, (len(packed) - first).astype(np.int64)


def _sorted(keys: NDArray[Any]) -> NDArray[Any]:
    """Sort unsigned integers by sixteen bits after sixteen, which numpy does by counting and in half the time of its
    comparing sort.
    """
    for shift in range(0, 8 * keys.itemsize, 16):
        keys = keys[np.argsort((keys >> shift).astype(np.uint16), kind="stable")]
    return keys
