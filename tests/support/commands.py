"""Run a command and say what it owes: JSON alone on stdout, or one line on stderr."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from typing import Any

import click
from click.testing import CliRunner, Result

__all__ = ["failure", "json_report", "success"]


def success(command: click.Command, arguments: Sequence[object]) -> Result:
    """The result of a run that must succeed."""
    result = CliRunner().invoke(command, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result


def json_report(command: click.Command, arguments: Sequence[object]) -> Any:
    """What ``--json`` prints; anything else on stdout would not parse."""
    return json.loads(success(command, [*arguments, "--json"]).stdout)


def failure(command: click.Command, arguments: Sequence[object]) -> str:
    """The one line of a run that must fail with exit code 1."""
    with warnings.catch_warnings(record=True) as shown:
        result = CliRunner().invoke(
            command, [str(argument) for argument in arguments], catch_exceptions=False
        )
    assert result.exit_code == 1, result.output
    assert not [warning for warning in shown if not issubclass(warning.category, DeprecationWarning)]
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("Error: ")
    return lines[0]
