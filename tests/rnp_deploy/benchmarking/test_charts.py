"""Charts: what is drawn, that it repeats, and that several stand in one page."""

from __future__ import annotations

import re
import sys
import warnings
from itertools import pairwise
from xml.etree import ElementTree

import pytest

from bench_reports import hostile_report, labelled_report, minimal_report, random_inputs_report
from rnp_deploy.benchmarking.charts import charts_from_report
from rnp_deploy.benchmarking.measures import Latency
from rnp_deploy.benchmarking.report import RANDOM_STAMP, Balance, BatchSweep
from rnp_deploy.errors import MissingRuntimeError

NAMES = ["latencies", "split", "balance", "macs", "roofline", "load", "batches"]
BLUE, RED, GREEN = "#0072b2", "#d55e00", "#009e73"


@pytest.fixture(scope="module")
def charts():
    return charts_from_report(labelled_report())


def texts(chart):
    return [node.text for node in ElementTree.fromstring(chart.svg).iter("{http://www.w3.org/2000/svg}text")]


def drawn(**parts):
    """Of a report with nothing else, since each chart takes its time."""
    return charts_from_report(minimal_report().model_copy(update=parts))


def test_a_full_report_has_every_chart(charts):
    assert list(charts) == NAMES


def test_nothing_is_drawn_without_data():
    assert charts_from_report(minimal_report()) == {}
    empty = Balance(points=(), dense_p50_ms=None, dense_accuracy=None)
    assert drawn(balance=empty, batches=BatchSweep(points=(), pays_from=())) == {}


def test_the_same_report_gives_the_same_bytes_whatever_the_style(charts):
    import matplotlib as mpl

    with mpl.rc_context({"font.size": 20, "lines.linewidth": 9, "svg.fonttype": "path"}):
        again = charts_from_report(labelled_report())
        assert mpl.rcParams["font.size"] == 20
    assert {name: chart.svg for name, chart in again.items()} == {n: chart.svg for n, chart in charts.items()}


@pytest.mark.parametrize("report", [labelled_report(), hostile_report()], ids=["labelled", "hostile"])
def test_each_is_well_formed_labelled_and_has_ids_of_its_own(report):
    seen = set()
    for name, chart in charts_from_report(report).items():
        root = ElementTree.fromstring(chart.svg)
        assert (root.get("role"), root.get("aria-label")) == ("img", chart.description)
        assert root.get("viewBox") and root.get("width") is root.get("height") is None
        ids = {node.get("id") for node in root.iter()} - {None}
        assert ids and all(one.startswith(f"{name}-") for one in ids) and not ids & seen
        seen |= ids
        used = re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', re.sub(r">[^<]*<", "><", chart.svg))
        assert used and {a or b for a, b in used} <= ids
        assert "http" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", chart.svg)


def test_text_stays_text_and_names_are_cut_not_parsed():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        chart = charts_from_report(hostile_report())["latencies"]
    assert "<script>alert(1)….conv.blocks.co" in texts(chart)
    assert "<script" not in chart.svg
    first, *others = labelled_report().contenders
    named = first.model_copy(update={"name": "$x_1$\n\x00"})
    assert "$x_1$��" in texts(drawn(contenders=(named, *others))["latencies"])


def test_random_inputs_are_stamped_on_every_picture(charts):
    for chart in charts_from_report(random_inputs_report()).values():
        assert RANDOM_STAMP in texts(chart)
        assert chart.description.endswith(RANDOM_STAMP)
    assert not any(RANDOM_STAMP in chart.svg for chart in charts.values())


def test_each_kind_keeps_its_colour(charts):
    for name in ("latencies", "load"):
        assert BLUE in charts[name].svg and RED in charts[name].svg
    statics = [one for one in labelled_report().contenders if one.kind == "static"]
    held = [one.model_copy(update={"kind": "held", "name": f"held {one.name}"}) for one in statics]
    svg = drawn(contenders=(*statics, *held))["latencies"].svg
    lines = re.findall(
        r'style="fill: none; (?:stroke-dasharray: ([^;]+); .*?)?stroke: (#\w{6}); stroke-width: 1.3', svg
    )
    greys = ["#595959", "#8c8c8c", "#bfbfbf"]
    assert len(set(lines)) == 6, "a line of its own for each"
    assert sorted({colour for _, colour in lines}) == greys
    (mine,) = [one for one in labelled_report().contenders if one.kind == "baseline"]
    assert GREEN in drawn(contenders=(mine,))["latencies"].svg


