"""A report as one page that needs nothing beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import PurePath
from typing import Any

from rnp_deploy.benchmarking.charts import charts_from_report
from rnp_deploy.benchmarking.measures import Energy
from rnp_deploy.benchmarking.report import BenchReport
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
from rnp_deploy.errors import MissingRuntimeError

__all__ = ["html_from_report", "require_page"]

_HEAT_RGB = (0, 114, 178)


def html_from_report(report: BenchReport) -> str:
    """The page: styles, charts and thumbnails inside, no script, and a policy that lets it load nothing.

    The same report gives the same text. Single runs (``records``) are left to the JSON.

    Raises:
        MissingRuntimeError: Jinja2 or matplotlib is not installed.
    """
    require_page()
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "number": number,
        "share": share,
        "options": options_text,
        "interval": with_interval,
    }
    charts = charts_from_report(report)
    return environment.from_string(
        files("rnp_deploy.benchmarking").joinpath("report.html.j2").read_text("utf-8")
    ).render(
        report=report,
        title=PurePath(report.subject.path).name or report.subject.path,
        summary=summary(report),
        controller=contender_of_kind(report, "controller"),
        dense=contender_of_kind(report, "dense"),
        charts=charts,
        # Made here, of escaped text alone.
        svgs={name: Markup(chart.svg) for name, chart in charts.items()},
        parts=[] if report.split is None else split_parts(report.split),
        slow=pieces_that_do_not_pay(report),
        heat=_heat(report),
        option_heads=[f"option {j + 1}" for j in range(max(map(len, report.decisions.counts), default=0))],
        energies=_energies(report),
        facts=_facts(report),
        dash=NONE,
    )


def require_page() -> None:
    """What a page needs, so that it is missed before minutes of measuring; raises MissingRuntimeError."""
    try:
        import jinja2  # noqa: F401
        import matplotlib as mpl  # noqa: F401
    except ImportError as err:
        raise MissingRuntimeError(
            "a page needs Jinja2 and matplotlib; pip install 'rnp-deploy[bench]'"
        ) from err


def _heat(report: BenchReport) -> list[dict[str, Any]]:
    """A row per decision: its convolution, the share of the images and a colour per option."""
    rows = []
    for t, counts in enumerate(report.decisions.counts):
        images = sum(counts) or 1
        cells = [(count, count / images, *_colours(count / images)) for count in counts]
        conv, widths = (report.subject.convs[t], report.subject.widths[t])
        rows.append(
            {"conv": conv, "widths": widths, "cells": cells, "bits": report.decisions.entropy_bits[t]}
        )
    return rows


def _energies(report: BenchReport) -> list[tuple[str, Energy]]:
    """By contender; those that lack a number for the same reason share a row."""
    rows: list[tuple[str, Energy]] = []
    without: dict[Energy, list[str]] = {}
    for contender in report.contenders:
        if contender.energy.joules_per_image is not None:
            rows.append((contender.name, contender.energy))
        elif contender.energy.reason is not None:
            without.setdefault(contender.energy, []).append(contender.name)
    return rows + [("; ".join(names), energy) for energy, names in without.items()]


def _colours(part: float) -> tuple[str, str]:
    """Of a cell and its text: from white to blue by the share, and what can be read on it."""
    mixed = (round(255 + part * (channel - 255)) for channel in _HEAT_RGB)
    return "#" + "".join(f"{channel:02x}" for channel in mixed), "#fff" if part > 0.9 else "#111"


def _facts(report: BenchReport) -> dict[str, list[tuple[str, str]]]:
    """Headings → names and values, all of them."""
    subject = report.subject.model_dump(exclude={"convs", "widths"})
    return {
        "What": _flat(subject),
        "Inputs": _flat(report.data.model_dump()),
        "Settings": _flat(report.settings.model_dump()),
        "Environment": [
            *_flat({name: value for name, value in report.environment.items() if value is not None}),
            (
                "not known, or not here",
                ", ".join(n for n, value in report.environment.items() if value is None),
            ),
        ],
    }


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows = []
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            rows += _flat(value, f"{prefix}{name}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            rows.append((prefix + str(name), text))
    return rows
