"""A report's contenders as CSV."""

from __future__ import annotations

import csv
import io
from typing import Any

from rnp_deploy.benchmarking.report import BenchReport
from rnp_deploy.benchmarking.report_text import options_text

__all__ = ["csv_from_report"]

_PERCENTILES = ("p50", "p90", "p95", "p99", "p99_9")
_COLUMNS = {
    **{name: name for name in ("name", "kind", "options")},
    **{name: f"latency.{name}" for name in ("runs", "mean_ms", "cv")},
    **{
        f"{name}_{value}": f"latency.{name}.{value}"
        for name in _PERCENTILES
        for value in ("ms", "low_ms", "high_ms")
    },
    "device_mean_ms": "latency.device_mean_ms",
    **{name: name for name in ("macs_share", "speedup", "efficiency", "accuracy", "images_per_s")},
    **{name: f"energy.{name}" for name in ("joules_per_image", "mean_watts")},
    **{f"energy_{name}": f"energy.{name}" for name in ("source", "reason")},
}


def csv_from_report(report: BenchReport) -> str:
    r"""A header, and a row per contender; names as in the JSON, without the nesting.

    What is None is an empty field; options are parted by commas. Lines end in ``\r\n``: write the text
    with ``newline=""``.
    """
    shared = {
        "batch": report.settings.batch,
        "stamp": report.data.stamp,
        "path": report.subject.path,
        "data": report.data.name,
    }
    stream = io.StringIO(newline="")
    writer = csv.writer(stream)
    writer.writerow([*_COLUMNS, *shared])
    for contender in report.contenders:
        writer.writerow([*(_field(contender, path) for path in _COLUMNS.values()), *shared.values()])
    return stream.getvalue()


def _field(value: Any, path: str) -> object:
    for name in path.split("."):
        value = None if value is None else getattr(value, name)
    return options_text(value) if isinstance(value, tuple) else value