def test_a_long_legend_makes_the_picture_higher(charts):
    few = drawn(contenders=labelled_report().contenders[:2])["latencies"]
    heights = [
        float(ElementTree.fromstring(one.svg).attrib["viewBox"].split()[3])
        for one in (few, charts["latencies"])
    ]
    assert heights[1] > heights[0] + 40


def test_latencies_are_logarithmic_only_where_they_differ_widely():
    controller = labelled_report().contenders[0]

    def of(highest):
        latency = Latency(runs=9, mean_ms=5.0, typical_ms=5.0, quantiles_ms=(1.0, 2.0, highest))
        return texts(drawn(contenders=(controller.model_copy(update={"latency": latency}),))["latencies"])

    assert {"1", "2", "5", "10", "20", "50", "100"} <= set(of(100.0))
    assert {"1", "3", "5", "7"} <= set(of(7.5))
    assert "10000" in of(1e5)
    with_zero = Latency(runs=9, mean_ms=5.0, typical_ms=5.0, quantiles_ms=(0.0, 2.0, 100.0))
    assert drawn(contenders=(controller.model_copy(update={"latency": with_zero}),))


def test_the_split_says_ms_and_percent(charts):
    assert {"pieces 2.550 ms, 77.7 %", "regrouping 0.0500 ms, 1.5 %", "3.210 ms"} <= set(
        texts(charts["split"])
    )
    split = labelled_report().split
    assert split is not None
    nothing = split.model_copy(update={"sum_ms": 0.0})
    assert "split" not in drawn(split=nothing)


def points(chart, style):
    """Corners of the first path with this in its style, x and y downwards."""
    nodes = ElementTree.fromstring(chart.svg).iter("{http://www.w3.org/2000/svg}path")
    path = next(node.get("d") for node in nodes if style in (node.get("style") or ""))
    return [tuple(map(float, pair)) for pair in re.findall(r"([\d.]+) ([\d.]+)", path)]


def test_the_parts_of_the_split_stand_beside_each_other(charts):
    colours = (BLUE, "#e69f00", "#cc79a7", GREEN, "#767676")
    ends = [[x for x, _ in points(charts["split"], f"fill: {colour}")] for colour in colours]
    for before, after in pairwise(ends):
        assert min(after) == pytest.approx(max(before), abs=1e-3)
    whole = [x for x, _ in points(charts["split"], "fill: #444444")]
    assert min(whole) == min(ends[0]) and max(whole) < max(ends[-1])


def test_distributions_reach_from_none_to_all():
    latency = Latency(runs=9, mean_ms=5.0, typical_ms=5.0, quantiles_ms=(1.0, 2.0, 3.0))
    (controller,) = minimal_report().contenders
    chart = drawn(contenders=(controller.model_copy(update={"latency": latency}),))["latencies"]
    (_, none), (_, half), (_, all_runs) = points(chart, f"stroke: {BLUE}")
    spines = [y for _, y in points(chart, "stroke: #000000; stroke-width: 0.8; stroke-linejoin: miter")]
    assert (none, all_runs) == (max(spines), min(spines)) and half == pytest.approx((none + all_runs) / 2)


def test_balance_is_accuracy_over_latency_or_latency_over_penalty(charts):
    assert {"accuracy, %", "p50, ms", "dense network", "0.001"} <= set(texts(charts["balance"]))
    assert "2.400 ms, 93.96 %" in charts["balance"].description
    assert "0.003" not in texts(charts["balance"]), "not a Pareto point"
    assert "3.000 ms" not in charts["balance"].description, "not a Pareto point"
    without = charts_from_report(random_inputs_report())["balance"]
    assert {"penalty", "p50, ms", "dense network", "0.001"} <= set(texts(without))
    assert "accuracy, %" not in texts(without)
    assert "90.0 % at 0 and 30.0 % at 0.1" in charts["macs"].description


