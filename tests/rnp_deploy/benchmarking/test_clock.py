"""Waiting by the wall clock."""

from __future__ import annotations

from rnp_deploy.benchmarking.clock import WALL
from simulated_clock import SimulatedClock


def test_waiting_ends_no_sooner_than_asked():
    for ms in (0.1, 5):
        moment = WALL.now_ns() + round(ms * 1e6)
        WALL.wait_until_ns(moment)
        assert WALL.now_ns() >= moment


def test_a_moment_that_has_passed_is_not_waited_for(monkeypatch):
    monkeypatch.setattr("rnp_deploy.benchmarking.clock.time.sleep", lambda seconds: 1 / 0)
    WALL.wait_until_ns(WALL.now_ns() - 10**12)


def test_a_simulated_clock_goes_by_what_is_spent():
    clock = SimulatedClock()
    before = clock.now_ns()
    clock.spend_ms(2.5)
    clock.wait_until_ns(before)
    assert clock.now_ns() == before + 2_500_000
    clock.wait_until_ns(before + 10**9)
    assert clock.now_ns() == before + 10**9
