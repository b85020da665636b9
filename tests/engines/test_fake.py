"""The public fake keeps the promises of an engine."""

from __future__ import annotations

import numpy as np
import pytest

from rnp_deploy.engines.fake import FakeEngine
from rnp_deploy.errors import EngineError


def test_it_computes_and_keeps_what_it_was_fed():
    engine = FakeEngine(lambda feeds: {"y": feeds["x"] + 1})
    feeds = [{"x": np.array([1.0])}, {"x": np.array([5.0])}]
    assert [engine.run(feed)["y"].tolist() for feed in feeds] == [[2.0], [6.0]]
    assert engine.runs == feeds


def test_it_refuses_to_run_after_close_which_may_come_twice():
    engine = FakeEngine(lambda feeds: feeds)
    assert not engine.closed
    engine.close()
    engine.close()
    assert engine.closed
    with pytest.raises(EngineError, match="after close"):
        engine.run({})
    assert engine.runs == []


def test_a_bound_call_reads_and_writes_the_same_memory_every_time():
    engine = FakeEngine(lambda feeds: {"y": feeds["x"] + 1, "z": feeds["x"]})
    x, y = np.array([1.0]), np.array([0.0])
    call = engine.bind({"x": x}, {"y": y})
    assert engine.runs == [], "binding is no run"
    for value in (4.0, 7.0):
        x[:] = value
        call()
        assert (x.tolist(), y.tolist()) == ([value], [value + 1])
    assert [run["x"].tolist() for run in engine.runs] == [[4.0], [7.0]], "what was fed is kept as it was"


def test_a_bound_output_may_be_the_memory_of_an_input():
    x = np.array([1.0, 2.0, 3.0])
    call = FakeEngine(lambda feeds: {"y": feeds["x"][::-1]}).bind({"x": x}, {"y": x})
    call()
    assert x.tolist() == [3, 2, 1]


def test_a_bound_output_that_is_not_made_is_an_error():
    call = FakeEngine(lambda feeds: {"y": feeds["x"]}).bind({"x": np.zeros(1)}, {"z": np.zeros(1)})
    with pytest.raises(EngineError, match="no output 'z'"):
        call()


def test_a_bound_call_after_close_is_refused():
    engine = FakeEngine(lambda feeds: {"y": feeds["x"]})
    call = engine.bind({"x": np.zeros(1)}, {"y": np.zeros(1)})
    engine.close()
    with pytest.raises(EngineError, match="after close"):
        call()
