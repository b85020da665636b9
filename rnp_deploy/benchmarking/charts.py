"""A report's charts, as SVG that stands in a page."""

from __future__ import annotations

import html
import io
import math
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rnp_deploy.benchmarking.report import BalancePoint, BenchReport
from rnp_deploy.benchmarking.report_text import number, share, split_parts
from rnp_deploy.errors import MissingRuntimeError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Chart", "charts_from_report"]

# The palette of Okabe and Ito, which the colour-blind can tell apart.
_BLUE, _SKY, _RED, _ORANGE, _GREEN, _PINK = "#0072B2", "#56B4E9", "#D55E00", "#E69F00", "#009E73", "#CC79A7"
_GREY, _STAMP = "#767676", "#a33c00"
_BY_KIND = {
    "controller": (_BLUE, "-"),
    "given": (_SKY, "--"),
    "dense": (_RED, "-"),
    "nearest": (_PINK, "--"),
    "single-file": (_ORANGE, "-."),
    "baseline": (_GREEN, "-."),
}
_UNIFORM = {"static": "-", "held": ":"}  # in greys, the narrower the darker
_PARTS = (_BLUE, _ORANGE, _PINK, _GREEN, _GREY)
_POLICIES = {
    "regroup": (_BLUE, "o-"),
    "serial": (_ORANGE, "s--"),
    "round-up": (_SKY, "^-."),
    "dense": (_RED, "d:"),
}
_WIDTH_INCHES = 4.6  # text of 8.5 points can then be read on a phone
_STYLE: Any = {
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "legend.fontsize": 7.5,
    "legend.frameon": False,
    # Names come from files: a $ in one is no mathematics.
    "text.parse_math": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.constrained_layout.use": True,
}
_LABEL_APART = 0.06  # of the axis
_LOG_FROM = 8.0  # times the least value


@dataclass(frozen=True)
class Chart:
    """``svg`` is an element for HTML, labelled with ``description``: what it shows, in words."""

    title: str
    description: str
    svg: str


def charts_from_report(report: BenchReport) -> dict[str, Chart]:
    """Name → chart, for all that there is data for; the same report gives the same bytes.

    Raises:
        MissingRuntimeError: matplotlib is not installed.
    """
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError as err:
        raise MissingRuntimeError("charts need matplotlib; pip install 'rnp-deploy[bench]'") from err
    charts = {}
    for name, (title, draw) in _CHARTS.items():
        with mpl.rc_context(), warnings.catch_warnings():
            mpl.rcdefaults()  # whatever the user's own style is
            mpl.rcParams.update({**_STYLE, "svg.hashsalt": name})
            # Letters that the font lacks are the browser's to find.
            warnings.filterwarnings("ignore", message="Glyph .* missing from font")
            figure = Figure(figsize=(_WIDTH_INCHES, 3.2))
            if report.data.stamp is not None:
                figure.suptitle(report.data.stamp, fontsize=8, color=_STAMP)
            description = draw(figure, report)
            if description is not None:
                description = ". ".join(filter(None, (title, description, report.data.stamp)))
                charts[name] = Chart(title, description, _element(figure, name, description))
    return charts


def _element(figure: Figure, name: str, description: str) -> str:
    """The drawing without prologue, size and date; its ids begin with ``name``, which a page has once."""
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    svg = stream.getvalue()
    svg = re.sub(r' (width|height)="[^"]*"', "", svg[svg.index("<svg") :], count=2)
    ids = re.compile(r'(\bid="|href="#|url\(#)')
    svg = re.sub(r"<[^>]+>", lambda tag: ids.sub(rf"\g<1>{name}-", tag[0]), svg)
    return svg.replace("<svg", f'<svg role="img" aria-label="{html.escape(description)}"', 1)


