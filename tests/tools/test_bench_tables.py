"""The report of rnp-bench on the terminal."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from rich.console import Console

from bench_reports import hostile_report, labelled_report, minimal_report, random_inputs_report
from rnp_deploy.benchmarking.report import RANDOM_STAMP
from rnp_deploy.tools.bench_tables import print_report


@pytest.fixture
def printed(capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)

    def lines(report, **arguments):
        print_report(report, **arguments)
        out, err = capsys.readouterr()
        return out, err

    return lines


def rows(out):
    """Cells of every line of a table's body."""
    return [
        [cell.strip() for cell in line.strip("│").split("│")] for line in out.split("\n") if line[:1] == "│"
    ]


def titles(out):
    return [before for before, line in pairwise(out.split("\n")) if line.startswith("┏")]


@pytest.mark.parametrize(
    "row",
    [
        ["controller", "3.210", "3.178–3.258", "5.149", "5.982", "8.336", "10.47", "1412"],  # noqa: RUF001
        ["mine.onnx", "11.00", "10.89–11.16", "11.80", "12.14", "too few", "too few", "80"],  # noqa: RUF001
        ["dense network", "100.0", "1.00", "1.00", "97.80", "178.6", "0.0616"],
        ["option 1 held", "9.0", "3.11", "0.28", "–", "555.6", "–"],  # noqa: RUF001
        ["read-back", "0.120", "3.7"],
        ["whole run", "3.210", ""],
        ["features.9", "597", "208", "168", "27", "1.49"],
        ["2,2,4,4,1,2,3,4,1,4,4,4", "62", "6.2", "48.0", "3.400", "91.00"],
        ["stage2/o1-o3.onnx", "1,3", "0.364", "22.25", "1,4", "0.236"],
        ["3.110", "3.210", "0.97"],
        ["controller", "400.0", "–", "8.000", "9.533", "too few", "2.3", "no, early"],  # noqa: RUF001
        ["dense network", "50.00", "49.50", "7.875", "9.384", "too few", "1.2", "yes"],
        ["dense network", "none"],
        ["16", "2.638", "3.106", "2.831", "4.194"],
        ["round-up", "regroup", "never"],
        ["regroup", "serial", "2"],
        ["0.003", "50.0", "96.59", "95.99–97.19", "3.000", "3.575", "no"],  # noqa: RUF001
    ],
)
def test_rows(printed, row):
    assert row in rows(printed(labelled_report())[0])


def test_tables_come_in_order_with_titles(printed):
    assert titles(printed(labelled_report())[0]) == [
        "vgg16-set on ort, cpu, 2 thread(s); batch 1, penalty 0.01; 1000 images of folder:photos",
        "beside the dense network",
        "where the time goes, means of 412 runs; agent: nodes within pieces, by the runtime's profiler",
        "images by option",
        "most frequent of 231 paths; entropy 6.91 bits",
        "13 of 122 pieces are not faster than the next wider one; the 5 worst",
        "means: the sum over paths of p(path) times its pieces, beside whole runs among those of the pieces",
        "load, MLPerf-style, server, p99 within 12.00 ms; batches of 8 at most",
        "highest rate tried that held the SLO",
        "ms per image by policy for images that decide differently",
        "the batch from which a policy pays",
        "balance of speed and accuracy",
    ]


def test_only_five_paths_and_pieces_unless_all_are_asked_for(printed):
    some, every = (rows(printed(labelled_report(), all_pieces=value)[0]) for value in (False, True))
    assert [sum("stage" in row[0] for row in found) for found in (some, every)] == [5, 120]
    assert sum(row[0].count(",") == 11 for row in some) == 5
    assert ["stage1/o1-o1.onnx", "1,1", "0.0600", "30.00", "–", "–"] in every  # noqa: RUF001
    assert "not faster than the next wider one\n" in printed(labelled_report(), all_pieces=True)[0]


def test_what_is_absent_is_not_printed(printed):
    out, err = printed(minimal_report())
    assert titles(out) == [
        "vgg16-set on ort, cpu, a thread per core; batch 1, the agent's own penalty; 1 images of images.npy", "beside the controller at its last option", "images by option",
    ]  # fmt: skip
    assert ["controller", "–", "–", "–", "–", "400.0"] in rows(out)  # noqa: RUF001
    assert out.endswith("no expected latency: measured for one image a run only\n")
    assert "J/image" not in out and err == ""


def test_the_result_is_on_stdout_and_warnings_on_stderr(printed):
    out, err = printed(labelled_report())
    assert "\nThe controller takes 3.210 ms an image" in out
    assert out.count("RAPL counters cannot be read") == 1
    assert err == f"warning: {labelled_report().warnings[0]}\n"
    assert "coefficient" not in out


def test_every_table_of_random_inputs_is_stamped(printed):
    out, _ = printed(random_inputs_report())
    assert len(titles(out)) == 12 and all(title.endswith(f"({RANDOM_STAMP})") for title in titles(out))
    assert RANDOM_STAMP not in printed(labelled_report())[0]


def test_names_are_neither_mark_up_nor_obeyed(printed):
    report = hostile_report()
    nasty = report.contenders[1].model_copy(update={"name": "[red]\x1b[2J"})
    report = report.model_copy(
        update={"contenders": (nasty, *report.contenders[2:]), "warnings": ("\x1b[2J",)}
    )
    out, err = printed(report)
    assert ["[red]�[2J", "5.600"] in [row[:2] for row in rows(out)]
    assert "\x1b" not in out + err and err == "warning: �[2J\n"


def test_numbers_are_whole_on_a_narrow_terminal(printed, monkeypatch):
    monkeypatch.setenv("COLUMNS", "76")
    monkeypatch.setattr(Console, "is_terminal", True)
    out, _ = printed(labelled_report())
    found = rows(re.sub("\x1b\\[[0-9;]*m", "", out))
    ends = [row[1:] for row in found]
    assert ["3.210", "3.178–3.258", "5.149", "5.982", "8.336", "10.47", "1412"] in ends  # noqa: RUF001
    assert ["400.0", "–", "8.000", "9.533", "too few", "2.3", "no, early"] in ends  # noqa: RUF001
    assert any(row[-1] == "no" and row[0] == "0.003" for row in found)
