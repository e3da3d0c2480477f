"""The report's page in a real browser, headless: a Chromium of the system, steered by playwright."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from faceattr_lightning.data import synthetic_faces
from faceattr_lightning.report import GridImage, ReportData, render
from tests.report.pages import NAMES, make_report, make_split

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")

PHONE, DESK = (390, 844), (1280, 900)
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A running browser; the tests are skipped where there is none."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("needs a browser, and there is no chromium in the PATH; on Debian: apt-get install chromium")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=program, args=FLAGS)
        yield browser
        browser.close()


@dataclass
class Opened:
    """A page, and what it said and asked for."""

    page: Any
    said: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@pytest.fixture
def open_page(browser: Any, tmp_path: Path) -> Iterator[Any]:
    """Return a function that opens a report at a size and in a colour scheme."""
    contexts = []

    def opened(report: ReportData, size: tuple[int, int] = DESK, scheme: str = "light") -> Opened:
        path = tmp_path / "report.html"
        path.write_text(render(report), encoding="utf-8")
        context = browser.new_context(viewport={"width": size[0], "height": size[1]}, color_scheme=scheme)
        contexts.append(context)
        result = Opened(context.new_page())
        result.page.on("console", lambda message: result.said.append(message.text))
        result.page.on("pageerror", lambda error: result.said.append(str(error)))
        result.page.on("request", lambda request: result.requests.append(request.url))
        result.page.goto(path.as_uri())
        return result

    yield opened
    for context in contexts:
        context.close()


@pytest.fixture(scope="module")
def report() -> ReportData:
    """A report with every section, on drawn faces."""
    people = synthetic_faces.sample_people(6, seed=0)
    pixels, _ = synthetic_faces.draw_faces(people, 0, range(6))
    drawn = make_report(NAMES)
    faces = [
        GridImage(image, f"{row:06d}", [("Bald", 0.9, 0), ("Young", 0.2, 1)], 3, 5) for row, image in enumerate(pixels)
    ]
    return ReportData(**{**vars(drawn), "grids": {"Best": faces, "Worst": faces[::-1]}})


def column(page: Any, table: int, index: int) -> list[str]:
    """Return the texts of a column of one of the tables."""
    cells = page.locator("table").nth(table).locator(f"tbody tr > :nth-child({index + 1})")
    return [str(text) for text in cells.all_text_contents()]


def number(text: str) -> float:
    return float(text.replace("\u2212", "-"))


def test_a_click_sorts_and_another_turns_the_order(open_page: Any, report: ReportData) -> None:
    page = open_page(report).page
    head = page.locator("table").nth(0).locator("thead button")
    head.nth(0).click()
    assert column(page, 0, 0) == sorted(NAMES)
    gain = head.all_text_contents().index("Gain")
    head.nth(gain).click()
    shown = [number(text) for text in column(page, 0, gain)]
    assert shown == sorted(shown, reverse=True) and len(set(shown)) > 1
    assert page.locator("th[aria-sort]").count() == 1
    assert page.locator("th[aria-sort=descending] button").text_content() == "Gain"
    head.nth(gain).click()
    assert [number(text) for text in column(page, 0, gain)] == shown[::-1]
    assert page.locator("th[aria-sort=ascending]").count() == 1


def test_what_is_not_defined_stays_last(open_page: Any, report: ReportData) -> None:
    split = make_split(NAMES)
    split.attributes[2]["f1"] = None
    page = open_page(ReportData(**{**vars(report), "splits": [split]})).page
    head = page.locator("table").nth(0).locator("thead button")
    f1 = head.all_text_contents().index("F1")
    for _ in range(2):
        head.nth(f1).click()
        assert column(page, 0, f1)[-1] == "n/a" and column(page, 0, 0)[-1] == NAMES[2]


def test_slices_begin_with_the_largest_gap_and_are_sorted(open_page: Any, report: ReportData) -> None:
    page = open_page(report).page
    titles = page.locator("table").evaluate_all("tables => tables.map(t => t.parentElement.ariaLabel)")
    place = titles.index("largest gaps between the sides of a slice")
    gaps = [number(text) for text in column(page, place, 3)]
    assert gaps == sorted(gaps, reverse=True) and gaps[0] == round(100 * report.gaps[0]["gap"], 1)
    head = page.locator("table").nth(place).locator("thead button")
    head.nth(6).click()
    supports = [number(text) for text in column(page, place, 6)]
    assert supports == sorted(supports, reverse=True) and min(supports) >= report.least_support
    # The whole list is folded away until it is asked for.
    folded = page.locator("table").nth(titles.index("every attribute by race"))
    assert not folded.is_visible()
    page.get_by_text("Every attribute by race").click()
    assert folded.is_visible() and folded.locator("tbody tr").count() == 4 * len(NAMES)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESK, PHONE], ids=["desk", "phone"])
def test_it_is_quiet_fetches_nothing_and_fits(
    open_page: Any, report: ReportData, size: tuple[int, int], scheme: str
) -> None:
    opened = open_page(report, size, scheme)
    page = opened.page
    for fold in page.locator("details").all():
        fold.evaluate("node => { node.open = true }")
    for button in page.locator("thead button").all():
        button.evaluate("node => node.click()")
    # Every picture was decoded, which lazy ones are only where they are seen.
    for image in page.locator("img").all():
        image.scroll_into_view_if_needed()
    page.wait_for_function("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    assert opened.said == []
    assert [url for url in opened.requests if not url.startswith("data:image/jpeg")] == [page.url]
    assert page.evaluate("document.documentElement.scrollWidth") == size[0]
    assert page.evaluate("document.body.scrollWidth") <= size[0]


def test_wide_tables_scroll_by_themselves_on_a_phone(open_page: Any, report: ReportData) -> None:
    page = open_page(report, PHONE).page
    first = page.locator(".scroll").first
    assert first.evaluate("node => node.scrollWidth > node.clientWidth")
    first.evaluate("node => { node.scrollLeft = 200 }")
    # The names stay in sight.
    box = first.locator("tbody th").first.bounding_box()
    assert box["x"] < 40 and box["x"] + box["width"] < PHONE[0] / 2
    sizes = page.evaluate(
        "[...document.querySelectorAll('p, td, dd, li, svg text')].map(e => parseFloat(getComputedStyle(e).fontSize))"
    )
    assert min(sizes) >= 11


def luminance(colour: str) -> float:
    channels = [int(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_stand_out_in_both_themes(open_page: Any, report: ReportData, scheme: str) -> None:
    page = open_page(report, DESK, scheme).page
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (luminance(ground) > 0.5) == (scheme == "light")
    panel = page.evaluate("getComputedStyle(document.querySelector('.panel')).backgroundColor")
    chosen = {"h1": "color", ".lead": "color", ".tile p": "color", ".bad": "color", "svg text": "fill", "td": "color"}
    for selector, style in chosen.items():
        colour = page.evaluate(f"getComputedStyle(document.querySelector('{selector}'))['{style}']")
        for behind in (ground, panel):
            light, dark = sorted((luminance(colour), luminance(behind)), reverse=True)
            # What WCAG 2.1 asks of text, success criterion 1.4.3.
            assert (light + 0.05) / (dark + 0.05) >= 4.5, (selector, colour, behind)
    # Points of the diagram are as different from their ground as graphics have to be.
    fill = page.evaluate("getComputedStyle(document.querySelector('.point')).fill")
    light, dark = sorted((luminance(fill), luminance(panel)), reverse=True)
    assert (light + 0.05) / (dark + 0.05) >= 3


def test_a_hundred_attributes_are_sorted_in_one_go(open_page: Any) -> None:
    names = [f"Attribute_{index:03d}" for index in range(100)]
    opened = open_page(make_report(names, epochs=50), PHONE)
    page = opened.page
    head = page.locator("table").nth(0).locator("thead button")
    head.nth(0).click()
    head.nth(0).click()
    assert column(page, 0, 0) == names[::-1]
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE[0] and opened.said == []
    # What makes a page slow is what a browser has to lay out; what is folded away is not.
    assert page.evaluate("document.querySelectorAll('*').length") < 60_000
