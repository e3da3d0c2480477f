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
from faceattr_lightning.report.charts import Bin, Line, decimal, finite, percent, points, rate
from faceattr_lightning.report.grid import GridImage, MaskImage, grid, mask_row


@dataclass(frozen=True)
class SplitReport:
    """The results on one split. Rates are fractions in [0, 1]; NaN or ``None`` where one is not defined.

    Args:
        split: ``"test"`` or ``"validation"``.
        attributes: a row per attribute; the keys in `COLUMNS` are shown, and ``<key>_low`` and ``<key>_high``, the ends
            of a 95 % interval, where they are there.
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
        splits: the split of the headline first, normally test. The three that follow are of this one.
        reliability: see `faceattr_lightning.metrics.reliability.reliability_rows`.
        slices: see `faceattr_lightning.metrics.slices.slice_rows`.
        gaps: the largest first; see `faceattr_lightning.metrics.slices.largest_gaps`.
        least_support: images that a rate must be a share of to take part in `gaps`.
        consistency: see `faceattr_lightning.metrics.consistency.consistency_rows`.
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
    reliability: list[dict[str, Any]] = field(default_factory=list)
    slices: list[dict[str, Any]] = field(default_factory=list)
    gaps: list[dict[str, Any]] = field(default_factory=list)
    least_support: int = 0
    consistency: list[dict[str, Any]] = field(default_factory=list)
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
_FURTHEST = 6
"""Diagrams that are not folded away."""
_MOST_GAPS = 8
"""Of each slice, in the table that is not folded away."""
_RATES = {
    "accuracy": ("Accuracy", "share of right answers"),
    "false_positive_rate": ("False positives", "share of the images without the attribute that are said to have it"),
    "false_negative_rate": ("False negatives", "share of the images with the attribute that are said not to have it"),
}
_UNITS = {
    "gmacs": ("GMACs an image", ""),
    "peak_memory_mb": ("peak memory", " MB"),
    "training_seconds": ("training", " s"),
    "training_cpu_seconds": ("training, CPU", " s"),
}
"""Facts whose name says more than their key does, and what they are counted in."""


def render(report: ReportData) -> str:
    """Return the whole page."""
    first = report.splits[0] if report.splits else None
    sections = [
        _headline(first),
        _gains(first) if first else "",
        _tables(report.splits),
        _reliability(report.reliability, first),
        _slices(report),
        _consistency(report.consistency),
        _curves(report.history),
        _task_lines(report.history),
        _faces(report.grids),
        _masks(report.masks),
        _warnings(report.warnings),
        _configuration(report.config_yaml),
    ]
    return page(report.title, report.subtitle, report.run, _notice(len(report.warnings)), sections)


def page(title: str, subtitle: str, run: Mapping[str, Any], notice: str, sections: Sequence[str]) -> str:
    """Return a page that fetches nothing; ``notice`` and ``sections`` are HTML, the rest is not."""
    template = Template(files(__package__).joinpath("template.html").read_text(encoding="utf-8"))
    return template.substitute(
        title=escape(title),
        subtitle=escape(subtitle),
        facts=_facts(run),
        notice=notice,
        sections="\n".join(filter(None, sections)),
    )


def section(title: str, lead: str, body: str, anchor: str = "") -> str:
    """A section; ``lead`` and ``body`` are HTML."""
    mark = f' id="{anchor}"' if anchor else ""
    return f'<section{mark}><h2>{escape(title)}</h2><p class="lead">{lead}</p>{body}</section>'


def _facts(run: Mapping[str, Any]) -> str:
    facts = {_UNITS.get(key, (key.replace("_", " "), ""))[0]: _fact(key, value) for key, value in run.items()}
    return "".join(
        f"<div{' class=wide' if len(text) > 28 else ''}><dt>{escape(name)}</dt><dd>{escape(text)}</dd></div>"
        for name, text in facts.items()
    )


def _fact(key: str, value: object) -> str:
    if value is None or value == "":
        return charts.NOT_DEFINED
    if isinstance(value, float):
        return (f"{value:.3g}" if key == "gmacs" else decimal(value, 1)) + _UNITS.get(key, ("", ""))[1]
    # Only a quantity is set off in thousands; a seed is not one.
    quantity = key in ("parameters", *_UNITS) and isinstance(value, int)
    return (f"{value:,}" if quantity else str(value)) + _UNITS.get(key, ("", ""))[1]


def _notice(warnings: int) -> str:
    if not warnings:
        return ""
    return f'<p class="notice"><a href="#warnings">{_count(warnings, "warning")}</a> on how to read these numbers.</p>'


def _headline(split: SplitReport | None) -> str:
    if split is None:
        return section("Result", "No split was evaluated.", "")
    summary = split.summary
    accuracy, constant = finite(summary.get("accuracy")), finite(summary.get("majority_accuracy"))
    scale = ""
    if accuracy is not None and constant is not None:
        scale = charts.scale_bar(constant, accuracy, "constant answer", "model")
    chance = f" ({percent(summary['prevalence'])})" if finite(summary.get("prevalence")) is not None else ""
    tiles = "".join(
        f'<div class="tile"><h3>{name}</h3>{_value(key, summary.get(key), write)}'
        f"{_interval_line(key, summary)}<p>{meaning.replace('{chance}', chance)}</p></div>"
        for key, (name, meaning, write) in _TILES.items()
        if key not in _WHERE_KNOWN or finite(summary.get(key)) is not None
    )
    hero = (
        f'<div class="tile hero"><div><h3>Accuracy, calibrated thresholds</h3>{_value("accuracy", accuracy, percent)}'
        f"{_interval_line('accuracy', summary)}<p>The constant answer (always the training majority class) scores "
        f"<b>{percent(constant)}</b>. {_verdict(split.attributes)}</p></div>{scale}</div>"
    )
    lead = f"Means over {_count(len(split.attributes), 'attribute')} of the {escape(_split_name(split))} split."
    return section("Result", lead, f'<div class="tiles">{hero}{tiles}</div>')


def _interval(key: str, values: Mapping[str, Any], write: Format) -> str:
    """The 95 % interval of a value in words; empty where there is none."""
    low, high = (finite(values.get(f"{key}_{end}")) for end in ("low", "high"))
    if low is None or high is None:
        return ""
    # Noise makes a sum of absolute values greater; the interval takes that off, and so may lie below the value itself.
    note = ", less what noise adds" if key == "ece" else ""
    return f"95\u202f% interval {write(low)} to {write(high)}{note}"


def _interval_line(key: str, values: Mapping[str, Any]) -> str:
    interval = _interval(key, values, points if key == "gain" else rate)
    return f'<p class="interval">{interval}</p>' if interval else ""


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
    return section("Gain over the constant answer", lead, figure)


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
    if any(key.endswith("_low") for split in splits for row in split.attributes for key in row):
        lead += " Point at a number that is underlined for its 95\u202f% interval."
    return section("Every attribute", lead, tables + legend)


def _table(split: SplitReport) -> str:
    heads = [
        ("Attribute", "name of the attribute", False),
        ("Group", "group of the attribute in the model", False),
        *((name, meaning, True) for name, meaning, _ in COLUMNS.values()),
    ]
    rows = [
        f'<th scope="row">{escape(str(row["attribute"]))}</th>'
        f"<td>{escape(str(row.get('group') or charts.NOT_DEFINED))}</td>"
        + "".join(
            number_cell(key, row.get(key), write, _interval(key, row, write)) for key, (_, _, write) in COLUMNS.items()
        )
        for row in split.attributes
    ]
    means = "".join(
        number_cell(key, split.summary.get(key), write, _interval(key, split.summary, write))
        for key, (_, _, write) in COLUMNS.items()
    )
    foot = f'<th scope="row">Mean</th><td></td>{means}'
    return sortable_table(f"{_split_name(split)} split, per attribute", heads, rows, foot)


def sortable_table(label: str, heads: Sequence[tuple[str, str, bool]], rows: Sequence[str], foot: str = "") -> str:
    """A table that is sorted by a click on a heading.

    Args:
        label: what it shows, for those who can't see it.
        heads: of each column the name, the meaning and whether it holds numbers.
        rows: the cells of each row, HTML.
        foot: the cells of a last row that stays, HTML.
    """
    head = "".join(
        f'<th scope="col"{" class=number" if numeric else ""}>'
        f'<button type="button" title="{escape(meaning)}">{escape(name)}</button></th>'
        for name, meaning, numeric in heads
    )
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    end = f"<tfoot><tr>{foot}</tr></tfoot>" if foot else ""
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(label)}">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody>{end}</table></div>"
    )


def number_cell(key: str, value: object, write: Format, title: str = "") -> str:
    number = finite(value)
    if number is None:
        return f'<td class="number none">{charts.NOT_DEFINED}</td>'
    kind = "number bad" if key == "gain" and number < 0 else "number"
    shown = f'<span title="{title}">{write(number)}</span>' if title else write(number)
    return f'<td class="{kind}" data-value="{number:.6g}">{shown}</td>'


def _value(key: str, value: object, write: Format) -> str:
    number = finite(value)
    kind = " none" if number is None else " bad" if key == "gain" and number < 0 else ""
    return f'<p class="value{kind}">{write(number)}</p>'


def _reliability(rows: Sequence[Mapping[str, Any]], split: SplitReport | None) -> str:
    if not rows or split is None:
        return ""
    bins: dict[str, list[Bin]] = {}
    for row in rows:
        values = (row[key] for key in ("from", "to", "count", "mean_probability", "positive_share"))
        bins.setdefault(str(row["attribute"]), []).append(Bin(*values))
    pooled, *names = bins
    errors = {str(row["attribute"]): finite(row.get("ece")) for row in split.attributes}

    def small(name: str) -> str:
        return (
            f'<div><span title="{escape(name)}">{escape(name)}</span> <b>{rate(errors.get(name))}</b>'
            f"{charts.small_reliability_chart(bins[name])}</div>"
        )

    ranked = sorted((name for name in names if errors.get(name) is not None), key=lambda name: -(errors[name] or 0.0))
    labels = sum(one.count for one in bins[pooled])
    chart = charts.reliability_chart(bins[pooled], "Share of positives over the stated probability, all attributes")
    note = "The number is the expected calibration error in percent; both axes run from 0 to 100\u202f%."
    worst = (
        '<figure class="panel"><figcaption>The attributes that are furthest off</figcaption>'
        f'<p class="note">{note}</p><div class="sparks square">{"".join(map(small, ranked[:_FURTHEST]))}</div></figure>'
    )
    rest = (
        f"<details><summary>The diagram of each attribute</summary>"
        f'<p class="note">{note}</p><div class="sparks square">{"".join(map(small, names))}</div></details>'
    )
    lead = (
        f"Whether a stated probability comes true on the {escape(_split_name(split))} split, in {len(bins[pooled])} "
        "bins of equal width: on the dotted diagonal it does; below it the model claims too much, above too little. "
        "A larger point stands for more labels, the bars below count them."
    )
    figure = (
        f'<figure class="panel"><figcaption>Positive, % <small>all attributes together, {labels:,} labels, error '
        f"{percent(split.summary.get('ece_pooled'))}</small></figcaption>{chart}</figure>"
    )
    return section("Calibration of the probabilities", lead, f'<div class="figures">{figure}{worst}</div>{rest}')


def _slices(report: ReportData) -> str:
    if not report.slices:
        return ""
    names = list(dict.fromkeys(str(row["slice"]) for row in report.slices))
    shown: dict[str, list[Mapping[str, Any]]] = {name: [] for name in names}
    for gap in report.gaps:
        if len(shown[gap["slice"]]) < _MOST_GAPS:
            shown[gap["slice"]].append(gap)
    top = sorted((gap for gaps in shown.values() for gap in gaps), key=lambda gap: -gap["gap"])
    lead = (
        f"What the model gets wrong on each side of a slice ({escape(', '.join(names))}), with the calibrated "
        f"thresholds: the up to {_MOST_GAPS} largest gaps of each slice, in percentage points. A rate over fewer than "
        f"{report.least_support} images takes no part. Of {_count(len(report.gaps), 'gap')} the largest are large by "
        "chance, too: they say where to look."
    )
    tables = _gap_table(top) if top else '<p class="note">No two sides have enough images.</p>'
    for name in names:
        rows = [row for row in report.slices if row["slice"] == name]
        tables += f"<details><summary>Every attribute by {escape(name)}</summary>{_side_table(name, rows)}</details>"
    return section("Slices", lead, tables)


def _gap_table(gaps: Sequence[Mapping[str, Any]]) -> str:
    heads = [
        ("Attribute", "name of the attribute", False),
        ("Slice", "what the images are divided by", False),
        ("Measure", "what differs", False),
        ("Gap", "highest rate minus lowest, in percentage points", True),
        ("Highest", "the side with the highest rate", False),
        ("%", "the highest rate, in percent", True),
        ("of", "images that the highest rate is a share of", True),
        ("Lowest", "the side with the lowest rate", False),
        ("%", "the lowest rate, in percent", True),
        ("of", "images that the lowest rate is a share of", True),
    ]
    count = partial(decimal, digits=0)
    rows = []
    for gap in gaps:
        name, meaning = _RATES[gap["rate"]]
        cells = f'<th scope="row">{escape(gap["attribute"])}</th><td>{escape(gap["slice"])}</td>'
        cells += f'<td title="{meaning}">{name}</td>{number_cell("gap", gap["gap"], rate)}'
        for end in ("high", "low"):
            cells += f"<td>{escape(_side(gap, gap[f'{end}_side']))}</td>{number_cell(end, gap[end], rate)}"
            cells += number_cell("support", gap[f"{end}_support"], count)
        rows.append(cells)
    return sortable_table("largest gaps between the sides of a slice", heads, rows)


def _side_table(slice_name: str, sides: Sequence[Mapping[str, Any]]) -> str:
    count = partial(decimal, digits=0)
    heads = [
        ("Attribute", "name of the attribute", False),
        ("Side", f"the images by {slice_name}", False),
        ("Images", "labelled images", True),
        ("Accuracy", _RATES["accuracy"][1], True),
        ("Without", "images without the attribute", True),
        (*_RATES["false_positive_rate"], True),
        ("With", "images with the attribute", True),
        (*_RATES["false_negative_rate"], True),
    ]
    columns: dict[str, Format] = {
        "support": count,
        "accuracy": rate,
        "negatives": count,
        "false_positive_rate": rate,
        "positives": count,
        "false_negative_rate": rate,
    }
    rows = [
        f'<th scope="row">{escape(row["attribute"])}</th><td>{escape(_side(row, row["side"]))}</td>'
        + "".join(number_cell(key, row[key], write) for key, write in columns.items())
        for row in sides
    ]
    return sortable_table(f"every attribute by {slice_name}", heads, rows)


def _side(row: Mapping[str, Any], side: str) -> str:
    """The name of a side; of an attribute's 0 and 1 with the attribute."""
    return {"0": f"not {row['slice']}", "1": str(row["slice"])}.get(side, side)


