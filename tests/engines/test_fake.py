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