def test_the_roofline_has_a_point_a_piece_with_a_rate(charts):
    found = charts["roofline"]
    assert "121 pieces" in found.description and "13 are not faster" in found.description
    assert {"branch", "agent step", "not faster than the next wider"} <= set(texts(found))
    assert any(text.startswith("59.02 GMAC/s: the highest here") for text in texts(found))
    pieces = labelled_report().pieces
    assert "roofline" not in drawn(pieces=pieces[-1:]), "it has no MACs"
    unknown = pieces[0].model_copy(update={"intensity": None})
    assert "roofline" not in drawn(pieces=(unknown,))
    assert "agent step" not in texts(drawn(pieces=pieces[:5])["roofline"])


def test_load_is_drawn_from_two_rates_on(charts):
    load = labelled_report().load
    assert load is not None
    assert "SLO 12.00 ms" in texts(charts["load"])
    assert "load" not in drawn(load=load.model_copy(update={"runs": load.runs[:1]}))
    offline = tuple(run.model_copy(update={"offered_qps": None}) for run in load.runs)
    assert "load" not in drawn(load=load.model_copy(update={"runs": offline}))


def test_lines_are_of_the_numbers_they_are_named_after(charts):
    """Heights of points are in proportion to the values; both axes are linear."""
    report = labelled_report()
    dense = [
        (run.offered_qps, run.latency.p99.ms) for run in report.load.runs if run.contender == "dense network"
    ]
    regroup = [
        (point.batch, point.ms_per_image) for point in report.batches.points if point.policy == "regroup"
    ]
    macs = [(point.penalty, point.macs_share) for point in report.balance.points]
    for name, colour, values in (("load", RED, dense), ("batches", BLUE, regroup), ("macs", BLUE, macs)):
        heights = [-y for _, y in points(charts[name], f"fill: none; stroke: {colour}")]
        assert len(heights) == len(values) > 3
        between = [
            [(y - each[0]) / (each[-1] - each[0]) for y in each]
            for each in (heights, [value for _, value in sorted(values)])
        ]
        assert between[0] == pytest.approx(between[1], abs=1e-3), name


def test_the_load_is_drawn_by_p99():
    load = labelled_report().load
    assert load is not None
    runs = []
    for run, ms in zip(load.runs, (1.0, 5.0, 2.0, 7.0), strict=False):
        p99 = run.latency.p99.model_copy(update={"ms": ms})
        runs.append(run.model_copy(update={"latency": run.latency.model_copy(update={"p99": p99})}))
    heights = [
        -y
        for _, y in points(
            drawn(load=load.model_copy(update={"runs": tuple(runs)}))["load"], f"stroke: {BLUE}"
        )
    ]
    assert sorted(range(4), key=heights.__getitem__) == [0, 2, 1, 3]


def marks(chart, style):
    """Where marks of a style stand, x and y upwards."""
    nodes = ElementTree.fromstring(chart.svg).iter("{http://www.w3.org/2000/svg}use")
    return [
        (float(n.attrib["x"]), -float(n.attrib["y"])) for n in nodes if style in n.attrib.get("style", "")
    ]


def test_points_stand_where_their_numbers_are():
    report = labelled_report()
    one, two = (
        report.pieces[0].model_copy(update={"intensity": x, "gmacs_per_s": y}) for x, y in ((1, 10), (2, 5))
    )
    first, second = marks(drawn(pieces=(one, two))["roofline"], f"fill: {BLUE}")[:2]  # then the legend
    assert first[0] < second[0] and first[1] > second[1]
    assert report.balance is not None
    fast, slow = report.balance.points[-1], report.balance.points[0]
    balance = report.balance.model_copy(update={"points": (slow, fast.model_copy(update={"pareto": False}))})
    chart = drawn(balance=balance)["balance"]
    pareto, other = marks(chart, f"fill: {BLUE}; stroke")[0], marks(chart, "fill: #ffffff; stroke")[0]
    dense = marks(chart, f"fill: {RED}; stroke")[0]
    assert other[0] < pareto[0] < dense[0] and other[1] < dense[1] < pareto[1]


def test_batches_are_marked_at_the_sizes_that_were_swept(charts):
    assert {"1", "2", "4", "8", "16", "regroup", "serial", "round-up", "dense"} <= set(
        texts(charts["batches"])
    )


def test_without_matplotlib_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingRuntimeError, match=r"rnp-deploy\[bench\]"):
        charts_from_report(minimal_report())
