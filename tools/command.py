"""What all commands share: errors as one line, progress on stderr, JSON on stdout."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.table import Table

from rnp_deploy.canonical_json import dump_json
from rnp_deploy.errors import InputError, RnpError
from rnp_deploy.progress import Progress

__all__ = ["RnpCommand", "parse_options", "print_json", "print_table", "progress_on_stderr"]

_LINE_EVERY_S = 3.0
_EXTRAS = {
    **dict.fromkeys(("torch", "safetensors", "onnx", "onnx_ir", "onnxscript"), "export"),
    "matplotlib": "train",
}


class RnpCommand(click.Command):
    """A command that turns our errors into one line on stderr and exit code 1."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except RnpError as err:
            raise click.ClickException(" ".join(str(err).split())) from err
        except ModuleNotFoundError as err:
            extra = _EXTRAS.get((err.name or "").partition(".")[0])
            if extra is None:
                raise
            extra = {"rnp-train": "train", "rnp-build": "build"}.get(self.name or "", extra)
            raise click.ClickException(
                f"{err.name} is not installed; pip install 'rnp-deploy[{extra}]'"
            ) from err


def parse_options(text: str) -> list[int]:
    """Read ``4,2,1``, one option per decision; raises InputError."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as err:
        raise InputError(f"options {text!r} are not integers parted by commas, e.g. 4,2,1") from err


def print_json(value: Any) -> None:
    """Write a report to stdout."""
    click.echo(dump_json(value), nl=False)


def print_table(table: Table) -> None:
    """Write a table to stdout, wide enough for its text where stdout is no terminal."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=console.measure(table, options=console.options.update(width=400)).maximum)
    console.print(table)


@contextmanager
def progress_on_stderr() -> Iterator[Progress]:
    """Yield a reporter: a bar on a terminal, elsewhere a line every few seconds."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _lines()
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with RichProgress(*columns, console=console, transient=True) as bars:
        tasks: dict[str, Any] = {}

        def report(task: str, done: int, total: int) -> None:
            if task not in tasks:
                tasks[task] = bars.add_task(task, total=total)
            bars.update(tasks[task], completed=done, total=total)

        yield report


def _lines() -> Progress:
    last = {"time": time.monotonic()}
    begun: dict[str, tuple[float, int]] = {}
    reached: dict[str, int] = {}

    def report(task: str, done: int, total: int) -> None:
        now = time.monotonic()
        ends = done == total and reached.get(task) != total
        if done < reached.get(task, 0):  # the same task again
            begun.pop(task)
        reached[task] = done
        start, before = begun.setdefault(task, (now, done))
        if ends or now - last["time"] >= _LINE_EVERY_S:
            last["time"] = now
            left = round((total - done) * (now - start) / max(done - before, 1))
            click.echo(
                f"{task}: {done}/{total}" + (f", about {left} s left" if left else ""), file=sys.stderr
            )

    return report
