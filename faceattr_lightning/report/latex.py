"""The table of a split's attributes for a paper."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from faceattr_lightning.report.charts import finite

_NOT_DEFINED = "--"
_SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{character: rf"\{character}" for character in "&%$#_{}"},
}


def _number(value: object, scale: float = 100, form: str = ".2f") -> str:
    number = finite(value)
    return _NOT_DEFINED if number is None else f"{scale * number:{form}}".replace("-", "$-$")


_COLUMNS: dict[str, tuple[str, Callable[[object], str]]] = {
    "prevalence": ("Positive", _number),
    "majority_accuracy": ("Constant", _number),
    "accuracy_at_half": ("Acc.~at 0.5", _number),
    "accuracy": ("Acc.", _number),
    "gain": ("Gain", partial(_number, form="+.2f")),
    "balanced_accuracy_at_half": ("Bal.~at 0.5", _number),
    "balanced_accuracy": ("Bal.", _number),
    "f1": ("F1", _number),
    "average_precision": ("AP", _number),
    "ece": ("ECE", _number),
    "threshold": ("Threshold", partial(_number, scale=1)),
}


def escape(text: str) -> str:
    """Return a text that LaTeX prints as it is."""
    return "".join(_SPECIAL.get(character, character) for character in text)


def attributes_table(rows: Sequence[Mapping[str, Any]], means: Mapping[str, Any]) -> str:
    """Return a ``tabular`` of a row per attribute and one of the means, in percent; it needs the package booktabs.

    Args:
        rows: see `SplitReport`; rates as fractions.
        means: of the same names.
    """

    def line(name: str, values: Mapping[str, Any]) -> str:
        return " & ".join([escape(name), *(write(values.get(key)) for key, (_, write) in _COLUMNS.items())]) + r" \\"

    body = [
        "% Rates in percent; needs \\usepackage{booktabs}.",
        rf"\begin{{tabular}}{{l{'r' * len(_COLUMNS)}}}",
        r"\toprule",
        " & ".join(["Attribute", *(title for title, _ in _COLUMNS.values())]) + r" \\",
        r"\midrule",
        *(line(str(row["attribute"]), row) for row in rows),
        r"\midrule",
        line("Mean", means),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(body) + "\n"
