"""Numbers and sentences of a report, as page and terminal show them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rnp_deploy.benchmarking.measures import Percentile
from rnp_deploy.benchmarking.report import BenchReport, ContenderReport, PieceReport, Split

__all__ = [
    "NONE",
    "contender_of_kind",
    "number",
    "options_text",
    "pieces_that_do_not_pay",
    "share",
    "split_parts",
    "summary",
    "with_interval",
]

NONE = "–"  # noqa: RUF001 - a dash, where there is no number
_MOST_DECIMALS = 6


def number(value: float | None) -> str:
    """Four digits that matter, three below 1; no exponent."""
    if value is None:
        return NONE
    if value == 0:
        return "0"
    digits = 4 if abs(value) >= 1 else 3
    decimals = digits - 1 - math.floor(math.log10(abs(value)))
    return f"{value:.{min(max(decimals, 0), _MOST_DECIMALS)}f}"


def share(value: float | None, decimals: int = 1) -> str:
    """A share as percent, without the sign."""
    return NONE if value is None else f"{100 * value:.{decimals}f}"


def with_interval(percentile: Percentile | None) -> tuple[str, str]:
    """The milliseconds and their interval; ``("too few", "")`` where there is none."""
    if percentile is None:
        return "too few", ""
    # A range of numbers is written with an en dash.
    return number(percentile.ms), f"{number(percentile.low_ms)}–{number(percentile.high_ms)}"  # noqa: RUF001


def options_text(options: Sequence[int] | None) -> str:
    """As commands take them: ``4,2,1``."""
    return NONE if options is None else ",".join(map(str, options))


def contender_of_kind(report: BenchReport, kind: str) -> ContenderReport | None:
    """The first of its kind."""
    return next((contender for contender in report.contenders if contender.kind == kind), None)


def split_parts(split: Split) -> tuple[tuple[str, float, str], ...]:
    """The five parts that add up: name, ms, and what they are."""
    return (
        ("pieces", split.pieces_ms, "inside the branches"),
        ("agent", split.agent_ms, f"inside the agent; {split.agent_source}"),
        ("read-back", split.read_back_ms, "the host reads the option and finds the next piece"),
        ("regrouping", split.regrouping_ms, "samples that part are sorted, copied together and put back"),
        ("dispatch", split.dispatch_ms, "all else: checks, inputs in, the loop, outputs out"),
    )


def pieces_that_do_not_pay(report: BenchReport) -> list[tuple[PieceReport, PieceReport | None]]:
    """Those not faster than the next wider one, each with that one, the worst first."""
    known = {(piece.step, piece.agent, piece.options): piece for piece in report.pieces}
    slow = [
        (piece, known.get((piece.step, piece.agent, piece.not_faster_than)))
        for piece in report.pieces
        if piece.not_faster_than is not None
    ]
    return sorted(slow, key=lambda pair: pair[1].p50_ms / pair[0].p50_ms if pair[1] and pair[0].p50_ms else 1)


def summary(report: BenchReport) -> str:
    """The result in up to three sentences."""
    controller, dense = contender_of_kind(report, "controller"), contender_of_kind(report, "dense")
    if controller is None:
        return "The controller was not timed."
    per = "an image" if report.settings.batch == 1 else f"a batch of {report.settings.batch}"
    if controller.latency.p50 is None:
        return f"The controller takes {number(controller.latency.mean_ms)} ms {per} on average; its runs are too few for a median."
    ms, interval = with_interval(controller.latency.p50)
    text = f"The controller takes {ms} ms {per} (median; 95 % interval {interval})"
    if dense is not None and dense.latency.p50 is not None:
        text += f", the dense network {number(dense.latency.p50.ms)} ms"
    if controller.speedup is not None:
        over = "" if dense is not None else " over its own last option (the dense network was not timed)"
        text += f": a speed-up of {controller.speedup:.2f}{over}"
    if controller.macs_share is not None:
        text += f" with {share(controller.macs_share)} % of the MACs"
    if controller.efficiency is not None:
        text += f", {controller.efficiency:.2f} of what the MACs promise"
    text += "."
    if controller.accuracy is not None:
        text += f" It is right for {share(controller.accuracy, 2)} % of the images"
        if dense is not None and dense.accuracy is not None:
            text += f", the dense network for {share(dense.accuracy, 2)} %"
        text += "."
    nearest = next((one for one in report.contenders if one.nearest), None)
    if nearest is not None and nearest.latency.p50 is not None and nearest.latency.p50.ms:
        ratio = controller.latency.p50.ms / nearest.latency.p50.ms
        path = options_text(nearest.options)
        text += (
            f" The one graph nearest in MACs, options {path}, takes {number(nearest.latency.p50.ms)} ms: the "
        )
        text += f"controller takes {ratio:.2f} times that."
    return text
