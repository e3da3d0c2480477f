"""The report's page: one file that fetches nothing, from the numbers and faces of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

from faceattr_lightning.report import charts
from faceattr_lightning.report.charts import Line, decimal, finite, percent, points, rate
from faceattr_lightning.report.grid import GridImage, MaskImage, grid, mask_row


@dataclass(frozen=True)
class SplitReport:
    """The results on one split. Rates are fractions in [0, 1]; NaN or ``None`` where one is not defined.

    Args:
        split: ``"test"`` or ``"validation"``.
        attributes: a row per attribute; the keys in `COLUMNS` are shown.
        summary: means of the same names, and ``landmark_nme`` where landmarks exist.
    """

    split: str
    attributes: list[dict[str, Any]]
    summary: dict[str, Any]


@dataclass(frozen=True)
class History:
    """What training did, a value per epoch in each list; NaN or ``None`` where there was none.

    Args:
        epochs: the epochs, ascending.
        thresholds: attribute to decision thresholds.
        weights: attribute to loss weights (of mean 1).
        curves: ``"train/loss"``, ``"val/accuracy"``, ... to values.
    """

    epochs: list[int]
    thresholds: dict[str, list[float]]
    weights: dict[str, list[float]]
    curves: dict[str, list[float | None]]

    def __post_init__(self) -> None:
        for kind in (self.thresholds, self.weights, self.curves):
            for name, values in kind.items():
                if len(values) != len(self.epochs):
                    raise ValueError(f"'{name}' has {len(values)} values for {len(self.epochs)} epochs.")


@dataclass(frozen=True)
class ReportData:
    """Everything on the page.

    Args:
        title: the heading.
        subtitle: the line under it.
        run: facts about the run (model, data, parameters, ...), shown in this order.
        splits: the split of the headline first, normally test.
        history: the epochs, if the run trained.
        grids: title to faces.
        masks: faces with the masks of the groups, all with the same groups; empty for a network without masks.
        warnings: sentences that the reader must know.
        config_yaml: the resolved configuration.
    """

    title: str
    subtitle: str
    run: dict[str, Any]
    splits: list[SplitReport]
    history: History | None = None
    grids: dict[str, list[GridImage]] = field(default_factory=dict)
    masks: list[MaskImage] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    config_yaml: str = ""


Format = Callable[[object], str]

COLUMNS: dict[str, tuple[str, str, Format]] = {
    "support": ("Images", "labelled images of the split", partial(decimal, digits=0)),
    "prevalence": ("Positive", "share of the labelled images that have the attribute", rate),
    "majority_accuracy": ("Constant", "accuracy of always answering the training majority class", rate),
    "accuracy": ("Accuracy", "share of right answers with the calibrated threshold", rate),
    "accuracy_at_half": ("at 0.5", "accuracy with the threshold 0.5", rate),
    "gain": ("Gain", "accuracy minus that of the constant answer, in percentage points", points),
    "balanced_accuracy": ("Balanced", "mean of the accuracies on positives and on negatives", rate),
    "balanced_accuracy_at_half": ("at 0.5", "balanced accuracy with the threshold 0.5", rate),
    "f1": ("F1", "harmonic mean of precision and recall of the positive class", rate),
    "f1_at_half": ("at 0.5", "F1 with the threshold 0.5", rate),
    "average_precision": ("AP", "average precision: area under the precision-recall curve, for all thresholds", rate),
    "ece": ("ECE", "expected calibration error: mean gap between stated and observed probability", rate),
    "threshold": ("Threshold", "probability from which on the answer is yes", decimal),
}
"""Key of an attribute's row to the column's heading, its meaning and how its values are written."""

_TILES: dict[str, tuple[str, str, Format]] = {
    "accuracy_at_half": ("Accuracy at 0.5", "With every threshold at 0.5, before calibration.", percent),
    "majority_accuracy": ("Constant answer", "Always the training majority class, without a look.", percent),
    "gain": (
        "Gain",
        "Percentage points of accuracy over the constant answer. Below 0: worse than not looking.",
        points,
    ),
    "balanced_accuracy": (
        "Balanced accuracy",
        "Mean of the accuracies on positives and on negatives. The constant answer scores 50\u202f%.",
        percent,
    ),
    "f1": ("F1", "Harmonic mean of precision and recall of the positive class. Always “no” scores 0.", percent),
    "average_precision": (
        "Average precision",
        "How well the faces are ranked, whatever the threshold. Guessing scores the share of positives{chance}.",
        percent,
    ),
    "ece": ("Calibration error", "Mean gap between stated and observed probability (ECE). Lower is better.", percent),
    "landmark_nme": ("Landmark error", "Normalised mean error (NME) of the points. Lower is better.", percent),
    "age_accuracy": ("Age group", "Share of faces whose age group is exactly right.", percent),
    "age_one_off_accuracy": ("Age group, one off", "Right, or the next group. Counts neighbours as hits.", percent),
    "mask_iou": ("Mask overlap", "Mean intersection over union of predicted and drawn masks.", percent),
}

_WHERE_KNOWN = ("landmark_nme", "age_accuracy", "age_one_off_accuracy", "mask_iou")
"""Tiles that are left out where there is nothing to show."""

_SPLIT_NAMES = {"val": "validation", "valid": "validation"}
_EXTREMES = 3


def render(report: ReportData) -> str:
    """Return the whole page."""
    first = report.splits[0] if report.splits else None
    sections = [
        _headline(first),
        _gains(first) if first else "",
        _tables(report.splits),
        _curves(report.history),
        _task_lines(report.history),
        _faces(report.grids),
        _masks(report.masks),
        _warnings(report.warnings),
        _configuration(report.config_yaml),
    ]
    template = Template(files(__package__).joinpath("template.html").read_text(encoding="utf-8"))
    return template.substitute(
        title=escape(report.title),
        subtitle=escape(report.subtitle),
        facts=_facts(report.run),
        notice=_notice(len(report.warnings)),
        sections="\n".join(filter(None, sections)),
    )


def _section(title: str, lead: str, body: str, anchor: str = "") -> str:
    """A section; ``lead`` and ``body`` are HTML."""
    mark = f' id="{anchor}"' if anchor else ""
    return f'<section{mark}><h2>{escape(title)}</h2><p class="lead">{lead}</p>{body}</section>'


def _facts(run: Mapping[str, Any]) -> str:
    facts = {key.replace("_", " "): _fact(key, value) for key, value in run.items()}
    return "".join(
        f"<div{' class=wide' if len(text) > 28 else ''}><dt>{escape(name)}</dt><dd>{escape(text)}</dd></div>"
        for name, text in facts.items()
    )


def _fact(key: str, value: object) -> str:
    if value is None or value == "":
        return charts.NOT_DEFINED
    if isinstance(value, float):
        return decimal(value, 1)
    # Only a quantity is set off in thousands; a seed is not one.
    return f"{value:,}" if key == "parameters" and isinstance(value, int) else str(value)


def _notice(warnings: int) -> str:
    if not warnings:
        return ""
    return f'<p class="notice"><a href="#warnings">{_count(warnings, "warning")}</a> on how to read these numbers.</p>'


def _headline(split: SplitReport | None) -> str:
    if split is None:
        return _section("Result", "No split was evaluated.", "")
    summary = split.summary
    accuracy, constant = finite(summary.get("accuracy")), finite(summary.get("majority_accuracy"))
    scale = ""
    if accuracy is not None and constant is not None:
        scale = charts.scale_bar(constant, accuracy, "constant answer", "model")
    chance = f" ({percent(summary['prevalence'])})" if finite(summary.get("prevalence")) is not None else ""
    tiles = "".join(
        f'<div class="tile"><h3>{name}</h3>{_value(key, summary.get(key), write)}'
        f"<p>{meaning.replace('{chance}', chance)}</p></div>"
        for key, (name, meaning, write) in _TILES.items()
        if key not in _WHERE_KNOWN or finite(summary.get(key)) is not None
    )
    hero = (
        f'<div class="tile hero"><div><h3>Accuracy, calibrated thresholds</h3>{_value("accuracy", accuracy, percent)}'
        f"<p>The constant answer (always the training majority class) scores <b>{percent(constant)}</b>. "
        f"{_verdict(split.attributes)}</p></div>{scale}</div>"
    )
    lead = f"Means over {_count(len(split.attributes), 'attribute')} of the {escape(_split_name(split))} split."
    return _section("Result", lead, f'<div class="tiles">{hero}{tiles}</div>')


def _verdict(rows: Sequence[Mapping[str, Any]]) -> str:
    gains = [gain for row in rows if (gain := finite(row.get("gain"))) is not None]
    if not gains:
        return ""
    better, worse = sum(gain > 0 for gain in gains), sum(gain < 0 for gain in gains)
    return f"The model beats it on {better} of {_count(len(gains), 'attribute')} and is worse on {worse}."


def _gains(split: SplitReport) -> str:
    def order(row: Mapping[str, Any]) -> tuple[bool, float]:
        gain = finite(row.get("gain"))
        return gain is None, -(gain or 0.0)

    bars = []
    for row in sorted(split.attributes, key=order):
        gain = finite(row.get("gain"))
        title = (
            f"{row['attribute']}: gain {points(gain)} points\n"
            f"accuracy {percent(row.get('accuracy'))}, constant answer {percent(row.get('majority_accuracy'))}\n"
            f"threshold {decimal(row.get('threshold'))}, {percent(row.get('prevalence'))} positive"
        )
        bars.append(charts.Bar(str(row["attribute"]), None if gain is None else 100 * gain, title))
    if not bars:
        return ""
    lead = (
        f"Accuracy on the {escape(_split_name(split))} split minus that of the constant answer, in percentage points. "
        "A bar to the left, in red: the model is worse than always answering the training majority class."
    )
    chart = charts.bar_chart(bars, "Gain over the constant answer per attribute, in percentage points")
    figure = f'<figure class="panel"><figcaption>Gain, percentage points</figcaption>{chart}</figure>'
    return _section("Gain over the constant answer", lead, figure)


def _tables(splits: Sequence[SplitReport]) -> str:
    if not splits:
        return ""
    meanings = "".join(
        f"<div><dt>{name}</dt><dd>{meaning}</dd></div>" for name, meaning, _ in COLUMNS.values() if name != "at 0.5"
    )
    tables = "".join(
        f"<details{'' if index else ' open'}><summary>{escape(_split_name(split).capitalize())} split"
        f"</summary>{_table(split)}</details>"
        for index, split in enumerate(splits)
    )
    legend = f'<details><summary>What the columns mean</summary><dl class="facts">{meanings}</dl></details>'
    lead = (
        "Rates in percent, the gain in percentage points. A column “at 0.5” repeats the one before it with the "
        "threshold 0.5. Choose a heading to sort by it, again to turn the order round."
    )
    return _section("Every attribute", lead, tables + legend)


def _table(split: SplitReport) -> str:
    heads = "".join(
        f'<th scope="col"{kind}><button type="button" title="{escape(meaning)}">{name}</button></th>'
        for name, meaning, kind in [
            ("Attribute", "name of the attribute", ""),
            ("Group", "group of the attribute in the model", ""),
            *((name, meaning, ' class="number"') for name, meaning, _ in COLUMNS.values()),
        ]
    )
    body = "".join(
        f'<tr><th scope="row">{escape(str(row["attribute"]))}</th>'
        f"<td>{escape(str(row.get('group') or charts.NOT_DEFINED))}</td>"
        + "".join(_cell(key, row.get(key), write) for key, (_, _, write) in COLUMNS.items())
        + "</tr>"
        for row in split.attributes
    )
    means = "".join(_cell(key, split.summary.get(key), write) for key, (_, _, write) in COLUMNS.items())
    label = f"{escape(_split_name(split))} split, per attribute"
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{label}">'
        f"<table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody>"
        f'<tfoot><tr><th scope="row">Mean</th><td></td>{means}</tr></tfoot></table></div>'
    )


def _cell(key: str, value: object, write: Format) -> str:
    number = finite(value)
    if number is None:
        return f'<td class="number none">{charts.NOT_DEFINED}</td>'
    kind = "number bad" if key == "gain" and number < 0 else "number"
    return f'<td class="{kind}" data-value="{number:.6g}">{write(number)}</td>'


def _value(key: str, value: object, write: Format) -> str:
    number = finite(value)
    kind = " none" if number is None else " bad" if key == "gain" and number < 0 else ""
    return f'<p class="value{kind}">{write(number)}</p>'


def _curves(history: History | None) -> str:
    if history is None or not history.epochs:
        return ""
    families: dict[tuple[str, bool], dict[str, list[float | None]]] = {}
    for key, values in history.curves.items():
        if any(finite(value) is not None for value in values):
            families.setdefault(_family(key), {})[key] = values
    figures = "".join(_curve_figure(name, rate, history.epochs, curves) for (name, rate), curves in families.items())
    lead = "Training dashed, validation solid. Point at an epoch to read its values."
    return _section("Learning curves", lead, f'<div class="figures">{figures}</div>') if figures else ""


def _family(key: str) -> tuple[str, bool]:
    """The chart that a curve belongs on, and whether its values are fractions to be shown in percent."""
    metric = key.rpartition("/")[2]
    if "loss" in key:
        return "Loss", False
    if "accuracy" in metric:
        return "Accuracy", True
    if metric in COLUMNS and metric not in ("support", "threshold"):
        return "Other rates", True
    return metric.replace("_", " "), False


def _curve_figure(name: str, rate: bool, epochs: Sequence[int], curves: Mapping[str, Sequence[float | None]]) -> str:
    scale, unit, digits = (100, ", %", 1) if rate else (1, "", 3)
    lines = [
        Line(
            _without(key.replace("/", " ").replace("_", " "), name),
            [None if (number := finite(value)) is None else scale * number for value in values],
            colour=index,
            dashed=key.startswith("train"),
        )
        for index, (key, values) in enumerate(curves.items())
    ]
    chart = charts.line_chart(epochs, lines, f"{name} per epoch{unit}", digits)
    return f'<figure class="panel"><figcaption>{escape(name)}{unit}</figcaption>{chart}</figure>'


def _without(name: str, word: str) -> str:
    """The name of a line without what its chart's caption says already, as that leaves more room for the plot."""
    return " ".join(name.replace(word.lower(), " ").split()) or name


