"""The agent's nodes within pieces: how the profile is read, and that ONNX Runtime writes one."""

from __future__ import annotations

import numpy as np
import pytest

from rnp_deploy.benchmarking.agent_nodes import _ROUNDS, _agent_ms, agent_call_ms
from rnp_deploy.bundle.engine_set import open_engine_set
from rnp_deploy.errors import InputError


def events(*rounds):
    """A profile of rounds of (node, µs)."""
    nodes = [
        {"cat": "Node", "name": f"{name}_kernel_time", "dur": us}
        for of_round in rounds
        for name, us in of_round
    ]
    return [
        {"cat": "Session", "name": "model_run", "dur": 999},
        *nodes,
        {"cat": "Session", "name": "end", "dur": 9},
    ]


def test_medians_of_the_rounds_less_what_the_profiler_takes():
    """The least of all nodes, here 3 µs, is the profiler's own."""
    first = [("conv", 9000), ("agent/0/x", 9000), ("agent/option.0", 9000)]
    usual = [("conv", 100), ("agent/0/x", 10), ("agent/option.0", 5)]
    preempted = [("conv", 100), ("agent/0/x", 4000), ("agent/option.0", 5)]
    rounds = [first, preempted, *[usual] * (_ROUNDS - 2)]
    plain = [[("view", 3), ("conv", 50)]] * _ROUNDS
    assert _agent_ms({"a": events(*rounds), "b": events(*plain)}) == {
        "a": pytest.approx((10 - 3 + 5 - 3) / 1e3),
        "b": 0.0,
    }


def test_calls_of_a_piece_are_averaged():
    """Three calls a round, such as of three batches."""
    calls = [("conv", 50), ("agent/x", 6), ("conv", 80), ("agent/x", 8), ("conv", 1), ("agent/x", 10)]
    assert _agent_ms({"a": events(*[calls] * _ROUNDS)}) == {"a": pytest.approx((5 + 7 + 9) / 3 / 1e3)}


def test_an_engine_set_tells_the_agent_in_every_piece(exported, engine_set, tmp_path, monkeypatch):
    path, images = engine_set("chain"), exported("chain").images(3).numpy()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))  # once torch, which uses it too, has exported
    agent_ms = agent_call_ms(path, "auto", "cpu", 1, [images[:2], images[2:]], penalty=0.1)
    steps = open_engine_set(path).engines.plan.steps
    assert set(agent_ms) == {piece.file for step in steps for piece in step.pieces}
    for step in steps:
        assert all((agent_ms[piece.file] > 0) == (step.decides is not None) for piece in step.pieces)
    assert not list(tmp_path.iterdir())


def test_pieces_that_were_not_called_have_the_mean_of_their_step(exported, engine_set):
    path, image = engine_set("chain"), exported("chain").images(1).numpy()
    agent_ms = agent_call_ms(path, "auto", "cpu", 1, [image], penalty=-100.0)
    step = open_engine_set(path).engines.plan.steps[1]
    assert len({agent_ms[piece.file] for piece in step.pieces}) == 1


def test_an_agent_with_steps_of_its_own_is_not_looked_for(exported):
    assert (
        agent_call_ms(exported("chain").path, "onnxruntime", "cpu", 1, [np.zeros((1, 3, 16, 16), np.float32)])
        is None
    )


def test_without_batches_there_is_nothing_to_tell(engine_set):
    with pytest.raises(InputError, match="no batch"):
        agent_call_ms(engine_set("chain"), "auto", "cpu", 1, [])


def test_runs_are_those_of_the_controller(exported, engine_set):
    image = exported("chain").images(1).numpy()
    with pytest.raises(InputError, match="penalty is"):
        agent_call_ms(engine_set("chain"), "auto", "cpu", 1, [image], penalty=float("nan"))
