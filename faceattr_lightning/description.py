"""What a model says of itself, in a checkpoint, a model folder and an exported file alike. No torch here."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

from packaging.version import InvalidVersion, Version

import faceattr_lightning

KEY = "faceattr_lightning"
"""Under it stands the description: in a checkpoint, in ``config.json``, and in an exported file's metadata."""

USED = ("version", "attribute_names", "groups", "age_groups", "thresholds", "preprocessing")
"""What has to be known to use an exported file."""


def problem(said: object, needed: Collection[str] = USED, advice: str = "Take another file.") -> str:
    """Return what keeps a description from being used, to stand behind the name of its file; empty if nothing does.

    Args:
        said: what was found under `KEY`.
        needed: the keys that must be there.
        advice: what to do if it is damaged.
    """
    if not isinstance(said, Mapping):
        return "was not made by faceattr-lightning. Take another file."
    if "version" not in said:
        return f"is damaged: it lacks version. {advice}"
    try:
        newer = Version(said["version"]) > Version(faceattr_lightning.__version__)
    except (InvalidVersion, TypeError):
        return f"is damaged: its version is '{said['version']}'. {advice}"
    if newer:
        return (
            f"was made by version {said['version']}, which is newer than this one, {faceattr_lightning.__version__}. "
            "Update the code, or take another file."
        )
    missing = [name for name in needed if name not in said]
    if missing:
        return f"is damaged: it lacks {', '.join(missing)}. {advice}"
    count = len(said["attribute_names"]) if _are_names(said.get("attribute_names")) else -1
    wrong = [name for name, fits in _FITS.items() if name in said and not fits(said[name], count)]
    return f"is damaged: its {', '.join(wrong)} can't be used. {advice}" if wrong else ""


def without_folders(value: Any) -> Any:
    """Return plain data, such as a configuration, without the folders of absolute paths: they say whose machine it was,
    and no other has them.
    """
    if isinstance(value, Mapping):
        return {key: without_folders(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_folders(item) for item in value]
    # At the start, or where an item or a value of an override begins; not the slashes of an address.
    return (
        re.sub(r"(^|[\[{,:='\"\s])/(?:[^\[\]{},'\"/]+/)*(?=[^\[\]{},'\"/])", r"\1", value)
        if isinstance(value, str)
        else value
    )


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _are_numbers(value: Any, count: int) -> bool:
    plain = isinstance(value, list) and all(type(number) in (int, float) for number in value)
    return plain and len(value) == count and all(map(math.isfinite, value))


_FITS: dict[str, Callable[[Any, int], bool]] = {
    "model": lambda value, _: isinstance(value, str),
    "attribute_names": lambda value, _: _are_names(value),
    "groups": lambda value, _: isinstance(value, Mapping) and all(map(_are_names, value.values())),
    "age_groups": lambda value, _: _are_names(value),
    "thresholds": _are_numbers,
    "temperatures": _are_numbers,
    "preprocessing": lambda value, _: isinstance(value, Mapping),
    "config": lambda value, _: isinstance(value, Mapping),
}
"""Key to whether its value can be used, given the number of attributes."""
