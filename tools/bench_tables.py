"""A report of ``rnp-bench`` as tables on the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import click
from rich.table import Table
from rich.text import Text

from rnp_deploy.benchmarking.measures import Latency, Percentile
from rnp_deploy.benchmarking.report import BenchReport, LoadRun
from rnp_deploy.benchmarking.report_text import (
    NONE,
    contender_of_kind,
    number,
    options_text,
    pieces_that_do_not_pay,
    share,
    split_parts,
    summary,
    with_interval,
)
from rnp_deploy.tools.command import print_table

__all__ = ["print_report"]

_MOST_PATHS, _MOST_PIECES = 5, 5
_SHORT = 8  # letters; numbers have no more
_TAILS = ("p90\nms", "p95\nms", "p99\nms", "p99.9\nms")
_Rows = Sequence[Sequence[str]]


def print_report(report: BenchReport, *, all_pieces: bool = False) -> None:
    """Write the tables and the result to stdout, warnings to stderr.

    Args:
        report: Tables of random inputs carry its stamp in their titles.
        all_pieces: Every piece, not the worst few of those that are not faster than the next wider one.
    """
    stamp = "" if report.data.stamp is None else f" ({report.data.stamp})"
    for title, headings, rows in _tables(report, all_pieces=all_pieces):
        if rows:
            # Not the table's own title, which is broken to the width of the columns.
            click.echo(_printable(f"\n{title}{stamp}"))
            print_table(_table(headings, rows))
    click.echo("\n" + _printable(summary(report)))
    for reason in dict.fromkeys(one.energy.reason for one in report.contenders if one.energy.reason):
        click.echo(_printable(f"no energy: {reason}"))
    if report.expected.reason:
        click.echo(_printable(f"no expected latency: {report.expected.reason}"))
    for warning in report.warnings:
        click.echo(_printable(f"warning: {warning}"), err=True)


def _tables(report: BenchReport, *, all_pieces: bool) -> Iterator[tuple[str, Sequence[str], _Rows]]:
    yield _latencies(report)
    yield _gains(report)
    yield _split(report)
    yield _decisions(report)
    yield _paths(report)
    yield _pieces(report, all_pieces=all_pieces)
    yield _expected(report)
    yield _load(report)
    yield _highest(report)
    yield _batches(report)
    yield _pays(report)
    yield _balance(report)


def _latencies(report: BenchReport) -> tuple[str, Sequence[str], _Rows]:
    subject, settings = report.subject, report.settings
    threads = "a thread per core" if settings.threads is None else f"{settings.threads} thread(s)"
    penalty = "the agent's own penalty" if settings.penalty is None else f"penalty {settings.penalty:g}"
    title = (
        f"{subject.path} on {subject.backend}, {subject.device}, {threads}; batch {settings.batch}, {penalty}; "
        f"{report.data.images} images of {report.data.name}"
    )
    rows = [
        [one.name, *with_interval(one.latency.p50), *_tails(one.latency), str(one.latency.runs)]
        for one in report.contenders
    ]
    return title, ["contender", "p50\nms", "95 %", *_TAILS, "runs"], rows


def _gains(report: BenchReport) -> tuple[str, Sequence[str], _Rows]:
    energy = any(one.energy.joules_per_image is not None for one in report.contenders)
    rows = [
        [
            one.name, share(one.macs_share), _ratio(one.speedup), _ratio(one.efficiency), share(one.accuracy, 2),
            number(one.images_per_s), *([number(one.energy.joules_per_image)] if energy else []),
        ]
        for one in report.contenders
    ]  # fmt: skip
    headings = [
        "contender",
        "MACs %",
        "speed-up",
        "÷ theory",
        "accuracy %",
        "images/s",
        *["J/image"] * energy,
    ]
    dense = contender_of_kind(report, "dense") is not None
    return "beside the dense network" if dense else "beside the controller at its last option", headings, rows


def _split(report: BenchReport) -> tuple[str, Sequence[str], _Rows]:
    split = report.split
    if split is None:
        return "", [], []
    rows = [
        [name, number(ms), share(ms / split.sum_ms if split.sum_ms else None)]
        for name, ms, _ in split_parts(split)
    ]
    rows += [["sum", number(split.sum_ms), "100.0"], ["whole run", number(split.whole_ms), ""]]
    title = f"where the time goes, means of {split.runs} runs; agent: {split.agent_source}"
    return title, ["part", "ms", "% of the sum"], rows


def _decisions(report: BenchReport) -> tuple[str, Sequence[str], _Rows]:
    counts = report.decisions.counts
    most = max(map(len, counts), default=0)
    rows = [
        [conv, *map(str, row), *[""] * (most - len(row)), f"{bits:.2f}"]
        for conv, row, bits in zip(report.subject.convs, counts, report.decisions.entropy_bits, strict=True)
    ]
    return "images by option", ["decision", *map(str, range(1, most + 1)), "entropy, bits"], rows


def _paths(report: BenchReport) -> tuple[str, Sequence[str], _Rows]:
    decisions = report.decisions
    rows = [
        [
            options_text(path.options), str(path.images), share(path.share), share(path.macs_share), number(path.p50_ms),
            share(path.accuracy, 2),
        ]
        for path in decisions.paths[:_MOST_PATHS]
    ]  # fmt: skip
    title = (
        f"most frequent of {decisions.distinct_paths} paths; entropy {decisions.path_entropy_bits:.2f} bits"
    )
    return title, ["path", "images", "%", "MACs %", "p50 ms", "accuracy %"], rows


def _pieces(report: BenchReport, *, all_pieces: bool) -> tuple[str, Sequence[str], _Rows]:
    slow = pieces_that_do_not_pay(report)
    others = [(piece, None) for piece in report.pieces if piece.not_faster_than is None]
    shown = [*slow, *others] if all_pieces else slow[:_MOST_PIECES]
    rows = [
        [
            piece.file, options_text(piece.options), number(piece.p50_ms), number(piece.gmacs_per_s),
            options_text(piece.not_faster_than), number(wider.p50_ms if wider else None),
        ]
        for piece, wider in shown
    ]  # fmt: skip
    worst = "" if len(rows) >= len(slow) else f"; the {len(rows)} worst"
    title = f"{len(slow)} of {len(report.pieces)} pieces are not faster than the next wider one{worst}"
    return title, ["piece", "options", "p50 ms", "GMAC/s", "wider options", "wider p50 ms"], rows


def _expected(report: BenchReport) -> tuple[str, Sequence[str], _Rows]:
    expected = report.expected
    if expected.expected_ms is None:
        return "", [], []
    row = [number(expected.expected_ms), number(expected.measured_ms), _ratio(expected.ratio)]
    title = (
        "means: the sum over paths of p(path) times its pieces, beside whole runs among those of the pieces"
    )
    return title, ["expected ms", "measured ms", "÷"], [row]


def _load(report: BenchReport) -> tuple[str, Sequence[str], _Rows]:
    load = report.load
    if load is None:
        return "", [], []
    rows = [
        [
            run.contender, number(run.offered_qps), NONE if run.stopped_early else number(run.completed_qps),
            *_load_latency(run),
            f"{run.mean_batch:.1f}", _held(run),
        ]
        for run in load.runs
    ]  # fmt: skip
    slo = "" if load.slo_ms is None else f", p99 within {number(load.slo_ms)} ms"
    headings = ["contender", "offered\nper s", "done\nper s", "p50\nms", "p99\nms", "p99.9\nms"]
    headings += ["mean\nbatch", "held"]
    return f"load, MLPerf-style, {load.scenario}{slo}; batches of {load.most_batch} at most", headings, rows


def _load_latency(run: LoadRun) -> list[str]:
    latency = run.latency
    return [NONE] * 3 if latency is None else [_ms(latency.p50), _ms(latency.p99), _ms(latency.p99_9)]


def _held(run: LoadRun) -> str:
    if run.stopped_early:
        return "no, early"
    return NONE if run.held is None else "yes" if run.held else "no"


def _highest(report: BenchReport) -> tuple[str, Sequence[str], _Rows]:
    highest = {} if report.load is None else report.load.highest_qps
    rows = [[name, "none" if qps is None else number(qps)] for name, qps in highest.items()]
    return "highest rate tried that held the SLO", ["contender", "images/s"], rows


def _batches(report: BenchReport) -> tuple[str, Sequence[str], _Rows]:
    points = () if report.batches is None else report.batches.points
    policies = list(dict.fromkeys(point.policy for point in points))
    known = {(point.batch, point.policy): number(point.ms_per_image) for point in points}
    rows = [
        [str(batch), *(known.get((batch, policy), NONE) for policy in policies)]
        for batch in sorted({batch for batch, _ in known})
    ]
    return "ms per image by policy for images that decide differently", ["batch", *policies], rows


def _pays(report: BenchReport) -> tuple[str, Sequence[str], _Rows]:
    pays = () if report.batches is None else report.batches.pays_from
    rows = [[one.policy, one.over, "never" if one.batch is None else str(one.batch)] for one in pays]
    return "the batch from which a policy pays", ["policy", "over", "from batch"], rows


def _balance(report: BenchReport) -> tuple[str, Sequence[str], _Rows]:
    points = () if report.balance is None else report.balance.points
    energy = any(point.energy.joules_per_image is not None for point in points)
    rows = [
        [
            f"{point.penalty:.4g}", share(point.macs_share), share(point.accuracy, 2),
            _interval(point.accuracy_low, point.accuracy_high), _ms(point.p50), _ms(point.p99),
            *([number(point.energy.joules_per_image)] if energy else []),
            NONE if point.pareto is None else "yes" if point.pareto else "no",
        ]
        for point in points
    ]  # fmt: skip
    headings = [
        "penalty",
        "MACs %",
        "accuracy %",
        "95 %",
        "p50 ms",
        "p99 ms",
        *["J/image"] * energy,
        "Pareto",
    ]
    return "balance of speed and accuracy", headings, rows


def _tails(latency: Latency) -> list[str]:
    return [_ms(latency.p90), _ms(latency.p95), _ms(latency.p99), _ms(latency.p99_9)]


def _ms(percentile: Percentile | None) -> str:
    return with_interval(percentile)[0]


def _ratio(value: float | None) -> str:
    return NONE if value is None else f"{value:.2f}"


def _interval(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"{share(low, 2)}–{share(high, 2)}"  # noqa: RUF001


def _table(headings: Sequence[str], rows: _Rows) -> Table:
    table = Table()
    names = max(len(row[0]) for row in rows) > _SHORT
    for at, heading in enumerate(headings):
        # Names are folded where the terminal is narrow, numbers are not.
        fold = names and at == 0
        table.add_column(heading, justify="right" if at else "left", no_wrap=not fold, overflow="fold")
    for row in rows:
        table.add_row(*(Text(_printable(cell)) for cell in row))
    return table


def _printable(text: str) -> str:
    """Without what a terminal would obey."""
    return "".join(letter if letter.isprintable() or letter == "\n" else "�" for letter in text)
