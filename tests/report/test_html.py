"""The report's page and files."""

from __future__ import annotations

import base64
import csv
import io
import json
import math
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from faceattr_lightning.report import (
    GridImage,
    History,
    ReportData,
    SplitReport,
    attributes_table,
    charts,
    render,
    write_split_csv,
    write_summary_json,
)
from faceattr_lightning.report.latex import escape
from tests.report.pages import METRICS, NAMES, make_report, make_split

VOID = {"meta", "img", "br", "hr", "link", "input"}
HOSTILE = "<script>alert('\"&')</script>"


class Page(HTMLParser):
    """Checks that every tag is closed in turn; collects the text, the attributes and the table's cells."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs), f"<{tag}> has an attribute twice"
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style") and data.strip():
            self.text.append(data)

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)


def test_page_is_well_formed_and_complete() -> None:
    page = Page(render(make_report(NAMES)))
    text = " ".join(page.text)
    # Twice in the tables, in the bars, in the diagrams, and in the two figures with a line per attribute.
    assert all(page.text.count(name) >= 6 for name in NAMES)
    # A table for each split, the largest gaps, each of two slices, and the rules.
    assert page.count("table") == 2 + 1 + 2 + 1
    assert "1.82" in text and "GMACs an image" in text and "2,480 MB" in text
    assert "The constant answer (always the training majority class) scores" in text
    assert "11,689,512" in text and "123456" in text and "312.4" in text
    assert "Bald has one class in validation." in text and "seed: 1" in text
    assert "$" not in render(make_report(NAMES)).partition("<script>")[0]


def test_page_fetches_nothing() -> None:
    html = render(make_report(NAMES))
    assert "://" not in html and "@import" not in html and "url(" not in html
    tags = Page(html).tags
    assert not {"link", "iframe", "object", "embed"} & {tag for tag, _ in tags}
    for tag, attributes in tags:
        if "src" in attributes:
            assert tag == "img" and str(attributes["src"]).startswith("data:image/jpeg;base64,")
        assert str(attributes.get("href", "#")).startswith("#")
    assert any("default-src 'none'" in (attributes.get("content") or "") for _, attributes in tags)


def test_the_tables_of_slices_and_rules_hold_every_row() -> None:
    report = make_report(NAMES)
    page = Page(render(replace(report, splits=[])))
    names = [row["slice"] for row in report.slices]
    shown = min(8, sum(gap["slice"] == "race" for gap in report.gaps))
    shown += min(8, sum(gap["slice"] == "Bangs" for gap in report.gaps))
    assert names.count("race") == 4 * len(NAMES) and names.count("Bangs") == 2 * (len(NAMES) - 1)
    heads = 4
    assert page.count("tr") == heads + shown + len(report.slices) + len(report.consistency)
    text = " ".join(page.text)
    assert f"fewer than {report.least_support} images" in text and f"Of {len(report.gaps)} gaps" in text
    assert "Bald, Bangs" in text and "any of these" in text and "not Bangs" in text


def test_a_reliability_diagram_puts_a_bin_where_its_numbers_are() -> None:
    svg = charts.reliability_chart([charts.Bin(0, 0.5, 100, 0.25, 0.5), charts.Bin(0.5, 1, 0, math.nan, math.nan)], "x")
    # 260 pixels high, from the bottom: the point is in the middle, the diagonal a quarter up.
    assert '<circle class="point" cx="25.00%" cy="130.0"' in svg and svg.count("<circle") == 1
    assert '<line class="off" x1="25.00%" x2="25.00%" y1="195.0" y2="130.0"/>' in svg
    assert "100 labels" in svg and "n/a" in svg and "nan" not in svg
    assert charts.small_reliability_chart([]).count("<circle") == 0


def test_intervals_stand_beside_their_values() -> None:
    split = make_split(NAMES, fixed={"accuracy": 0.8, "accuracy_low": 0.777, "accuracy_high": 0.823})
    split.summary.update(accuracy=0.8, accuracy_low=0.7912, accuracy_high=0.8088, gain_low=-0.012, gain_high=0.034)
    html = render(replace(make_report(NAMES), splits=[split]))
    text = " ".join(Page(html).text)
    assert "95\u202f% interval 79.1 to 80.9" in text and "95\u202f% interval \u22121.2 to +3.4" in text
    assert html.count('title="95\u202f% interval 77.7 to 82.3"') == len(NAMES)
    assert "interval" not in " ".join(Page(render(make_report(NAMES))).text)
    split.summary.update(ece=0.044, ece_low=0.024, ece_high=0.04)
    html = render(replace(make_report(NAMES), splits=[split]))
    assert "95\u202f% interval 2.4 to 4.0, less what noise adds" in html
    assert html.count("less what noise adds") == 2  # the tile and the row of means


def test_latex() -> None:
    split = make_split(["Bald_&_50%", "x"], fixed={"f1": math.nan, "gain": -0.0123, "accuracy": 0.98765})
    lines = attributes_table(split.attributes, split.summary).splitlines()
    assert lines[0].startswith("%") and lines[1].startswith(r"\begin{tabular}{l")
    body = [line for line in lines if line.endswith(r"\\")]
    assert len(body) == 4 and {line.count("&") - line.count(r"\&") for line in body} == {11}
    assert body[1].startswith(r"Bald\_\&\_50\% & ") and " -- &" in body[1] and "$-$1.23" in body[1]
    assert "98.77" in body[1] and body[3].startswith("Mean & ")
    assert [line for line in lines if line.startswith((r"\top", r"\mid", r"\bottom", r"\end"))] == [
        r"\toprule",
        r"\midrule",
        r"\midrule",
        r"\bottomrule",
        r"\end{tabular}",
    ]
    assert escape("\\{}~^#$") == r"\textbackslash{}\{\}\textasciitilde{}\textasciicircum{}\#\$"


def test_hostile_text_is_escaped_everywhere() -> None:
    report = make_report([HOSTILE, "Bald"])
    face = GridImage(np.zeros((8, 8, 3), np.uint8), HOSTILE, [(HOSTILE, 0.9, 0)] * 9, 0, 9, note=HOSTILE)
    assert report.history is not None
    history = replace(report.history, curves={HOSTILE: [0.1] * 5})
    hostile = replace(
        report,
        title=HOSTILE,
        subtitle=HOSTILE,
        run={HOSTILE: HOSTILE},
        splits=[make_split([HOSTILE], HOSTILE, {"group": HOSTILE})],
        reliability=[{**row, "attribute": HOSTILE} for row in report.reliability],
        slices=[{**row, "slice": HOSTILE, "side": HOSTILE} for row in report.slices],
        gaps=[{**row, "slice": HOSTILE, "high_side": HOSTILE, "low_side": HOSTILE} for row in report.gaps],
        consistency=[{**row, "attributes": HOSTILE, "reason": HOSTILE} for row in make_report(NAMES).consistency],
        history=history,
        grids={HOSTILE: [face]},
        warnings=[HOSTILE],
        config_yaml=f"a: {HOSTILE}",
    )
    html = render(hostile)
    assert "alert('" not in html
    assert Page(html).count("script") == 1


def test_undefined_is_never_a_number() -> None:
    split = make_split(NAMES, fixed=dict.fromkeys(METRICS, math.nan))
    report = replace(make_report(NAMES), splits=[split], history=None)
    page = Page(render(report))
    cells = [attributes for tag, attributes in page.tags if tag == "td" and "number" in (attributes.get("class") or "")]
    undefined = [cell for cell in cells if "none" in (cell["class"] or "")]
    # All metrics of all attributes, and of the row of means, which has no support here.
    assert len(undefined) == len(METRICS) * (len(NAMES) + 1) + 1
    assert not any("data-value" in cell for cell in undefined)
    assert page.text.count("n/a") >= len(undefined)
    assert "nan" not in " ".join(page.text).lower()


def test_missing_summary_and_columns_show_as_undefined() -> None:
    split = SplitReport("test", [{"attribute": "Bald"}], {})
    text = " ".join(Page(render(replace(make_report(NAMES), splits=[split]))).text)
    assert "n/a" in text and "Landmark error" not in text
    with_landmarks = replace(split, summary={"landmark_nme": 0.043})
    assert "4.3\u202f%" in render(replace(make_report(NAMES), splits=[with_landmarks]))


@pytest.mark.parametrize("epochs", [0, 1, 2, 500])
def test_any_number_of_epochs(epochs: int) -> None:
    page = Page(render(make_report(NAMES, epochs)))
    assert ("Learning curves" in page.text) == (epochs > 0)


def test_history_may_have_gaps_or_nothing() -> None:
    epochs = [0, 1, 2]
    gaps = History(epochs, {"Bald": [math.nan, 0.4, math.nan]}, {"Bald": [1.0] * 3}, {"val/loss": [None, 0.5, None]})
    page = Page(render(replace(make_report(NAMES), history=gaps)))
    paths = [attributes["d"] or "" for tag, attributes in page.tags if tag == "path"]
    assert paths and all(path.startswith("M") and "nan" not in path for path in paths)
    nothing = History(epochs, {"Bald": [math.nan] * 3}, {}, {"val/loss": [None] * 3})
    page = Page(render(replace(make_report(NAMES), history=nothing)))
    assert not {"Learning curves", "Decision threshold"} & set(page.text)
    with pytest.raises(ValueError, match=r"'val/loss' has 2 values for 3 epochs"):
        History(epochs, {}, {}, {"val/loss": [0.1, 0.2]})


def test_empty_report() -> None:
    text = " ".join(Page(render(ReportData("A run", "", {}, []))).text)
    assert "No split was evaluated." in text and "Faces" not in text and "Warnings" not in text
    Page(render(ReportData("A run", "", {}, [SplitReport("test", [], {})])))


def test_a_hundred_attributes_stay_light() -> None:
    names = [f"Attribute_{i:03d}" for i in range(100)]
    html = render(replace(make_report(names, epochs=200), grids={}))
    assert len(html.encode()) < 2_000_000
    page = Page(html)
    assert all(name in page.text for name in names)


def test_worse_than_constant_is_marked() -> None:
    bars = [charts.Bar("up", 3.0, ""), charts.Bar("down", -2.0, ""), charts.Bar("none", None, "")]
    svg = charts.bar_chart(bars, "gain")
    assert svg.count('class="bar bad"') == 1
    assert "+3.0" in svg and "\u22122.0" in svg and "n/a" in svg
    report = replace(make_report(NAMES), splits=[make_split(NAMES, fixed={"gain": -0.01})])
    assert "The model beats it on 0 of 6 attributes and is worse on 6." in " ".join(Page(render(report)).text)


def test_names_at_the_lines_ends_do_not_overlap() -> None:
    lines = [charts.Line(f"line {i}", [0.5, 0.5 + i * 1e-4], colour=i) for i in range(6)]
    svg = charts.line_chart([0, 1], lines, "close")
    places = sorted(float(y) for y in re.findall(r'<text class="name c\d" x="100.00%" y="([\d.]+)"', svg))
    assert len(places) == 6 and places[0] >= 0 and places[-1] <= 260
    assert min(np.diff(places)) >= 15 - 1e-6


def test_extremes_name_nothing_twice() -> None:
    assert charts.extremes([0.1, math.nan, 0.9, 0.5], count=3) == ([2, 3, 0], [])
    assert charts.extremes([0.1, 0.2, 0.3, 0.4], count=1) == ([3], [0])


def test_thumbnails_are_small_and_inside() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (500, 400, 3), dtype=np.uint8)
    face = GridImage(noise[:, ::-1], "a.jpg", [("Bald", 0.9, 0)] * 7, 1, 8)
    page = Page(render(replace(make_report(NAMES), grids={"Worst": [face]})))
    (source,) = [attributes["src"] or "" for tag, attributes in page.tags if tag == "img"]
    picture = Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2])))
    assert picture.format == "JPEG" and max(picture.size) == 176
    assert "and 3 more" in page.text and "1 of 8 right" in page.text


def test_csv_round_trip(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"attribute": 'a,"b"', "support": np.int64(7), "f1": np.float64(0.1) + 0.2, "ece": math.nan},
        {"attribute": "c", "support": 0, "f1": None, "ece": np.float32(0.5), "later": True},
    ]
    path = tmp_path / "report" / "attributes.csv"
    write_split_csv(rows, path)
    with path.open(newline="", encoding="utf-8") as file:
        first, second = csv.DictReader(file)
    assert list(first) == ["attribute", "support", "f1", "ece", "later"]
    assert first == {"attribute": 'a,"b"', "support": "7", "f1": repr(0.1 + 0.2), "ece": "", "later": ""}
    assert second == {"attribute": "c", "support": "0", "f1": "", "ece": "0.5", "later": "True"}


def test_json_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    path.write_text("old")
    values = [math.inf, np.bool_(True)]
    write_summary_json({"f1": math.nan, "ece": np.float64(0.1), "seed": np.int64(3), "list": values, "at": path}, path)
    assert json.loads(path.read_text()) == {"f1": None, "ece": 0.1, "seed": 3, "list": [None, True], "at": str(path)}
    assert [file.name for file in tmp_path.iterdir()] == ["summary.json"]


def test_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "summary.json"
    write_summary_json({"accuracy": 0.9}, path)

    def refuse(*_: object) -> None:
        raise OSError("full")

    monkeypatch.setattr("os.replace", refuse)
    with pytest.raises(OSError, match="full"):
        write_summary_json({"accuracy": 0.1}, path)
    assert json.loads(path.read_text()) == {"accuracy": 0.9}
    assert [file.name for file in tmp_path.iterdir()] == ["summary.json"]


def test_report_needs_no_torch() -> None:
    code = "import sys, faceattr_lightning.report; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
