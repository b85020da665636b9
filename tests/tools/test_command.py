"""What every command does alike: exit codes, one-line errors, JSON, progress, help."""

from __future__ import annotations

import io
import json
import sys

import click
import pytest
from click.testing import CliRunner
from rich.table import Table

from rnp_deploy.errors import BundleError, EngineError, InputError
from rnp_deploy.tools import bench, command, export, inspect, run
from rnp_deploy.tools.command import RnpCommand, parse_options, print_json, print_table, progress_on_stderr

COMMANDS = {
    "rnp-export": export.main,
    "rnp-run": run.main,
    "rnp-inspect": inspect.main,
    "rnp-bench": bench.main,
}


def failing(error):
    @click.command(cls=RnpCommand)
    def main() -> None:
        click.echo("half a report")
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (InputError("images do not fit"), "Error: images do not fit\n"),
        (BundleError("first\n  second\n\n\tthird "), "Error: first second third\n"),
        (EngineError("ONNX Runtime: [é]\r\nnode 3"), "Error: ONNX Runtime: [é] node 3\n"),
    ],
    ids=["one line", "many lines", "carriage return"],
)
def test_our_errors_are_one_line_on_stderr_and_exit_code_1(error, line):
    result = CliRunner().invoke(failing(error))
    assert (result.exit_code, result.stdout, result.stderr) == (1, "half a report\n", line)


def test_a_bug_keeps_its_traceback():
    result = CliRunner().invoke(failing(ZeroDivisionError("ours")))
    assert isinstance(result.exception, ZeroDivisionError)


@pytest.mark.parametrize(
    ("text", "options"), [("4,2,1", [4, 2, 1]), ("3", [3]), (" 1, 2", [1, 2]), ("-1", [-1])]
)
def test_options_are_read(text, options):
    assert parse_options(text) == options


@pytest.mark.parametrize("text", ["", "4,,1", "4;2", "a,b", "1.5", "4,2,"])
def test_options_that_are_no_integers_are_shown(text):
    with pytest.raises(InputError, match=r"parted by commas, e\.g\. 4,2,1") as caught:
        parse_options(text)
    assert repr(text) in str(caught.value)


def test_json_is_whole_and_ends_its_line(capsys):
    print_json({"name": "é", "values": [1, None]})
    out = capsys.readouterr().out
    assert out.endswith("}\n")
    assert json.loads(out) == {"name": "é", "values": [1, None]}


def test_tables_are_not_cut_where_stdout_is_no_terminal(capsys):
    table = Table("name", *(f"column {i}" for i in range(12)))
    table.add_row("x" * 100, *(str(10**9 + i) for i in range(12)))
    print_table(table)
    out = capsys.readouterr().out
    assert "x" * 100 in out
    assert all(str(10**9 + i) in out for i in range(12))
    assert "…" not in out


def test_progress_is_lines_on_stderr_elsewhere_than_on_a_terminal(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(command.time, "monotonic", lambda: now[0])
    with progress_on_stderr() as progress:
        for done in range(1, 11):
            now[0] += 1.0
            progress("exporting", done, 10)
        progress("exporting", 10, 10)
        progress("verifying", 2, 2)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "exporting: 3/10, about 7 s left", "exporting: 6/10, about 4 s left", "exporting: 9/10, about 1 s left",
        "exporting: 10/10", "verifying: 2/2",
    ]  # fmt: skip


def test_a_task_that_is_done_again_has_its_own_estimate(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(command.time, "monotonic", lambda: now[0])
    with progress_on_stderr() as progress:
        for begun in (0.0, 1000.0):
            for done in range(1, 11):
                now[0] = begun + 4.0 * done
                progress("timing", done, 10)
    lines = capsys.readouterr().err.splitlines()
    assert lines[:10] == lines[10:]
    assert "timing: 5/10, about 20 s left" in lines


def test_progress_is_a_bar_on_a_terminal(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    with progress_on_stderr() as progress:
        progress("exporting", 1, 4)
        progress("exporting", 4, 4)
    assert "exporting" in terminal.getvalue()
    assert "4/4" in terminal.getvalue()
    assert "exporting: 4/4" not in terminal.getvalue()


HELP = {
    "rnp-export": ["CHECKPOINT", "--output", "Bundle directory to write", "default: 2", "--overwrite", "--json"],
    "rnp-run": ["PATH IMAGES...", "default: the agent's own", "--target-macs", "one per core", "e.g. 4,2,1", "--json"],
    "rnp-inspect": ["PATH", "--check", "sha256", "--json"],
    "rnp-bench": [
        "digits", "FILE.npz", "Images per run", "default: 1", "the agent's own", "one per core", "Seconds that each",
        "default: 3.0", "Runs of each", "default: 100", "MLPerf-style", "Milliseconds", "compare", "--json",
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", COMMANDS)
def test_help_gives_units_and_defaults(name):
    result = CliRunner().invoke(COMMANDS[name], ["--help"])
    assert result.exit_code == 0
    text = " ".join(result.stdout.split())
    assert not [word for word in HELP[name] if word not in text]


USAGE = {
    "rnp-export": [[], ["checkpoint"], ["a", "b", "-o", "c"], ["a", "-o", "b", "--verify=-1"]],
    "rnp-run": [[], ["bundle"], ["bundle", "i", "--threads", "0"], ["bundle", "i", "--penalty", "cheap"]],
    "rnp-inspect": [[], ["a", "b"]],
    "rnp-bench": [
        [], ["bundle", "--random", "--data", "a.npy"], ["bundle", "--random", "--batch", "0"],
        ["bundle", "--random", "--min-runs", "0"], ["bundle", "--random", "--duration-s", "-1"],
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "arguments"),
    [(name, arguments) for name in USAGE for arguments in [*USAGE[name], ["bundle", "--surprise"]]],
    ids=lambda item: " ".join(item) if isinstance(item, list) else item,
)
def test_wrong_usage_is_exit_code_2_and_says_how_to_use_it(name, arguments):
    result = CliRunner().invoke(COMMANDS[name], arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert f"Usage: {name}" in result.stderr
