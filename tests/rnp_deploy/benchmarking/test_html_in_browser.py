"""The page in a real browser: it renders, asks for nothing, reports nothing, and fits a phone."""

from __future__ import annotations

import shutil
from functools import cache

import pytest

from bench_reports import hostile_report, labelled_report, minimal_report, random_inputs_report
from rnp_deploy.benchmarking.html_report import html_from_report

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
REPORTS = {
    "labelled": (labelled_report, 7),
    "random": (random_inputs_report, 7),
    "minimal": (minimal_report, 0),
    "hostile": (hostile_report, 7),
}
SIZES = "all => all.map(one => { const box = one.getBoundingClientRect(); return [box.width, box.height] })"
# Text that ends outside of its drawing would be cut off.
CUT_OFF = """charts => charts.flatMap(chart => {
    const box = chart.getBoundingClientRect()
    return [...chart.querySelectorAll("text")].filter(text => {
        const own = text.getBoundingClientRect()
        return own.left < box.left - 2 || own.right > box.right + 2 || own.top < box.top - 2 || own.bottom > box.bottom + 2
    }).map(text => text.textContent)
})"""


@pytest.fixture(scope="module")
def browser():
    if BROWSER is None:
        pytest.skip("no chromium on PATH")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as running:
        started = running.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield started
        started.close()


@cache
def html(name):
    return html_from_report(REPORTS[name][0]())


@pytest.fixture
def opened(browser, tmp_path):
    """Name of a report and width → the page, and what it asked for and complained of."""
    pages = []

    def open_page(name, width, scheme="light"):
        file = tmp_path / "report.html"
        file.write_text(html(name), "utf-8")
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        pages.append(page)
        seen = []
        page.on("console", lambda message: seen.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: seen.append(f"error: {error}"))
        page.on("dialog", lambda dialog: seen.append(f"dialog: {dialog.message}") or dialog.dismiss())
        # Thumbnails are requests for data:, which no network sees.
        page.on("request", lambda asked: None if asked.url.startswith("data:") else seen.append(asked.url))
        page.goto(file.as_uri(), wait_until="load")
        return page, seen, file.as_uri()

    yield open_page
    for page in pages:
        page.close()


@pytest.mark.parametrize("name", REPORTS)
def test_it_renders_without_a_word_and_asks_for_nothing(opened, name):
    page, seen, address = opened(name, 1280)
    assert seen == [address]
    sizes = page.eval_on_selector_all("svg", SIZES)
    assert len(sizes) == REPORTS[name][1]
    assert all(width > 300 and height > 150 for width, height in sizes)
    assert page.eval_on_selector_all("svg", CUT_OFF) == []
    broken = page.eval_on_selector_all("img", "all => all.filter(one => one.naturalWidth === 0).length")
    assert broken == 0
    assert page.title() == "rnp-bench: vgg16-set"


@pytest.mark.parametrize("name", REPORTS)
@pytest.mark.parametrize("width", [1280, 400])
def test_it_scrolls_in_one_direction_only(opened, name, width):
    page, _, _ = opened(name, width)
    page.eval_on_selector_all("details", "all => all.forEach(one => one.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.evaluate("document.body.scrollWidth") <= width


def test_the_contenders_fit_a_screen(opened):
    page, _, _ = opened("labelled", 1280)
    widths = page.eval_on_selector_all(".wide", "all => all.map(one => one.scrollWidth - one.clientWidth)")
    assert len(widths) > 5 and max(widths) == 0


def test_charts_stay_on_white_where_the_page_is_dark(opened):
    page, _, _ = opened("labelled", 1280, "dark")
    colours = "one => getComputedStyle(one).backgroundColor"
    assert page.eval_on_selector("svg", colours) == "rgb(255, 255, 255)"
    assert page.eval_on_selector("body", colours) == "rgb(22, 23, 24)"
