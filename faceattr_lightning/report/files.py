"""The report's machine-readable files. Each appears whole or not at all."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from faceattr_lightning.files import write_text


def write_split_csv(rows: Sequence[Mapping[str, Any]], path: str | os.PathLike[str]) -> None:
    """Write a row per attribute; columns in the order of the rows' keys, an empty cell where nothing is defined."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: _plain(value) for key, value in row.items()} for row in rows)
    write_text(buffer.getvalue(), path)


def write_summary_json(summary: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write the summary; ``null`` where nothing is defined (JSON knows no NaN)."""
    write_text(json.dumps(_plain(summary), indent=2, ensure_ascii=False, allow_nan=False) + "\n", path)


def _plain(value: Any) -> Any:
    """Return ``value`` made of JSON's types: numpy numbers become Python's, NaN and infinity ``None``."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)
