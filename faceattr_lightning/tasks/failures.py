"""Failures of the system, in words that say what to do."""

from __future__ import annotations


def explain(error: BaseException) -> str | None:
    """Return what the user can do about a failure of the system; ``None`` for any other error."""
    return None
