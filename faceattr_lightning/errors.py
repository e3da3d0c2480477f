"""The errors that a user can mend. Each message names the file, line or key and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class FaceAttrError(Exception):
    """Base of every error whose message is meant for the user; the program prints it without a traceback."""


class ConfigError(FaceAttrError):
    """The configuration can't be run. Carries every problem that was found, one line each.

    Args:
        problems: one sentence per problem.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(["The configuration has errors:", *(f"  - {problem}" for problem in problems)]))

    def __reduce__(self) -> tuple[type[ConfigError], tuple[list[str]]]:
        # Exceptions cross process borders (joblib workers); the default would pass the whole message as `problems`.
        return type(self), (self.problems,)


class DataError(FaceAttrError):
    """A data set's files are missing, malformed or contradict each other."""


def did_you_mean(name: str, candidates: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the nearest of ``candidates``, or an empty string if none is near."""
    folded = {candidate.casefold(): candidate for candidate in candidates}
    near = difflib.get_close_matches(name.casefold(), folded, n=1, cutoff=0.6)
    return f" Did you mean '{folded[near[0]]}'?" if near else ""
