"""``rnp-bench compare``: is one report's controller slower than another's?"""

from __future__ import annotations

from pathlib import Path

import click
from rich.table import Table
from rich.text import Text

from rnp_deploy.benchmarking.compare import Change, Comparison, ContenderChange, compare_reports
from rnp_deploy.benchmarking.reading import read_report
from rnp_deploy.errors import InputError
from rnp_deploy.tools.command import RnpCommand, print_json, print_table

__all__ = ["main"]


@click.command("rnp-bench compare", cls=RnpCommand)
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@click.option(
    "--tolerance",
    type=click.FloatRange(min=0),
    default=0.1,
    show_default=True,
    help="Share that p50 may rise by.",
)
@click.option(
    "--relative",
    is_flag=True,
    help="Compare latencies ÷ the dense network's in the same report: takes out a machine that is slower as a whole.",
)
@click.option(
    "--contender",
    "names",
    multiple=True,
    metavar="NAME",
    help="Fail by this one instead of the controller; may be given again.",
)
@click.option("--all", "every", is_flag=True, help="Fail by any contender.")
@click.option("--json", "as_json", is_flag=True, help="Report as JSON on stdout.")
def main(a: Path, b: Path, tolerance: float, relative: bool, names: tuple[str, ...], every: bool, as_json: bool) -> None:  # fmt: skip
    """Compare two reports of rnp-bench --json; exit code 1 where the controller of B is slower than that of A.

    Slower is only what has the whole 95 % interval of its p50 beyond the tolerance. p99 is shown, and never fails.
    """
    if names and every:
        raise click.UsageError("pass either --contender or --all")
    comparison = compare_reports(
        read_report(a), read_report(b), tolerance=tolerance, relative_to_dense=relative
    )
    judged = _judged(comparison, names, every)
    if as_json:
        print_json(comparison.model_dump(mode="json"))
    else:
        print_table(_table(comparison))
        click.echo(_summary(comparison, judged))
    if any(one.p50 is not None and one.p50.verdict == "slower" for one in judged):
        click.get_current_context().exit(1)


def _judged(comparison: Comparison, names: tuple[str, ...], every: bool) -> list[ContenderChange]:
    """Those that decide the exit code; raises InputError where one of them is not in both reports."""
    changes = {one.name: one for one in comparison.contenders}
    if every:
        return list(changes.values())
    missing = [name for name in names if name not in changes]
    if missing:
        raise InputError(f"{missing[0]!r} is not compared; these are: {', '.join(changes)}")
    judged = [one for one in changes.values() if (one.name in names if names else one.kind == "controller")]
    if not judged:
        raise InputError("no controller is in both reports; name what is to be compared with --contender")
    return judged


def _table(comparison: Comparison) -> Table:
    unit = "÷ dense" if comparison.relative_to_dense else "ms"
    table = Table(title=comparison.stamp)
    table.add_column("contender")
    for heading in (f"A p50 {unit}", f"B p50 {unit}", "B ÷ A", "95 %"):
        table.add_column(heading, justify="right")
    table.add_column(f"p50 by {100 * comparison.tolerance:g} %")
    for heading in ("p99 B ÷ A", "95 %"):
        table.add_column(heading, justify="right")
    table.add_column("p99")
    for heading in ("accuracy, points", "MACs, points"):
        table.add_column(heading, justify="right")
    for one in comparison.contenders:
        ends = ("-", "-") if one.p50 is None else (f"{one.p50.a:.4g}", f"{one.p50.b:.4g}")
        points = ("-" if x is None else f"{100 * x:+.2f}" for x in (one.accuracy, one.macs_share))
        table.add_row(Text(_plain(one.name)), *ends, *_cells(one.p50), *_cells(one.p99), *points)
    return table


def _cells(change: Change | None) -> tuple[str, str, str]:
    if change is None:
        return "-", "-", "too few runs"
    between = "-" if change.low is None else f"{change.low:.3f} to {change.high:.3f}"
    return f"{change.ratio:.3f}", between, change.verdict


def _summary(comparison: Comparison, judged: list[ContenderChange]) -> str:
    lines = [f"differs: {difference}" for difference in comparison.differences]
    for of, names in (("A", comparison.only_in_a), ("B", comparison.only_in_b)):
        lines += [f"only in {of}: {', '.join(names)}"] if names else []
    for one in judged:
        verdict = "undecided" if one.p50 is None else one.p50.verdict
        ends = {"slower": ": FAIL", "undecided": ": measure longer to tell"}.get(verdict, "")
        lines.append(f"{one.name}: {verdict} at a tolerance of {100 * comparison.tolerance:g} %{ends}")
    return "\n".join(map(_plain, lines))


def _plain(text: str) -> str:
    """Without what would move a terminal's cursor or colour it."""
    return "".join(c if c.isprintable() else " " for c in text)


if __name__ == "__main__":
    main()