def _task_lines(history: History | None) -> str:
    if history is None or not history.epochs:
        return ""
    figures = [
        _task_figure("Decision threshold", history.epochs, history.thresholds, 0.5, "not calibrated"),
        _task_figure("Weight in the loss", history.epochs, history.weights, 1.0, "uniform"),
    ]
    if not any(figures):
        return ""
    lead = (
        f"A line per attribute; the {_EXTREMES} highest and {_EXTREMES} lowest at the end are named. "
        "Point at a line for its name, or open the list below it. Both are those of an epoch's end: the next "
        "one trains with the weights."
    )
    return _section("Thresholds and weights over training", lead, f'<div class="figures">{"".join(figures)}</div>')


def _task_figure(
    name: str, epochs: Sequence[int], values: Mapping[str, Sequence[float]], reference: float, meaning: str
) -> str:
    ends = {attribute: charts.last(series) for attribute, series in values.items()}
    if all(end is None for end in ends.values()):
        return ""
    high, low = charts.extremes(list(ends.values()), _EXTREMES)
    colours = dict.fromkeys(high, 0) | dict.fromkeys(low, 1)
    lines = [Line(attribute, series, colours.get(index)) for index, (attribute, series) in enumerate(values.items())]
    chart = charts.line_chart(epochs, lines, f"{name} of each attribute per epoch", reference=reference)
    bottom, top = charts.bounds(lines)
    small = "".join(
        f'<div><span title="{escape(line.name)}">{escape(line.name)}</span> <b>{decimal(ends[line.name])}</b>'
        f"{charts.spark_line(line.values, bottom, top)}</div>"
        for line in lines
    )
    caption = f"{escape(name)} <small>dotted: {reference:g}, {meaning}</small>"
    return (
        f'<figure class="panel"><figcaption>{caption}</figcaption>{chart}'
        f"<details><summary>Each attribute by itself</summary>"
        f'<p class="note">All on one scale, {decimal(bottom)} to {decimal(top)}; the number is the last value.</p>'
        f'<div class="sparks">{small}</div></details></figure>'
    )


