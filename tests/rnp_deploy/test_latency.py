"""The latency curve: a target becomes a penalty, and a file keeps the curve."""

from __future__ import annotations

import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from rnp_deploy.canonical_json import canonical_sha256
from rnp_deploy.errors import BundleError, FormatVersionError, InputError, IntegrityError, OutputError
from rnp_deploy.latency import LatencyCurve, LatencyPoint, read_latency_curve, save_latency_curve


def curve(*points: tuple[float, float], batch: int = 1) -> LatencyCurve:
    """From (penalty, p95_ms); p50_ms is half of it."""
    return LatencyCurve(
        batch=batch, threads=1, data="digits:test", images=32, runs=100, environment={"cores": 2, "processor": "x"},
        points=tuple(LatencyPoint(penalty=p, macs_share=0.5, p50_ms=ms / 2, p95_ms=ms) for p, ms in points),
    )  # fmt: skip


CURVE = curve((-0.02, 20.0), (0.1, 10.0), (0.2, 6.0), (0.3, 8.0), (0.5, 4.0))


@pytest.mark.parametrize(
    ("target_ms", "penalty"), [(30.0, -0.02), (20.0, -0.02), (15.0, 0.04), (10.0, 0.1), (7.0, 0.2), (5.5, 0.4), (4.0, 0.5)]
)  # fmt: skip
def test_a_target_lies_between_its_neighbours_and_bumps_are_smoothed(target_ms, penalty):
    assert CURVE.penalty_for(target_ms) == pytest.approx(penalty)


def test_one_lucky_measurement_is_not_believed():
    lucky = curve((0.0, 10.0), (0.1, 4.0), (0.2, 9.0), (0.3, 8.0), (0.5, 5.0))
    assert lucky.penalty_for(6.0) > 0.3


def test_the_median_can_be_asked_for():
    assert CURVE.penalty_for(10.0, quantile=0.5) == -0.02
    assert CURVE.penalty_for(10.0, quantile=0.95) == 0.1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"target_latency_ms": 3.9}, "is 3.9: the fastest measured point takes 4 ms .p95, batch 1., at penalty 0.5"),
        ({"target_latency_ms": 1.9, "quantile": 0.5}, "takes 2 ms .p50, batch 1."),
        ({"target_latency_ms": 0.0}, "target_latency_ms is 0.0; pass milliseconds above 0"),
        ({"target_latency_ms": float("nan")}, "target_latency_ms is nan"),
        ({"target_latency_ms": float("inf")}, "target_latency_ms is inf"),
        ({"target_latency_ms": 9.0, "quantile": 0.9}, "quantile is 0.9; 0.5 and 0.95 were measured"),
    ],
    ids=str,
)  # fmt: skip
def test_targets_that_are_refused(arguments, words):
    with pytest.raises(InputError, match=words):
        CURVE.penalty_for(**arguments)


@given(st.lists(st.floats(1, 50), min_size=1, max_size=8), st.floats(1, 50), st.floats(1, 50))
def test_a_shorter_target_never_lowers_the_penalty(values_ms, a, b):
    measured = curve(*((0.1 * i, ms) for i, ms in enumerate(values_ms)))
    low_ms, high_ms = sorted((a, b))
    try:
        shorter = measured.penalty_for(low_ms)
    except InputError:
        return
    assert shorter >= measured.penalty_for(high_ms) >= 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda raw: raw.update(points=raw["points"][::-1]), "do not rise"),
        (lambda raw: raw.update(points=()), "at least 1"),
        (lambda raw: raw.update(batch=0), "batch"),
        (lambda raw: raw.update(more=1), "more"),
        (lambda raw: raw["points"][0].update(p50_ms=21.0), "p95 of 20.0 ms is below p50 of 21.0 ms"),
        (lambda raw: raw["points"][0].update(p50_ms=0.0), "p50_ms"),
        (lambda raw: raw["points"][0].update(p95_ms=float("inf")), "p95_ms"),
    ],
)
def test_what_is_no_curve_is_refused(change, words):
    raw = CURVE.model_dump()
    change(raw)
    with pytest.raises(ValidationError, match=words):
        LatencyCurve.model_validate(raw)


def test_a_file_keeps_the_curves_and_an_earlier_one_is_replaced(tmp_path):
    path = tmp_path / "latency.json"
    save_latency_curve([CURVE], path)
    assert read_latency_curve(path) == (CURVE,)
    both = (CURVE, curve((0.0, 3.3), (1.0, 1 / 3), batch=8).model_copy(update={"threads": None}))
    save_latency_curve(both, str(path))
    assert read_latency_curve(str(path)) == both
    assert os.listdir(tmp_path) == ["latency.json"]


def signed(raw):
    raw["latency_sha256"] = canonical_sha256(raw, without="latency_sha256")


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        (lambda raw: raw["curves"][0]["points"][0].update(p95_ms=1.0), IntegrityError, "not those it was written"),
        (lambda raw: raw.pop("latency_sha256"), IntegrityError, "not those it was written"),
        (lambda raw: (raw.update(format_version="2.0"), signed(raw)), FormatVersionError, "format 2.0 is not read"),
        (lambda raw: (raw.update(curves=[]), signed(raw)), BundleError, "curves: .*measure the curve again"),
        (lambda raw: (raw["curves"][0].update(batch="1"), signed(raw)), BundleError, "curves.0.batch: "),
        (lambda raw: (raw.update(more=1), signed(raw)), BundleError, "more: "),
    ],
    ids=["value", "unsigned", "version", "empty", "type", "key"],
)  # fmt: skip
def test_a_file_that_was_changed_is_refused(tmp_path, change, kind, words):
    path = tmp_path / "latency.json"
    save_latency_curve([CURVE], path)
    raw = json.loads(path.read_text())
    change(raw)
    path.write_text(json.dumps(raw))
    with pytest.raises(BundleError, match=words) as caught:
        read_latency_curve(path)
    assert type(caught.value) is kind


@pytest.mark.parametrize("content", [None, b"", b"[]", b"{", b"\xff", b'{"a": NaN}'])
def test_a_file_that_is_none_is_refused(tmp_path, content):
    path = tmp_path / "latency.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BundleError, match=r"latency\.json cannot be read.*measure the curve again"):
        read_latency_curve(path)


def test_writing_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "latency.json"
    save_latency_curve([CURVE], path)
    with pytest.raises(InputError, match="no latency curve"):
        save_latency_curve([], path)
    with pytest.raises(InputError, match="nowhere does not exist"):
        save_latency_curve([CURVE], tmp_path / "nowhere" / "latency.json")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OutputError, match="cannot be written: full"):
        save_latency_curve([curve((0.0, 1.0))], path)
    assert os.listdir(tmp_path) == ["latency.json"]
    assert read_latency_curve(path) == (CURVE,)
