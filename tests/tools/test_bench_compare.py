"""rnp-bench compare: tables, exit codes and one line for each error."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner

from commands import failure, json_report, success
from rnp_deploy.benchmarking.report import RANDOM_STAMP
from rnp_deploy.tools.bench_compare import main
from timed_reports import timed_report


@pytest.fixture
def report(tmp_path):
    """Writes the report of contenders by their ms; gives the path."""

    def write(name, changes=None, **ms):
        rng = np.random.default_rng(len(name))
        latencies = {key: of * np.exp(0.02 * rng.standard_normal(200)) for key, of in ms.items()}
        path = tmp_path / f"{name}.json"
        path.write_text(timed_report(latencies, **(changes or {})).model_dump_json(), encoding="utf-8")
        return path

    return write


@pytest.fixture
def before(report):
    return report("before", dense=10.0, controller=5.0, small=2.0)


def exit_code(*arguments):
    result = CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)
    return result.exit_code, result.output


def test_what_is_the_same_passes(before, report):
    text = success(main, [before, report("now", dense=10.1, controller=5.1, small=2.0)]).stdout
    assert "controller: same at a tolerance of 10 %\n" in text
    row = next(line for line in text.splitlines() if "controller" in line)
    assert "1.02" in row
    assert row.count("same") == 2


def test_a_slower_controller_fails_and_the_table_is_printed(before, report):
    code, text = exit_code(before, report("now", dense=10.0, controller=6.5, small=2.0))
    assert code == 1
    assert "controller: slower at a tolerance of 10 %: FAIL" in text
    assert "B ÷ A" in text
    assert "Error" not in text


def test_the_tolerance_decides(before, report):
    now = report("now", dense=10.0, controller=6.5, small=2.0)
    assert exit_code(before, now, "--tolerance", "0.5")[0] == 0
    assert exit_code(before, now, "--tolerance", "0.2")[0] == 1


def test_a_faster_controller_passes(before, report):
    text = success(main, [before, report("now", dense=10.0, controller=3.0, small=2.0)]).stdout
    assert "controller: faster" in text


def test_what_cannot_be_told_passes_and_says_so(before, report):
    text = success(main, [before, report("now", dense=10.0, controller=5.5, small=2.0)]).stdout
    assert "controller: undecided at a tolerance of 10 %: measure longer to tell" in text


def test_which_contenders_decide(before, report):
    now = report("now", dense=10.0, controller=5.0, small=3.0)
    assert exit_code(before, now)[0] == 0
    assert exit_code(before, now, "--contender", "dense")[0] == 0
    code, text = exit_code(before, now, "--contender", "dense", "--contender", "small")
    assert code == 1
    assert "small: slower" in text
    assert "dense: same" in text
    assert "controller:" not in text
    code, text = exit_code(before, now, "--all")
    assert code == 1
    assert all(f"{name}: " in text for name in ("dense", "controller", "small"))


def test_relative_takes_a_slower_machine_out(before, report):
    now = report("now", dense=15.0, controller=7.5, small=3.0)
    assert exit_code(before, now)[0] == 1
    code, text = exit_code(before, now, "--relative")
    assert code == 0
    assert "A p50 ÷ dense" in text
    assert "A p50 ms" not in text


def test_the_json_report(before, report):
    changes = {"environment": {"processor": "new"}}
    comparison = json_report(
        main, [before, report("now", changes, controller=5.0, more=1.0), "--tolerance", "0.3"]
    )
    assert comparison["tolerance"] == 0.3
    assert (comparison["only_in_a"], comparison["only_in_b"]) == (["dense", "small"], ["more"])
    assert comparison["differences"] == ["processor: absent in A, new in B"]
    (controller,) = comparison["contenders"]
    assert (controller["name"], controller["p50"]["verdict"]) == ("controller", "same")
    code, text = exit_code(before, report("now", controller=9.0), "--json")
    assert code == 1
    assert json.loads(text)["contenders"][0]["p50"]["verdict"] == "slower"


def test_the_table_says_what_differs(before, report):
    changes = {"subject": {"backend": "torch"}}
    text = success(main, [before, report("now", changes, controller=5.0, more=1.0)]).stdout
    assert "differs: backend: onnxruntime in A, torch in B\n" in text
    assert "only in A: dense, small\n" in text
    assert "only in B: more\n" in text


def test_accuracy_and_macs_in_points(report):
    a, b = (
        report(name, {"contenders": {"accuracy": accuracy, "macs_share": 0.5}}, controller=5.0)
        for name, accuracy in (("a", 0.9), ("b", 0.875))
    )
    row = next(line for line in success(main, [a, b]).stdout.splitlines() if "controller" in line)
    assert row.index("-2.50") < row.index("+0.00")


def test_random_inputs_are_stamped(report):
    a, b = (report(name, {"data": {"stamp": RANDOM_STAMP}}, controller=5.0) for name in "ab")
    assert RANDOM_STAMP in success(main, [a, b]).stdout


def test_names_move_no_terminal(report):
    name = "[red]\x1b[2J\nx"
    a, b = (report(of, **{"controller": 5.0, name: 1.0}) for of in "ab")
    text = success(main, [a, b, "--all"]).stdout
    assert "\x1b" not in text
    assert "[red] [2J x: same" in text
    assert text.count("[red] [2J x") == 2


@pytest.mark.parametrize(("runs", "p50", "too_few"), [(1, "-", 2), (8, "0.2", 1), (60, "0.2", 1)])
def test_too_few_runs(before, tmp_path, runs, p50, too_few):
    few = tmp_path / "few.json"
    few.write_text(timed_report({"controller": np.ones(runs)}).model_dump_json(), encoding="utf-8")
    text = success(main, [before, few]).stdout
    row = next(line for line in text.splitlines() if "controller" in line)
    assert row.count("too few runs") == too_few
    assert row.split("│")[4].strip().startswith(p50)
    assert f"controller: {'faster' if runs == 60 else 'undecided'} at" in text


def test_errors_are_one_line(before, report, tmp_path):
    now = report("now", small=2.0)
    assert "no controller is in both reports; name what" in failure(main, [before, now])
    assert "'x' is not compared; these are: small" in failure(main, [before, now, "--contender", "x"])
    assert "report B has no dense network" in failure(main, [before, now, "--relative"])
    assert "is no report that can be read" in failure(main, [before, tmp_path / "none.json"])
    assert "the tolerance is nan" in failure(main, [before, before, "--tolerance", "nan"])
    batch = report("batch", {"settings": {"batch": 4}}, controller=1.0)
    assert "batch is 1 in A and 4 in B" in failure(main, [before, batch])


@pytest.mark.parametrize(
    "arguments", [["--contender", "dense", "--all"], ["--tolerance", "-1"], ["--nothing"]]
)
def test_wrong_usage_exits_with_2(before, arguments):
    assert exit_code(before, before, *arguments)[0] == 2
    assert exit_code(before)[0] == 2