def _faces(grids: Mapping[str, Sequence[GridImage]]) -> str:
    if not any(grids.values()):
        return ""
    lead = (
        'Below a face its most confident mistakes with the predicted probability: <span class="claimed">seen but not '
        'labelled</span>, <span class="missed">labelled but not seen</span>.'
    )
    return _section("Faces", lead, "".join(grid(title, images) for title, images in grids.items()))


def _masks(images: Sequence[MaskImage]) -> str:
    if not images:
        return ""
    lead = "Where each group of attributes looks: test faces, one group's mask over them in each row."
    rows = "".join(mask_row(group, images) for group in images[0].masks)
    return _section("Masks", lead, rows)


def _warnings(warnings: Sequence[str]) -> str:
    if not warnings:
        return ""
    items = "".join(f"<li>{escape(warning)}</li>" for warning in warnings)
    return _section("Warnings", "What to keep in mind with these numbers.", f"<ul>{items}</ul>", anchor="warnings")


def _configuration(yaml: str) -> str:
    if not yaml.strip():
        return ""
    return f"<section><details><summary>Configuration</summary><pre>{escape(yaml)}</pre></details></section>"


def _split_name(split: SplitReport) -> str:
    name, _, database = split.split.partition("/")
    return ", ".join(filter(None, [_SPLIT_NAMES.get(name, name), database]))


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
