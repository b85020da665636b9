"""The governor against a simulated queue whose load rises and falls."""

from __future__ import annotations

import numpy as np
import pytest

from rnp_deploy import LatencyGovernor
from rnp_deploy.price_scale import PriceScale
from simulated_load import SHAPES, Clock, arrivals, serve

LOW, HIGH = RANGE = (-0.02, 1.0)
SCALE = PriceScale(*RANGE)
LEAD_S, LOADED_S, TAIL_S = 15.0, 60.0, 60.0
#: Target, and what a request takes at the lowest and at the dearest price, ms: a target of 6 requests, of 20, of 4.
SERVERS = {"six": (60.0, 10.0, 3.0), "twenty": (200.0, 10.0, 4.0), "slow": (160.0, 40.0, 12.0)}


def governed(clock, target_latency_ms):
    return LatencyGovernor(target_latency_ms=target_latency_ms, penalty_range=RANGE, clock=clock)


def server(lowest_ms, dearest_ms, noise=0.0, seed=7):
    rng = np.random.default_rng(seed)

    def service_ms(position):
        lognormal = np.exp(noise * rng.standard_normal() - noise**2 / 2)
        return (lowest_ms + (dearest_ms - lowest_ms) * position) * lognormal

    return service_ms


def load(shape, lowest_ms, seed=3):
    """Calm at a fifth of what the lowest price can serve, peaks at one and a half times that."""
    rates = {"calm": 200 / lowest_ms, "peak": 1500 / lowest_ms}
    return arrivals(shape, **rates, lead_s=LEAD_S, loaded_s=LOADED_S, tail_s=TAIL_S, seed=seed)


@pytest.mark.parametrize("noise", [0.0, 0.3])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", SERVERS)
def test_the_p95_stays_under_the_target_where_the_lowest_price_breaks_it(name, shape, noise):
    target_ms, *times_ms = SERVERS[name]
    clock, times = Clock(), load(shape, times_ms[0])
    governor = governed(clock, target_ms)
    trace = serve(times, server(*times_ms, noise), SCALE.position, governor, clock)
    fixed = serve(times, server(*times_ms, noise), SCALE.position, LOW, Clock())
    end = LEAD_S + LOADED_S
    assert fixed.p95_ms() > 2 * target_ms, "the load is no test"
    assert fixed.p95_ms(LEAD_S, end) > 2 * target_ms
    assert trace.p95_ms() < target_ms
    assert trace.p95_ms(LEAD_S, end) < target_ms, "reaction times included"
    assert np.median(trace.penalty[trace.arrived_s < LEAD_S]) == LOW
    assert (trace.penalty[-50:] == LOW).all(), "accuracy was not given back in the calm"


def test_what_the_load_does_not_need_is_not_taken():
    """Under a steady load the mean price is not far above the best fixed one, 0.55 of the scale here."""
    clock = Clock()
    times = np.sort(np.random.default_rng(0).uniform(0, 120, 120 * 150))
    trace = serve(times, server(10, 3), SCALE.position, governed(clock, 200.0), clock)
    fixed = serve(times, server(10, 3), SCALE.position, SCALE.penalty(0.45), Clock())
    assert fixed.p95_ms(10) > 200 > trace.p95_ms(10)
    assert trace.position[trace.arrived_s > 10].mean() < 0.75


@pytest.mark.parametrize("noise", [0.0, 0.2])
def test_a_steady_load_makes_the_price_linger(noise):
    """Even arrivals at 1.5 times what the lowest price serves: 0.476 of the scale is just enough."""
    clock = Clock()
    trace = serve(
        np.arange(0, 120, 1 / 150), server(10, 3, noise), SCALE.position, governed(clock, 60.0), clock
    )
    late = trace.position[trace.arrived_s > 20]
    assert late.std() < 0.1
    assert np.ptp(late) < 0.4
    assert np.count_nonzero(np.diff(late) > 0.01) < 30, "raised every few seconds"
    assert trace.p95_ms(1) < 60


def test_a_target_out_of_reach_stays_at_the_dearest_price_and_says_so():
    clock = Clock()
    governor = governed(clock, 2.0)
    times = arrivals("step", calm=20, peak=20, lead_s=5, loaded_s=20, tail_s=5, seed=1)
    trace = serve(times, server(10, 3), SCALE.position, governor, clock)
    assert (trace.penalty[trace.arrived_s > 5] == HIGH).all()
    assert governor.snapshot().out_of_reach
    for _ in range(4000):
        clock.now += 0.01
        governor.record(0.5)
    assert not governor.snapshot().out_of_reach
    assert governor.penalty == LOW
