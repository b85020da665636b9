"""The page: its content, what is left out, and that nothing in a report becomes mark-up."""

from __future__ import annotations

import re
import sys
from html.parser import HTMLParser

import pytest

from bench_reports import hostile_report, labelled_report, minimal_report, random_inputs_report
from rnp_deploy.benchmarking.html_report import html_from_report
from rnp_deploy.benchmarking.report import RANDOM_STAMP, DecisionReport, Expected
from rnp_deploy.errors import MissingRuntimeError


class Page(HTMLParser):
    """Its text, its tags with their attributes, and the text of every element of a name."""

    def __init__(self, html):
        super().__init__()
        self.html = html
        self.tags, self.text, self.elements, self._open = [], [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._open.append((tag, []))

    def handle_endtag(self, tag):
        while self._open:
            name, text = self._open.pop()
            self.elements.append((name, " ".join(" ".join(text).split())))
            if name == tag:
                break

    def handle_data(self, data):
        if not any(tag == "style" for tag, _ in self._open):
            self.text.append(data)
            for _, text in self._open:
                text.append(data)

    def of(self, *names):
        return [text for name, text in self.elements if name in names]

    def cells(self, begins):
        """Of the first table row with this first cell."""
        rows = [text for text in self.of("tr") if text.startswith(begins)]
        return rows[0]


@pytest.fixture(scope="module")
def full():
    return Page(html_from_report(labelled_report()))


@pytest.fixture(scope="module")
def hostile():
    return Page(html_from_report(hostile_report()))


@pytest.fixture(scope="module")
def random():
    return Page(html_from_report(random_inputs_report()))


def test_the_same_report_gives_the_same_page(full):
    assert html_from_report(labelled_report()) == full.html


def test_sections_come_in_the_order_a_reader_asks(full):
    assert full.of("h2") == [
        "Contenders", "Latency", "Decisions", "Balance", "Pieces", "Load, MLPerf-style: server", "Batches", "Energy",
        "Images", "How it was measured",
    ]  # fmt: skip


def test_sections_without_data_are_left_out():
    page = Page(html_from_report(minimal_report()))
    assert page.of("h2") == ["Contenders", "Decisions", "How it was measured"]
    assert page.of("svg", "figure", "img") == [] and "None" not in " ".join(page.text)
    assert "no Expected" not in page.text and "for one image a run only" in " ".join(page.text)
    nothing = DecisionReport(counts=(), entropy_bits=(), distinct_paths=0, path_entropy_bits=0.0, paths=())
    bare = minimal_report().model_copy(
        update={"contenders": (), "decisions": nothing, "expected": Expected()}
    )
    assert Page(html_from_report(bare)).of("h2") == ["How it was measured"]


@pytest.mark.parametrize(
    ("begins", "row"),
    [
        ("controller", "controller 3.210 3.178–3.258 5.149 5.097–5.226 5.982"),  # noqa: RUF001
        ("dense network", "100.0 1.00 1.00 97.80 178.6 0.0616"),
        ("mine.onnx", "12.14 12.02–12.32 too few too few 11.04 80 1.2 – 0.51 – 95.00 90.91 –"),  # noqa: RUF001
        ("pieces", "pieces 2.550 77.7 inside the branches"),
        ("agent", "agent 0.310 9.5 inside the agent; nodes within pieces, by the runtime's profiler"),
        ("sum", "sum 3.280 100 whole run: 3.210 ms; the host's share, read-back and dispatch: 11.3 %"),
        ("features.9", "features.9 59.7 20.8 16.8 2.7 1.49 16, 32, 48, 64"),
        ("4,3,4,3,2,1,3,4,1,3,2,1", "90 9.0 40.0 3.000"),
        ("3,4,3,1,2,4,1,4,3,2,4,4", "34 3.4 56.0 –"),  # noqa: RUF001
        ("0.003", "50.00 49.00–51.00 96.59 95.99–97.19 3.000 2.970–3.045 3.313 3.575"),  # noqa: RUF001
        ("branch of features.3", "2 1,3 0.364 22.25 8.100 1,4 0.236"),
        ("controller 400.0", "400 of 600 stopped early 60.0 no"),
        ("round-up 16", "round-up 16 45.30 2.831 353.2 90"),
        ("static 25 %; static 50 %", "option 1 held; mine.onnx – – RAPL counters cannot be read"),  # noqa: RUF001
        ("manifest_sha256", "ab" * 32),
        ("cpu.model", "AMD EPYC 7B13"),
        ("cpu.governor", "null"),
        ("threads [", "threads [1, 2]"),
        ("min_runs", "min_runs 100"),
        ("agent step", "agent step 12 – 0.0300 3.300 0.100"),  # noqa: RUF001
    ],
)
def test_rows(full, begins, row):
    assert row in full.cells(begins)


@pytest.mark.parametrize(
    "words",
    [
        "a speed-up of 1.74 with 43.0 % of the MACs",
        "1.74 × actual speed-up",  # noqa: RUF001
        "0.75 actual ÷ theoretical speed-up",
        "97.20 % accuracy; dense 97.80 %",
        "coefficient of variation is 4.1 %",
        "expected ÷ measured: 0.969",
        "Different paths: 231; entropy of the paths: 6.91 bits",
        "13 of 122 pieces are not faster",
        "Not an MLPerf result",
        "controller: 200.0 images/s is the highest rate tried that held p99 within 12.00 ms",
        "dense network: no rate tried held p99",
        "regroup pays over serial from a batch of 2 on",
        "round-up was not faster than regroup from any size on",
        "image 0 says aeroplane, rightly",
        "image 20 says cat label: frog",
        "rnp-bench vgg16-set --data folder:photos",
    ],
)
def test_words(full, words):
    assert words in " ".join(" ".join(full.text).split())


def test_warnings_stand_before_the_results(full):
    text = " ".join(full.text)
    assert text.index("Warnings") < text.index("Contenders")


def test_heat_is_the_share_and_can_be_read_on():
    decisions = DecisionReport(
        counts=((10, 0), (1, 1, 2)),
        entropy_bits=(0.0, 1.5),
        distinct_paths=3,
        path_entropy_bits=1.0,
        paths=(),
    )
    subject = labelled_report(2, 4).subject
    report = minimal_report().model_copy(update={"decisions": decisions, "subject": subject})
    page = Page(html_from_report(report))
    styles = [attrs["style"] for tag, attrs in page.tags if tag == "td" and "style" in attrs]
    assert styles == [
        "background:#0072b2;color:#fff", "background:#ffffff;color:#111", "background:#bfdcec;color:#111",
        "background:#bfdcec;color:#111", "background:#80b8d8;color:#111",
    ]  # fmt: skip
    assert "features.0 100.0 0.0 0.00" in page.cells("features.0")
    assert "convolution option 1 option 2 option 3 entropy" in page.cells("convolution")


def test_images_say_how_they_were_taken(full, random):
    pictures = [attrs for tag, attrs in full.tags if tag == "img"]
    assert len(pictures) == 15, "one has no thumbnail"
    assert all(one["src"].startswith("data:image/png;base64,") and one["alt"] for one in pictures)
    assert "label:" not in " ".join(random.of("li")) and "rightly" not in " ".join(random.of("li"))


def test_random_inputs_are_stamped_on_page_tables_and_pictures(full, random):
    page = random
    assert RANDOM_STAMP in " ".join(page.of("header"))
    tables, figures = page.of("caption"), page.of("figcaption")
    assert len(tables) == len(page.of("table")) > 10 and len(figures) == len(page.of("figure")) == 9
    assert all(RANDOM_STAMP in text for text in [*tables, *figures, *page.of("svg")])
    assert all(RANDOM_STAMP in attrs["alt"] for tag, attrs in page.tags if tag == "img")
    assert RANDOM_STAMP not in " ".join(full.text)


def test_an_untrained_agent_is_said(full):
    report = minimal_report()
    untrained = report.model_copy(
        update={"subject": report.subject.model_copy(update={"agent_trained": False})}
    )
    assert "the agent is not trained" in " ".join(Page(html_from_report(untrained)).of("header"))
    assert "not trained" not in " ".join(full.text)


def test_nothing_in_a_report_becomes_mark_up(full, hostile):
    known = {tag for tag, _ in full.tags}
    assert {tag for tag, _ in hostile.tags} == known and "script" not in known
    assert not any(name.startswith("on") for _, attrs in hostile.tags for name in attrs)
    assert "<script>alert(1)</script>" in " ".join(hostile.text)


@pytest.mark.parametrize("name", ["full", "hostile"])
def test_the_page_needs_nothing_beside_it(request, name):
    page = request.getfixturevalue(name)
    policies = [attrs["content"] for tag, attrs in page.tags if attrs.get("http-equiv")]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]
    links = [attrs[name] for _, attrs in page.tags for name in ("src", "href", "xlink:href") if name in attrs]
    assert all(link.startswith(("data:image/png;base64,", "#")) for link in links)
    assert not any(tag in ("link", "script", "iframe", "object") for tag, _ in page.tags)
    assert not re.search(r"@import|url\((?!#)", page.html)
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))


def test_tables_have_captions_and_headings(full):
    assert len(full.of("caption")) == len(full.of("table")) == len(full.of("thead"))
    scopes = {attrs.get("scope") for tag, attrs in full.tags if tag == "th"}
    assert scopes == {"row", "col"}
    assert all(attrs.get("aria-label") for tag, attrs in full.tags if tag == "svg")


@pytest.mark.parametrize("module", ["jinja2", "matplotlib"])
def test_what_is_missing_is_named(monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingRuntimeError, match=r"rnp-deploy\[bench\]"):
        html_from_report(minimal_report())
