"""Contenders as CSV, read back by the csv module."""

from __future__ import annotations

import csv
import io

from bench_reports import hostile_report, labelled_report, minimal_report, random_inputs_report
from rnp_deploy.benchmarking.csv_report import csv_from_report
from rnp_deploy.benchmarking.report import RANDOM_STAMP

COLUMNS = (
    "name,kind,options,runs,mean_ms,cv,p50_ms,p50_low_ms,p50_high_ms,p90_ms,p90_low_ms,p90_high_ms,"
    "p95_ms,p95_low_ms,p95_high_ms,p99_ms,p99_low_ms,p99_high_ms,p99_9_ms,p99_9_low_ms,p99_9_high_ms,"
    "device_mean_ms,macs_share,speedup,efficiency,accuracy,images_per_s,joules_per_image,mean_watts,"
    "energy_source,energy_reason,batch,stamp,path,data"
)


def rows(report):
    return list(csv.DictReader(io.StringIO(csv_from_report(report), newline=""), strict=True))


def test_the_columns_are_stable():
    assert csv_from_report(labelled_report()).split("\r\n")[0] == COLUMNS
    none = minimal_report().model_copy(update={"contenders": ()})
    assert csv_from_report(none) == COLUMNS + "\r\n"


def test_a_row_per_contender_with_its_numbers_in_full():
    report = labelled_report()
    found = rows(report)
    assert [row["name"] for row in found] == [one.name for one in report.contenders]
    controller, first = report.contenders[0], found[0]
    p99_9 = controller.latency.p99_9
    assert p99_9 is not None
    assert float(first["p99_9_low_ms"]) == p99_9.low_ms != float(first["p99_9_high_ms"]) == p99_9.high_ms
    for name in ("p50", "p90", "p95", "p99", "p99_9"):
        assert float(first[f"{name}_ms"]) == getattr(controller.latency, name).ms
    assert (first["runs"], first["kind"], first["batch"]) == ("1412", "controller", "1")
    assert float(first["joules_per_image"]) == controller.energy.joules_per_image
    assert (first["path"], first["data"]) == (report.subject.path, report.data.name)
    assert (first["energy_source"], first["energy_reason"]) == ("RAPL package-0", "")


def test_what_is_none_is_empty():
    (row,) = rows(minimal_report())
    empty = {name for name, value in row.items() if value == ""}
    assert set(COLUMNS.split(",")) - empty == {
        "name", "kind", "runs", "mean_ms", "images_per_s", "batch", "path", "data",
    }  # fmt: skip


def test_options_and_hostile_names_are_quoted():
    assert rows(labelled_report())[2]["options"] == ",".join("1" * 12)
    report = hostile_report()
    assert rows(report)[0]["name"] == report.contenders[0].name
    quoted = report.contenders[0].model_copy(update={"name": 'a,"b"\r\nc'})
    assert rows(report.model_copy(update={"contenders": (quoted,)}))[0]["name"] == 'a,"b"\r\nc'


def test_random_inputs_are_stamped_in_every_row():
    assert {row["stamp"] for row in rows(random_inputs_report())} == {RANDOM_STAMP}
    assert {row["stamp"] for row in rows(labelled_report())} == {""}
