"""Numbers and sentences of reports."""

from __future__ import annotations

import pytest

from bench_reports import labelled_report, minimal_report
from rnp_deploy.benchmarking.measures import Latency
from rnp_deploy.benchmarking.report_text import (
    contender_of_kind,
    number,
    options_text,
    pieces_that_do_not_pay,
    share,
    split_parts,
    summary,
    with_interval,
)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),  # noqa: RUF001
        (0.0, "0"),
        (0.000123456, "0.000123"),
        (0.05, "0.0500"),
        (0.99, "0.990"),
        (1.0, "1.000"),
        (3.21049, "3.210"),
        (99.999, "100.00"),
        (123.45, "123.5"),
        (1234567.8, "1234568"),
    ],
)
def test_numbers_have_the_digits_that_matter(value, text):
    assert number(value) == text


def test_shares_are_percent():
    assert (share(0.4321), share(0.4321, 2), share(None)) == ("43.2", "43.21", "–")  # noqa: RUF001


def test_options_are_as_commands_take_them():
    assert (options_text((4, 2, 1)), options_text(None)) == ("4,2,1", "–")  # noqa: RUF001


def test_a_percentile_has_its_interval_or_too_few_runs():
    first = labelled_report().contenders[0]
    assert with_interval(first.latency.p50) == ("3.210", "3.178–3.258")  # noqa: RUF001
    assert with_interval(None) == ("too few", "")


def test_the_parts_of_the_split_add_up():
    split = labelled_report().split
    assert split is not None
    parts = split_parts(split)
    assert [name for name, *_ in parts] == ["pieces", "agent", "read-back", "regrouping", "dispatch"]
    assert [ms for _, ms, _ in parts] == [2.55, 0.31, 0.12, 0.05, 0.25]


def test_the_worst_piece_comes_first_with_the_wider_one():
    report = labelled_report()
    slow = pieces_that_do_not_pay(report)
    assert len(slow) == sum(piece.not_faster_than is not None for piece in report.pieces) > 5
    assert all(wider is not None and wider.options == piece.not_faster_than for piece, wider in slow)
    assert all(wider is not None and wider.step == piece.step for piece, wider in slow)
    ratios = [wider.p50_ms / piece.p50_ms for piece, wider in slow if wider]
    assert ratios == sorted(ratios)


def test_a_piece_whose_wider_one_was_not_timed_is_kept():
    report = labelled_report()
    alone = report.pieces[0].model_copy(update={"not_faster_than": (9, 9)})
    assert pieces_that_do_not_pay(report.model_copy(update={"pieces": (alone,)})) == [(alone, None)]


def test_the_summary_says_speed_and_accuracy():
    assert summary(labelled_report()) == (
        "The controller takes 3.210 ms an image (median; 95 % interval 3.178–3.258), the dense network 5.600 ms: "  # noqa: RUF001
        "a speed-up of 1.74 with 43.0 % of the MACs, 0.75 of what the MACs promise. It is right for 97.20 % of the "
        "images, the dense network for 97.80 %."
    )


def test_the_summary_holds_the_controller_against_the_graph_a_user_would_pick():
    report = labelled_report()
    static = next(one for one in report.contenders if one.kind == "static")
    chosen = static.model_copy(update={"nearest": True, "options": (2, 1)})
    ours = next(one for one in report.contenders if one.kind == "controller")
    ratio = ours.latency.p50.ms / static.latency.p50.ms
    said = summary(report.model_copy(update={"contenders": (chosen, ours)}))
    assert said.endswith(
        f"nearest in MACs, options 2,1, takes {number(static.latency.p50.ms)} ms: the controller takes {ratio:.2f} times that."
    )
    assert "nearest" not in summary(report)


def test_the_summary_says_less_where_less_is_known():
    report = minimal_report()
    assert summary(report) == (
        "The controller takes 2.500 ms an image on average; its runs are too few for a median."
    )
    assert summary(report.model_copy(update={"contenders": ()})) == "The controller was not timed."
    full = labelled_report()
    controller = full.contenders[0].model_copy(
        update={"speedup": None, "macs_share": None, "efficiency": None, "accuracy": None}
    )
    batches = full.settings.model_copy(update={"batch": 8})
    alone = full.model_copy(update={"contenders": (controller,), "settings": batches})
    assert (
        summary(alone) == "The controller takes 3.210 ms a batch of 8 (median; 95 % interval 3.178–3.258)."  # noqa: RUF001
    )
    dense = full.contenders[1].model_copy(
        update={"latency": Latency(runs=1, mean_ms=5.0, typical_ms=5.0), "accuracy": None}
    )
    both = full.model_copy(update={"contenders": (full.contenders[0], dense)})
    assert "dense" not in summary(both)


def test_contenders_are_found_by_kind():
    report = labelled_report()
    assert contender_of_kind(report, "static") == report.contenders[2]
    assert contender_of_kind(report, "dense") == report.contenders[1]
    assert contender_of_kind(minimal_report(), "dense") is None
