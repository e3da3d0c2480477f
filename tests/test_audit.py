"""``task=audit`` through the program, on drawn images that show their labels, and the ranking by itself."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from numpy.typing import NDArray
from PIL import Image

from faceattr_lightning.data.images import read_image
from faceattr_lightning.data.table import FaceTable, Split
from faceattr_lightning.errors import ConfigError
from faceattr_lightning.metrics.predictions import Predictions
from faceattr_lightning.report.audit import AuditData, AuditedAttribute, AuditedLabel, render_audit
from faceattr_lightning.report.grid import thumbnail
from faceattr_lightning.tasks.audit import check_installed, rank_labels
from faceattr_lightning.tasks.checkpoint import load_model
from tests.data.writers import write_celeba
from tests.report.test_html import Page
from tests.runs import SMALL, rows, run, run_dirs

NAMES = ["Smiling", "Male", "Young"]
EXACT = "trainer.precision=32-true"
WRONG = {"Smiling": (4, 3), "Male": (1, 2)}
"""How many labels no and yes of the test split are turned round. Some of both: without a wrong label among its own, the
mean probability of a class is as high as that of its best half, and confident learning doubts no more than that.
"""


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, FaceTable]:
    """A folder that holds a CelebA of 300 images, and its table: the thirds of an image say what its labels are."""
    folder = tmp_path_factory.mktemp("shown")
    table = write_celeba(folder / "celeba", n=300, images=False)
    rng = np.random.default_rng(0)
    columns = [table.attribute_names.index(name) for name in NAMES]
    for file, labels in zip(table.files, table.attributes[:, columns], strict=True):
        image = rng.integers(90, 130, (218, 178, 3))
        for third, label in enumerate(labels):
            # One colour for each attribute, bright for yes and dark for no, beside some of its own.
            image[73 * third : 73 * (third + 1), :, third] += 110 if label else -80
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(table.root / file, "JPEG")
    return folder, table


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory, shown: tuple[Path, FaceTable]) -> Path:
    """The folder of a training run on the right labels, with augmentation."""
    output = tmp_path_factory.mktemp("output")
    keys = ["model=baseline", f"data.attributes=[{','.join(NAMES)}]", "trainer.max_epochs=20", "data.batch_size=16"]
    run(*SMALL, *keys, EXACT, "model.optimizer.lr=0.01", data=shown[0], output=output)
    return output


def changed(
    shown: tuple[Path, FaceTable], folder: Path, change: Callable[[NDArray[np.int8], FaceTable], object]
) -> Path:
    """Copy the data with other labels: ``change`` gets those of `NAMES`, 0, 1 or, for not labelled, -1."""
    source, table = shown
    shutil.copytree(source, folder)
    columns = [table.attribute_names.index(name) for name in NAMES]
    labels = table.attributes[:, columns].copy()
    change(labels, table)
    path = folder / "celeba" / "list_attr_celeba.txt"
    lines = path.read_text().splitlines()
    for row, line in enumerate(lines[2:]):
        fields = line.split()
        for column, label in zip(columns, labels[row], strict=True):
            fields[1 + column] = {1: "1", 0: "-1", -1: "0"}[int(label)]
        lines[2 + row] = " ".join(fields)
    path.write_text("\n".join(lines) + "\n")
    return folder


@pytest.mark.slow
def test_wrong_labels_come_first(shown: tuple[Path, FaceTable], output: Path, tmp_path: Path) -> None:
    table = shown[1]
    tested = table.rows(Split.TEST)
    wrong = {}
    for name, counts in WRONG.items():
        labels = table.attributes[tested, table.attribute_names.index(name)]
        wrong[name] = np.concatenate([tested[labels == label][:count] for label, count in enumerate(counts)])
    missing = np.setdiff1d(tested, wrong["Smiling"])[:5]

    def turn_round(labels: NDArray[np.int8], table: FaceTable) -> None:
        for name, turned in wrong.items():
            labels[turned, NAMES.index(name)] ^= 1
        labels[missing, NAMES.index("Smiling")] = -1
        labels[table.split == Split.TEST, NAMES.index("Young")] = 0

    data = changed(shown, tmp_path / "data", turn_round)
    finished = run("task=audit", "ckpt_path=last", EXACT, "task.most=30", data=data, output=output)
    run_dir = run_dirs(output, "audit")[-1]
    assert sorted(path.name for path in run_dir.iterdir()) == [
        "audit.csv",
        "audit.html",
        "audit_attributes.csv",
        "config.yaml",
        "run.log",
    ]
    listed = rows(run_dir / "audit.csv")
    assert list(listed[0]) == ["attribute", "file", "label", "probability", "rank", "issue"]
    assert {row["attribute"] for row in listed} == {"Smiling", "Male"}
    for name, turned in wrong.items():
        of_name = [row for row in listed if row["attribute"] == name]
        assert [int(row["rank"]) for row in of_name] == list(range(1, 31))
        probability = [float(row["probability"]) for row in of_name]
        assert probability == sorted(probability)
        first = of_name[: len(turned)]
        assert {row["file"] for row in first} == {table.files[row] for row in turned}
        assert all(row["issue"] == "yes" for row in first)
        assert not {table.files[row] for row in missing} & {row["file"] for row in of_name} or name != "Smiling"
        labels = dict(zip(table.files, table.attributes[:, table.attribute_names.index(name)].tolist(), strict=True))
        flipped = {table.files[row] for row in turned}
        assert all(int(row["label"]) == labels[row["file"]] ^ (row["file"] in flipped) for row in of_name)

    rates = {row["attribute"]: row for row in rows(run_dir / "audit_attributes.csv")}
    assert list(rates) == NAMES
    assert [int(rates[name]["support"]) for name in NAMES] == [len(tested) - 5, len(tested), len(tested)]
    for name in WRONG:
        of_name = [row for row in listed if row["attribute"] == name]
        assert int(rates[name]["issues"]) == sum(row["issue"] == "yes" for row in of_name)
        assert float(rates[name]["issue_rate"]) == pytest.approx(
            int(rates[name]["issues"]) / int(rates[name]["support"])
        )
    assert rates["Young"]["issues"] == rates["Young"]["issue_rate"] == "" and float(rates["Young"]["prevalence"]) == 0

    page = Page((run_dir / "audit.html").read_text())
    text = " ".join(page.text)
    said = "Not audited, since their test labels have fewer than two classes: Young."
    assert said in text and said in finished.stdout + finished.stderr
    assert "These are training labels" not in text
    pictures = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(pictures) == 60
    assert all(str(attributes["src"]).startswith("data:image/jpeg;base64,") for attributes in pictures)
    assert [attributes["data-name"] for tag, attributes in page.tags if tag == "details"] == ["smiling", "male"]
    assert "label no" in text and "label yes" in text and listed[0]["file"] in text
    config = yaml.safe_load((run_dir / "config.yaml").read_text())
    assert config["ckpt_path"].endswith("last.ckpt") and config["model"]["_target_"].endswith("Baseline")
    assert "Traceback" not in finished.stderr and "Warning" not in finished.stderr, finished.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("split", "devices"), [("validation", 1), ("train", 2)])
def test_every_label_of_a_split_is_ranked_once_and_read_as_it_is(
    split: str, devices: int, shown: tuple[Path, FaceTable], output: Path
) -> None:
    folder, table = shown
    keys = [f"task.split={split}", "task.most=1000", f"trainer.devices={devices}"]
    run("task=audit", EXACT, *keys, data=folder, output=output)
    run_dir = run_dirs(output, "audit")[-1]
    model = load_model(next(run_dirs(output)[0].glob("checkpoints/best.ckpt"))).eval()
    audited = table.rows(Split[split.upper()])
    pixels = np.stack([read_image(table.root / table.files[row], table.image_size) for row in audited])
    with torch.inference_mode():
        probability = model(model.preprocessing.images(pixels))["logits"].double().sigmoid().numpy()
    listed = rows(run_dir / "audit.csv")
    assert len(listed) == len(audited) * len(NAMES)
    place = {table.files[row]: number for number, row in enumerate(audited)}
    for row in listed:
        expected = probability[place[row["file"]], NAMES.index(row["attribute"])]
        assert float(row["probability"]) == pytest.approx(expected if row["label"] == "1" else 1 - expected, abs=2e-5)
    assert len({(row["attribute"], row["file"]) for row in listed}) == len(listed)
    assert ("These are training labels" in (run_dir / "audit.html").read_text()) == (split == "train")


@pytest.mark.slow
def test_mistakes_are_told_at_once(output: Path, shown: tuple[Path, FaceTable], tmp_path: Path) -> None:
    keys = ["task.split=training", "task.most=0"]
    finished = run("task=audit", *keys, data=shown[0], output=output, check=False)
    told = finished.stdout + finished.stderr
    assert finished.returncode == 1 and "Traceback" not in told
    assert "task.split: expected test or validation or train, found 'training'. Did you mean 'train'?" in told
    assert "task.most: expected a number of at least 1, found 0" in told

    def one_class(labels: NDArray[np.int8], table: FaceTable) -> None:
        labels[table.split == Split.TEST] = 1

    data = changed(shown, tmp_path / "data", one_class)
    finished = run("task=audit", data=data, output=output, check=False)
    told = finished.stdout + finished.stderr
    assert finished.returncode == 1 and "Traceback" not in told
    assert "no attribute has both classes among its test labels" in told and "task.split" in told


def test_without_cleanlab_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    check_installed()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'faceattr-lightning\[audit\]'"):
        check_installed()


def predictions_of(logits: NDArray[np.float64], labels: NDArray[np.int64]) -> Predictions:
    index = torch.arange(10, 10 + 3 * len(logits), 3)
    return Predictions(torch.from_numpy(logits).float(), torch.from_numpy(labels).to(torch.int8), index, {})


def test_ranking_by_hand() -> None:
    """Six labels: the mean probability of yes among yes is 0.6, of no among no 0.7."""
    probability = np.array([0.9, 0.3, 0.6, 0.1, 0.65, 0.15])
    labels = np.array([1, 1, 1, 0, 0, 0])
    one, none, empty = rank_labels(
        predictions_of(
            np.log(probability / (1 - probability))[:, None].repeat(3, axis=1),
            np.stack([labels, np.where(labels == 0, -1, labels), np.full(6, -1)], axis=1),
        ),
        ["Bald", "Young", "Male"],
    )
    # Of the no's, 0.65 reaches the 0.6 of yes; of the yes's, 0.3 reaches the 0.7 of no.
    assert one.attribute == "Bald" and one.issue is not None
    assert one.rows.tolist() == [13, 22, 16, 25, 10, 19]
    assert one.present.tolist() == [True, False, True, False, True, False]
    assert one.probability.tolist() == pytest.approx([0.3, 0.35, 0.6, 0.85, 0.9, 0.9])
    assert one.issue.tolist() == [True, True, False, False, False, False]
    assert one.rates() == {
        "attribute": "Bald",
        "support": 6,
        "prevalence": 0.5,
        "issues": 2,
        "issue_rate": pytest.approx(1 / 3),
        "issue_rate_present": pytest.approx(1 / 3),
        "issue_rate_absent": pytest.approx(1 / 3),
    }
    assert none.issue is None and none.rates()["issue_rate"] is None and none.rates()["support"] == 3
    assert empty.issue is None and empty.rates()["prevalence"] is None and empty.rates()["support"] == 0


@pytest.mark.parametrize("seed", range(20))
def test_ranking_agrees_with_the_paper_s_formula(seed: int) -> None:
    """Rare and frequent attributes, missing labels, ties: the confident joint by its definition, label by label."""
    rng = np.random.default_rng(seed)
    count, attributes = int(rng.integers(5, 120)), 6
    logits = rng.normal(rng.normal(0, 2, attributes), 2, (count, attributes)).round(1)
    labels = (rng.random((count, attributes)) < 1 / (1 + np.exp(-logits / 2))).astype(np.int64)
    labels[rng.random(labels.shape) < 0.2] = -1
    predictions = predictions_of(logits, labels)
    probabilities = predictions.probabilities.numpy()
    for column, found in enumerate(rank_labels(predictions, [str(name) for name in range(attributes)])):
        samples = [row for row in range(count) if labels[row, column] >= 0]

        def of(row: int, label: int, column: int = column) -> float:
            return float(probabilities[row, column] if label else 1 - probabilities[row, column])

        given = {row: int(labels[row, column]) for row in samples}
        ranked = sorted(samples, key=lambda row: (of(row, given[row]), row))
        assert found.rows.tolist() == [10 + 3 * row for row in ranked]
        assert found.probability.tolist() == pytest.approx([of(row, given[row]) for row in ranked])
        if len(set(given.values())) < 2:
            assert found.issue is None
            continue
        mean = {label: np.mean([of(row, label) for row in samples if given[row] == label]) for label in (0, 1)}
        expected = []
        for row in ranked:
            other = 1 - given[row]
            # With two classes the other one is the greatest of the confident ones if it is the more probable one.
            expected.append(of(row, other) >= mean[other] - 1e-6 and of(row, other) > of(row, given[row]) + 1e-6)
        assert found.issue is not None and found.issue.tolist() == expected


def test_the_page_fetches_nothing_and_trusts_no_name() -> None:
    hostile = "<script>alert('\"&')</script>"
    picture = thumbnail(np.zeros((218, 178, 3), dtype=np.uint8))
    labels = [AuditedLabel(picture, hostile, 1, 0.001, True), AuditedLabel(picture, "b.jpg", 0, 0.734, False)]
    rates = {"support": 1234, "prevalence": 0.25, "issues": 1, "issue_rate": 0.125}
    html = render_audit(
        AuditData(
            title=hostile,
            subtitle=hostile,
            run={hostile: hostile},
            attributes=[
                AuditedAttribute({"attribute": hostile, **rates}, labels),
                AuditedAttribute({"attribute": "Bald", "support": 5, "issue_rate": None}, []),
            ],
            notices=[hostile],
        )
    )
    assert "alert('" not in html and "://" not in html and "url(" not in html
    page = Page(html)
    assert page.count("script") == 2 and page.count("img") == 2
    # Each link of the table leads to an attribute's labels; one without labels has none.
    links = [attributes["href"] for tag, attributes in page.tags if tag == "a"]
    ids = [attributes["id"] for tag, attributes in page.tags if tag == "details"]
    assert links == [f"#{ids[0]}"] and len(ids) == 1 and "Bald" in page.text
    text = " ".join(" ".join(page.text).split())
    assert "label yes <0.01" in text and "label no 0.73" in text and "1, in doubt" in text and "2, not in doubt" in text
    assert "1 of 1,234 labels in doubt, 12.5 %" in text and "n/a" in text