def _latencies(figure: Figure, report: BenchReport) -> str | None:
    """Cumulative, since medians and tails can be read off it for any number of contenders."""
    shown = [contender for contender in report.contenders if contender.latency.quantiles_ms]
    if not shown:
        return None
    axes = figure.subplots()
    widest = max((option for contender in shown for option in contender.options or ()), default=1)
    for contender in shown:
        if contender.kind in _UNIFORM:
            option = contender.options[0] if contender.options else widest
            colour, line = f"{0.15 + 0.6 * option / widest:.3f}", _UNIFORM[contender.kind]
        else:
            colour, line = _BY_KIND[contender.kind]
        quantiles = contender.latency.quantiles_ms
        percents = [100 * i / max(len(quantiles) - 1, 1) for i in range(len(quantiles))]
        width = 2.2 if contender.kind in ("controller", "dense") else 1.3
        axes.plot(quantiles, percents, line, color=colour, linewidth=width, label=_short(contender.name))
    _scale(axes, "x", [ms for contender in shown for ms in contender.latency.quantiles_ms])
    axes.set(xlabel=_latency_label(report), ylabel="% of runs that took no longer", ylim=(0, 100))
    _legend(figure, rows=-(-len(shown) // 2))
    medians = (f"{_short(contender.name)} {number(contender.latency.quantiles_ms[len(contender.latency.quantiles_ms) // 2])}"
               for contender in shown)  # fmt: skip
    return "Share of runs over milliseconds; medians in ms: " + ", ".join(medians)


def _split(figure: Figure, report: BenchReport) -> str | None:
    split = report.split
    if split is None or split.sum_ms == 0:
        return None
    figure.set_size_inches(_WIDTH_INCHES, 2.3)
    axes, left = figure.subplots(), 0.0
    axes.barh(1, split.whole_ms, color="#444444", height=0.6)
    axes.text(split.whole_ms / 2, 1, f"{number(split.whole_ms)} ms", color="white", ha="center", va="center")
    texts = []
    for (name, ms, _), colour in zip(split_parts(split), _PARTS, strict=True):
        texts.append(f"{name} {number(ms)} ms, {share(ms / split.sum_ms)} %")
        axes.barh(0, ms, left=left, color=colour, height=0.6, label=texts[-1])
        left += ms
    axes.set_yticks([0, 1], ["five parts", "whole run"])
    axes.set_xlabel(_latency_label(report))
    axes.grid(axis="y", visible=False)
    _legend(figure, rows=3)
    return f"The whole run takes {number(split.whole_ms)} ms; its parts: " + "; ".join(texts)


def _balance(figure: Figure, report: BenchReport) -> str | None:
    """Accuracy over latency, with labels; without, latency over penalty."""
    balance = report.balance
    if balance is None or not balance.points:
        return None
    labelled = [point for point in balance.points if point.accuracy is not None]
    axes, points = figure.subplots(), labelled or balance.points
    if not labelled:
        _over_penalty(axes, points, [point.p50.ms for point in points], [point.p50.low_ms for point in points],
                      [point.p50.high_ms for point in points])  # fmt: skip
        if balance.dense_p50_ms is not None:
            axes.axhline(balance.dense_p50_ms, color=_RED, label="dense network")
        axes.set_ylabel("p50, ms")
        _legend(figure)
        return f"Median latency over the penalty, {len(points)} penalties"
    for point in labelled:
        ms, accuracy = point.p50.ms, 100 * (point.accuracy or 0)
        axes.errorbar(
            ms, accuracy, xerr=_bars(ms, point.p50.low_ms, point.p50.high_ms),
            yerr=None if point.accuracy_low is None or point.accuracy_high is None
            else _bars(accuracy, 100 * point.accuracy_low, 100 * point.accuracy_high),
            fmt="o", color=_BLUE, markerfacecolor=_BLUE if point.pareto else "white", elinewidth=0.9, capsize=2,
        )  # fmt: skip
        if point.pareto:  # the others crowd
            axes.annotate(
                f"{point.penalty:.4g}", (ms, accuracy), (4, -9), textcoords="offset points", fontsize=7
            )
    best = sorted((point.p50.ms, 100 * (point.accuracy or 0)) for point in labelled if point.pareto)
    axes.plot([ms for ms, _ in best], [accuracy for _, accuracy in best], "-", color=_BLUE, linewidth=0.8)
    axes.plot([], [], "o", color=_BLUE, label="controller by penalty, Pareto")
    axes.plot([], [], "o", color=_BLUE, markerfacecolor="white", label="another is faster and as accurate")
    if balance.dense_p50_ms is not None and balance.dense_accuracy is not None:
        axes.plot(balance.dense_p50_ms, 100 * balance.dense_accuracy, "D", color=_RED, label="dense network")
    axes.set(xlabel="p50, " + _latency_label(report), ylabel="accuracy, %")
    _legend(figure, rows=2)
    return "Accuracy over median latency; the Pareto points: " + "; ".join(
        f"{number(ms)} ms, {accuracy:.2f} %" for ms, accuracy in best
    )


def _macs(figure: Figure, report: BenchReport) -> str | None:
    if report.balance is None or not report.balance.points:
        return None
    points, axes = report.balance.points, figure.subplots()
    _over_penalty(axes, points, [100 * point.macs_share for point in points],
                  [100 * point.macs_share_low for point in points],
                  [100 * point.macs_share_high for point in points])  # fmt: skip
    axes.set(ylabel="mean MACs, % of the full network", ylim=(0, None))
    _legend(figure)
    ends = (points[0], points[-1])
    return "Mean MACs over the penalty: " + " and ".join(
        f"{share(point.macs_share)} % at {point.penalty:.4g}" for point in ends
    )


def _roofline(figure: Figure, report: BenchReport) -> str | None:
    """One point a piece; the highest rate seen stands for the roof, which is not known."""
    pieces = [
        (piece, piece.intensity, piece.gmacs_per_s)
        for piece in report.pieces
        if piece.intensity and piece.gmacs_per_s
    ]
    if not pieces:
        return None
    figure.set_size_inches(_WIDTH_INCHES, 3.6)
    axes, highest = figure.subplots(), max(rate for _, _, rate in pieces)
    for wanted, marker, colour, label in ((False, "o", _BLUE, "branch"), (True, "^", _ORANGE, "agent step")):
        own = [(x, y) for piece, x, y in pieces if piece.agent is wanted]
        if own:
            axes.plot(*zip(*own, strict=True), marker, color=colour, markersize=4.5, alpha=0.6, label=label)
    slow = [(x, y) for piece, x, y in pieces if piece.not_faster_than is not None]
    if slow:
        axes.plot(*zip(*slow, strict=True), "o", markersize=8, markerfacecolor="none", color=_RED,
                  label="not faster than the next wider")  # fmt: skip
    axes.axhline(highest, color=_GREY, linestyle="--", linewidth=1)
    axes.annotate(
        f"{number(highest)} GMAC/s: the highest here, not the machine's limit", (0.01, highest), (0, 3),
        xycoords=("axes fraction", "data"), textcoords="offset points", fontsize=7,
    )  # fmt: skip
    _scale(axes, "x", [x for _, x, _ in pieces], always=True)
    _scale(axes, "y", [y for _, _, y in pieces], always=True)
    axes.set(xlabel="MACs per byte moved at least", ylabel="GMAC/s")
    _legend(figure, rows=2)
    return (
        f"Rate over intensity of {len(pieces)} pieces, both axes logarithmic; the highest reaches "
        f"{number(highest)} GMAC/s; {len(slow)} are not faster than the next wider"
    )


def _load(figure: Figure, report: BenchReport) -> str | None:
    """Where the tail leaves the ground."""
    runs = [
        (run.contender, run.offered_qps, run.latency.p99.ms)
        for run in (report.load.runs if report.load else ())
        if run.offered_qps is not None and run.latency is not None and run.latency.p99 is not None
    ]
    if report.load is None or len(runs) < 2:
        return None
    axes, kinds = figure.subplots(), {contender.name: contender.kind for contender in report.contenders}
    for name in dict.fromkeys(name for name, *_ in runs):
        own = sorted((qps, ms) for contender, qps, ms in runs if contender == name)
        colour, line = _BY_KIND.get(kinds.get(name, name), (_GREY, "-"))
        axes.plot(*zip(*own, strict=True), "o" + line, markersize=4, color=colour, label=_short(name))
    if report.load.slo_ms is not None:
        axes.axhline(
            report.load.slo_ms, color=_GREY, linestyle="--", label=f"SLO {number(report.load.slo_ms)} ms"
        )
    _scale(axes, "y", [ms for *_, ms in runs])
    axes.set(xlabel="images offered per second", ylabel="p99 from schedule to answer, ms")
    _legend(figure, rows=2)
    return f"p99 over the offered rate, {len(runs)} runs"


def _batches(figure: Figure, report: BenchReport) -> str | None:
    if report.batches is None or not report.batches.points:
        return None
    points, axes = report.batches.points, figure.subplots()
    for policy in dict.fromkeys(point.policy for point in points):
        own = sorted((point.batch, point.ms_per_image) for point in points if point.policy == policy)
        colour, style = _POLICIES.get(policy, (_GREY, "o-"))
        axes.plot(*zip(*own, strict=True), style, color=colour, markersize=4, label=policy)
    sizes = sorted({point.batch for point in points})
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, list(map(str, sizes)))
    axes.xaxis.minorticks_off()
    axes.set(xlabel="batch", ylabel="ms per image", ylim=(0, None))
    _legend(figure, rows=2)
    return f"Milliseconds per image over the batch, sizes {sizes[0]} to {sizes[-1]}"


_CHARTS: dict[str, tuple[str, Callable[[Figure, BenchReport], str | None]]] = {
    "latencies": ("Latency distributions", _latencies),
    "split": ("Where the time goes", _split),
    "balance": ("Balance of speed and accuracy", _balance),
    "macs": ("MACs by penalty", _macs),
    "roofline": ("Roofline of the pieces", _roofline),
    "load": ("Tail under load", _load),
    "batches": ("Divergent batches by policy", _batches),
}


def _over_penalty(
    axes: Axes, points: Sequence[BalancePoint], values: list[float], low: list[float], high: list[float]
) -> None:
    penalties = [point.penalty for point in points]
    axes.fill_between(penalties, low, high, color=_SKY, alpha=0.35, linewidth=0, label="95 % interval")
    axes.plot(penalties, values, "o-", color=_BLUE, markersize=4, label="controller")
    above = [penalty for penalty in penalties if penalty > 0]
    if above and max(above) / min(above) > _LOG_FROM:
        # Linear below the least price, since 0 is one too.
        axes.set_xscale("symlog", linthresh=min(above))
        axes.set_xticks(penalties, _apart(axes, penalties), rotation=45)
        axes.xaxis.minorticks_off()
    axes.set_xlabel("penalty")


def _apart(axes: Axes, penalties: Sequence[float]) -> list[str]:
    """Labels, empty where one would lie upon the one before."""
    at = axes.xaxis.get_transform().transform(np.array(penalties))
    labels, last = [], -math.inf
    for penalty, x in zip(penalties, ((at - at[0]) / (at[-1] - at[0])).tolist(), strict=True):
        labels.append(f"{penalty:.4g}" if x - last >= _LABEL_APART else "")
        last = x if labels[-1] else last
    return labels


def _bars(value: float, low: float, high: float) -> list[list[float]]:
    return [[max(value - low, 0)], [max(high - value, 0)]]


def _scale(axes: Axes, which: str, values: Sequence[float], *, always: bool = False) -> None:
    """Logarithmic with plain numbers, where values range widely or ``always``."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    if min(values) <= 0 or not (always or max(values) / min(values) > _LOG_FROM):
        return
    axis = axes.xaxis if which == "x" else axes.yaxis
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    steps = (1.0, 2.0, 5.0) if max(values) / min(values) < 1000 else (1.0,)
    axis.set_major_locator(LogLocator(subs=steps))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _legend(figure: Figure, rows: int = 1) -> None:
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, height + 0.17 * rows)
    figure.legend(loc="outside lower center", ncols=2)


def _latency_label(report: BenchReport) -> str:
    batch = report.settings.batch
    return "ms" if batch == 1 else f"ms for a batch of {batch}"


def _short(name: str, most: int = 32) -> str:
    """Without what XML forbids; the middle is left out of what is long."""
    name = "".join(letter if letter.isprintable() else "�" for letter in name)
    return name if len(name) <= most else f"{name[: most // 2]}…{name[-most // 2 + 1 :]}"
