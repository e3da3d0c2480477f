"""The model card: every figure against the run's own files, names of any kind, and what is not known."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from markdown_it.token import Token

from faceattr_lightning.export.model_card import model_card, read_run
from faceattr_lightning.report import write_split_csv, write_summary_json
from faceattr_lightning.tasks.run_folder import RunStatus, write_status

NAMES = [
    "Smiling",
    "a|b",
    "two\nlines",
    "_under_ *score*",
    "<script>alert(1)</script>",
    "[x](http://y)",
    "`code`",
    "# no",
]
THRESHOLDS = [0.5 + 0.01 * number for number in range(len(NAMES))]
DESCRIPTION: dict[str, Any] = {
    "version": "0.1.0",
    "model": "faceattr_lightning.models.baseline.Baseline",
    "backbone": "test_resnet",
    "licence": "CC-BY-NC-4.0",
    "attribute_names": NAMES,
    "groups": {"all": NAMES},
    "age_groups": ["young", "old|er"],
    "thresholds": THRESHOLDS,
    "preprocessing": {"image_size": 64, "template": [[0.3, 0.4]] * 5, "mean": [0.5] * 3, "std": [0.5] * 3},
}
CONFIG: dict[str, Any] = {
    "seed": 7,
    "backbone": {"name": "test_resnet", "pretrained": "/home/ann/weights.pth"},
    "data": {"_target_": "faceattr_lightning.data.fused.Fused", "sets": ["celeba", "folder"], "train_fraction": 0.1},
}
FILES = [
    {
        "file": "baseline.onnx",
        "precision": "float32",
        "bytes": 1_500_000,
        "difference": 6e-8,
        "accuracy": 0.9,
        "split": "test",
    },
    {
        "file": "baseline.int8.onnx",
        "precision": "int8",
        "bytes": 400_000,
        "difference": None,
        "accuracy": None,
        "split": None,
    },
]


def figures(number: int) -> dict[str, Any]:
    """Return figures that differ in every digit shown."""
    values = {
        metric: 0.1 + 0.0613 * number + 0.0137 * place
        for place, metric in enumerate(
            ("majority_accuracy", "accuracy", "accuracy_at_half", "balanced_accuracy", "f1", "average_precision", "ece")
        )
    }
    values |= {f"accuracy_{end}": values["accuracy"] + shift for end, shift in (("low", -0.0111), ("high", 0.0222))}
    return values


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A run's folder, with the report's files as a run writes them."""
    path = tmp_path / "run" / "checkpoints" / "best.ckpt"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"")
    report = tmp_path / "run" / "report"
    summary = {
        "checkpoint": f"/home/ann/run/checkpoints/{path.name}",
        "git_commit": "0123abc-dirty",
        "train_images": 4560,
        "validation_images": 780,
        "test_images": 659,
        "gain": -0.0123,
        **figures(0),
    }
    write_summary_json(summary, report / "summary.json")
    rows = [
        {"attribute": name, "group": "all", "support": 659, "threshold": threshold, **figures(number)}
        for number, (name, threshold) in enumerate(zip(NAMES, THRESHOLDS, strict=True))
    ]
    rows[2]["average_precision"] = float("nan")
    write_split_csv(rows, report / "attributes.csv")
    sides = [
        {
            "slice": "Male",
            "attribute": name,
            "side": side,
            "support": support,
            "positives": 40,
            "negatives": support - 40,
            "accuracy": accuracy,
            "false_positive_rate": 0.25,
            "false_negative_rate": 0.5,
        }
        for name, gap in zip(NAMES, (0.01, 0.4321, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07), strict=True)
        for side, support, accuracy in (("0", 400, 0.5), ("1", 259, 0.5 + gap))
    ]
    write_split_csv(sides, report / "slices.csv")
    overrides = ["data=fused", "data.root='/home/ann/my data'", "paths.output_dir=/home/ann/out", "seed=7"]
    write_status(RunStatus("finished", "train", overrides), tmp_path / "run")
    return path


def card(checkpoint: Path, **changed: Any) -> str:
    run = read_run(checkpoint, THRESHOLDS)
    return model_card("baseline.onnx", {**DESCRIPTION, **changed}, CONFIG, 376_568, run, FILES)


def body(text: str) -> str:
    return text.split("---\n", 2)[2]


def tables(text: str) -> list[list[list[str]]]:
    """Return the tables of a page as another program reads them: rows of the cells' plain text."""
    found: list[list[list[str]]] = []
    for token in MarkdownIt("commonmark").enable("table").parse(body(text)):
        if token.type == "table_open":
            found.append([])
        elif token.type == "tr_open":
            found[-1].append([])
        elif token.type == "inline" and token.level > 3 and found:
            found[-1][-1].append("".join(map(_plain, token.children or [])))
    return found


def _plain(token: Token) -> str:
    assert token.type in ("text", "text_special"), f"not plain text: {token.type} {token.content}"
    return token.content


