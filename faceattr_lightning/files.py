"""Files that appear whole or not at all. Nothing here imports torch or numpy."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PARTIAL = ".*.partial"
"""The pattern of what a killed process leaves of a `whole_file`."""


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a file to write, beside ``path``, that takes its place if all goes well and is removed if not.

    A reader sees the old file or the new one, never a part. Not a file of `tempfile`: those are for the owner only, and
    may lie on another disk, from where the way would be a copy.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    # Of a process that had this number and was killed.
    partial.unlink(missing_ok=True)
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def sha256(path: Path) -> str:
    """Return the digest of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_text(text: str, path: str | os.PathLike[str]) -> None:
    """Write ``text``, as `whole_file` does; makes the folder."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8", newline="")