def _consistency(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return ""
    heads = [
        ("At most one of", "attributes that rule each other out", False),
        ("Labels", "share of the images labelled for all of them in which two or more are labelled", True),
        ("of", "images that are labelled for all of them", True),
        ("Predictions", "share of all images in which two or more are predicted", True),
        ("at 0.5", "the same with every threshold at 0.5", True),
        ("of", "images", True),
        ("Why", "why they rule each other out", False),
    ]
    columns: dict[str, Format] = {
        "label_violations": _hundredths,
        "labelled": partial(decimal, digits=0),
        "prediction_violations": _hundredths,
        "prediction_violations_at_half": _hundredths,
        "images": partial(decimal, digits=0),
    }
    cells = [
        f'<th scope="row" class="words">{escape(row["attributes"])}</th>'
        + "".join(number_cell(key, row[key], write) for key, write in columns.items())
        + f'<td class="words">{escape(row["reason"])}</td>'
        for row in rows
    ]
    lead = (
        "Faces of which two things are said that can't both be true, in percent of the images. A model that learned "
        "from labels that contradict each other does not have to repeat it."
    )
    return section("Logical consistency", lead, sortable_table("contradictions", heads, cells[:-1], cells[-1]))


def _hundredths(value: object) -> str:
    """Return the fraction ``0.00123`` as ``"0.12"`` percent."""
    number = finite(value)
    return charts.NOT_DEFINED if number is None else decimal(100 * number)


def _curves(history: History | None) -> str:
    if history is None or not history.epochs:
        return ""
    families: dict[tuple[str, bool], dict[str, list[float | None]]] = {}
    for key, values in history.curves.items():
        if any(finite(value) is not None for value in values):
            families.setdefault(_family(key), {})[key] = values
    figures = "".join(_curve_figure(name, rate, history.epochs, curves) for (name, rate), curves in families.items())
    lead = "Training dashed, validation solid. Point at an epoch to read its values."
    return section("Learning curves", lead, f'<div class="figures">{figures}</div>') if figures else ""


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
    return section("Thresholds and weights over training", lead, f'<div class="figures">{"".join(figures)}</div>')


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
    return section("Faces", lead, "".join(grid(title, images) for title, images in grids.items()))


def _masks(images: Sequence[MaskImage]) -> str:
    if not images:
        return ""
    lead = "Where each group of attributes looks: test faces, one group's mask over them in each row."
    rows = "".join(mask_row(group, images) for group in images[0].masks)
    return section("Masks", lead, rows)


def _warnings(warnings: Sequence[str]) -> str:
    if not warnings:
        return ""
    items = "".join(f"<li>{escape(warning)}</li>" for warning in warnings)
    return section("Warnings", "What to keep in mind with these numbers.", f"<ul>{items}</ul>", anchor="warnings")


def _configuration(yaml: str) -> str:
    if not yaml.strip():
        return ""
    return f"<section><details><summary>Configuration</summary><pre>{escape(yaml)}</pre></details></section>"


def _split_name(split: SplitReport) -> str:
    name, _, database = split.split.partition("/")
    return ", ".join(filter(None, [_SPLIT_NAMES.get(name, name), database]))


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