def test_figures_are_those_of_the_run(checkpoint: Path) -> None:
    text = card(checkpoint)
    means, attributes, gaps, files = tables(text)
    summary = json.loads((checkpoint.parents[1] / "report/summary.json").read_text())
    found = {row[0]: row[1:] for row in means[1:]}
    low, high = (f"{100 * summary[f'accuracy_{end}']:.2f}" for end in ("low", "high"))
    assert found["accuracy"] == [f"{100 * summary['accuracy']:.2f}", f"{low} to {high}"]
    assert found["accuracy of the constant answer"] == [f"{100 * summary['majority_accuracy']:.2f}", ""]
    assert found["gain over the constant answer"] == ["-1.23", ""]
    with (checkpoint.parents[1] / "report/attributes.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row[0] for row in attributes[1:]] == [" ".join(name.split()) for name in NAMES]
    for row, cells in zip(rows, attributes[1:], strict=True):
        value = {name: float(cell) for name, cell in row.items() if name not in ("attribute", "group") and cell}
        assert cells[1:] == [
            f"{value['threshold']:.3f}",
            f"{100 * value['majority_accuracy']:.2f}",
            f"{100 * value['accuracy']:.2f}",
            f"{100 * value['accuracy_low']:.2f} to {100 * value['accuracy_high']:.2f}",
            f"{100 * value['balanced_accuracy']:.2f}",
            f"{100 * value['average_precision']:.2f}" if "average_precision" in value else "not defined",
        ]
    assert attributes[3][-1] == "not defined"
    assert gaps[1] == ["Male", "a|b", "accuracy", "1: 93.21 of 259", "0: 50.00 of 400"]
    assert files[1:] == [
        ["baseline.onnx", "float32", "1.5", "6.0e-08", "90.00 (test)"],
        ["baseline.int8.onnx", "int8", "0.4", "not measured", "not measured"],
    ]
    for told in (
        "4,560 train, 780 validation, 659 test",
        "376,568 parameters",
        "0123abc-dirty",
        "CC-BY-NC-4.0",
        "10 %",
    ):
        assert told in text, told
    assert "CelebA (Liu et al., 2015): for non-commercial research only" in text
    assert "the weights weights.pth" in text and "/home" not in text and "Predictor('baseline.onnx')" in text
    assert "    python run.py data=fused 'data.root='\"'\"'my data'\"'\"'' seed=7" in text.splitlines()
    html = MarkdownIt("commonmark").enable("table").render(body(text))
    assert "<script" not in html and "href" not in html and "old|er" in html


def test_a_model_hub_reads_it(checkpoint: Path) -> None:
    text = card(checkpoint)
    data = ModelCard(text).data
    assert (data.license, data.library_name) == ("cc-by-nc-4.0", "faceattr-lightning")
    assert data.eval_results is not None
    values = {result.metric_type: result.metric_value for result in data.eval_results}
    summary = figures(0)
    assert values == {name: round(100 * summary[name], 2) for name in ("accuracy", "f1", "average_precision")}
    assert {result.dataset_split for result in data.eval_results} == {"test"}
    own = ModelCard(card(checkpoint, licence="LicenseRef-Own")).data
    assert (own.license, own.license_name) == ("other", "licenseref-own")
    unstated = card(checkpoint, licence=None)
    assert "license" not in yaml.safe_load(unstated.split("---\n")[1]) and "None was stated" in unstated


def _rename(checkpoint: Path) -> Path:
    return checkpoint.rename(checkpoint.with_name("last.ckpt"))


def _move(checkpoint: Path) -> Path:
    return checkpoint.rename(checkpoint.parents[2] / "moved.ckpt")


def _without_report(checkpoint: Path) -> Path:
    (checkpoint.parents[1] / "report/summary.json").unlink()
    return checkpoint


def _of_others(checkpoint: Path) -> Path:
    path = checkpoint.parents[1] / "report/attributes.csv"
    path.write_text(path.read_text().replace("0.51,", "0.52,"))
    return checkpoint


def _damaged(checkpoint: Path) -> Path:
    (checkpoint.parents[1] / "report/summary.json").write_text("{")
    return checkpoint


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (_rename, "The run's report is of best.ckpt, not of last.ckpt"),
        (_move, "The model does not lie in the folder of the run that trained it"),
        (lambda path: path.parent, "The model does not lie in the folder of the run that trained it"),
        (_without_report, "The run's folder has no report"),
        (_of_others, "The run's report was made with other thresholds than the model has"),
        (_damaged, "The run's report can't be read"),
    ],
)
def test_without_its_report_it_gives_no_figures(change: Any, told: str, checkpoint: Path) -> None:
    text = card(change(checkpoint))
    assert f"{told}, so that this card gives no figures." in text
    assert len(tables(text)) == 1 and "0123abc" not in text and "4,560" not in text
    front = yaml.safe_load(text.split("---\n")[1])
    assert "model-index" not in front and "metrics" not in front
