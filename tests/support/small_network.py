"""Fake engines for the manifest of ``bundles.small_manifest``, and a plan that has the agent inside."""

from __future__ import annotations

import threading

import numpy as np

from bundles import small_manifest
from rnp_deploy.engine import Arrays
from rnp_deploy.engines.fake import FakeEngine
from rnp_deploy.plan import PENALTY, Plan, Step, option_name, plan_of_bundle, state_name

__all__ = [
    "AGENT",
    "BRANCHES",
    "Network",
    "WatchedEngine",
    "decided",
    "expected_outputs",
    "fused_plan",
    "images_of",
]

AGENT = ["agent/0.onnx", "agent/1.onnx"]
BRANCHES = [
    "s0/full.onnx",
    "s1/1.onnx",
    "s1/2.onnx",
    "s2/1-1.onnx",
    "s2/1-2.onnx",
    "s2/2-1.onnx",
    "s2/2-2.onnx",
]


class WatchedEngine(FakeEngine):
    """Tells bound calls from runs of their own.

    Attributes:
        binds: The batch of each bound call made.
        bound_runs: The batch of each run of a bound call.
        apart_runs: The feeds of each other run.
    """

    def __init__(self, compute):
        super().__init__(compute)
        self.binds: list[int] = []
        self.bound_runs: list[int] = []
        self.apart_runs: list[Arrays] = []
        self._inside = threading.local()

    def bind(self, inputs, outputs):
        batch = len(next(iter(inputs.values())))
        self.binds.append(batch)
        call = super().bind(inputs, outputs)

        def watched():
            self._inside.batch = batch
            try:
                call()
            finally:
                self._inside.batch = None

        return watched

    def run(self, feeds):
        batch = getattr(self._inside, "batch", None)
        if batch is None:
            self.apart_runs.append(feeds)
        else:
            self.bound_runs.append(batch)
        return super().run(feeds)


class Network:
    """What the fake engines compute.

    An image is filled with its id. x1 records the branch of stage 1, the outputs are (id,
    branch of stage 1, branch of stage 2). Bit t of the id, plus one, is the option the agent
    takes at decision t; its state counts the steps in the first value and sums ids in the
    second.
    """

    def __init__(self) -> None:
        self.opened: list[str] = []
        self.engines: dict[str, WatchedEngine] = {}

    def open(self, path):
        self.opened.append(path)
        folder, name = path.removesuffix(".onnx").split("/")
        compute = {
            "agent": self.agent,
            "s0": self.stem,
            "s1": self.middle,
            "s2": self.head,
            "late": self.late,
        }[folder]
        self.engines[path] = WatchedEngine(lambda feeds: compute(name, feeds))
        return self.engines[path]

    def runs(self, path):
        return self.engines[path].runs

    def late(self, name, feeds):
        """What comes after the outputs, in the one test that has it."""
        return {"late": feeds["a"] + feeds["b"]}

    def agent(self, name, feeds):
        ids = feeds["features"][:, 0]
        state = feeds["state"] + np.stack([np.ones_like(ids), ids, feeds["penalty"]], axis=1)
        option = (ids.astype(np.int64) >> int(name) & 1) + 1
        return {"q_values": np.zeros((len(ids), 2), np.float32), "option": option, "next_state": state}

    def stem(self, name, feeds):
        x0 = np.repeat(feeds["images"], 2, axis=1)
        return self.with_agent(0, feeds, {"x0": x0, "f0": x0[:, :, 0, 0].copy()})

    def middle(self, name, feeds):
        ids = feeds["x0"][:, 0, 0, 0]
        width = 2 * int(name)
        x1 = np.zeros((len(ids), width, 2, 2), np.float32)
        x1[:, 0], x1[:, 1] = ids[:, None, None], float(name)
        f1 = np.zeros((len(ids), 4), np.float32)
        f1[:, :2] = x1[:, :2, 0, 0]
        return self.with_agent(1, feeds, {"x1": x1, "f1": f1})

    def with_agent(self, t, feeds, made):
        """The step of the agent behind a branch, where the plan has it there."""
        if "state" in feeds:
            made |= self.agent(t, {**feeds, "features": made[f"f{t}"]})
        return made

    def head(self, name, feeds):
        ids, x1 = feeds["x0"][:, 0, 0, 0], feeds["x1"][:, :2, 0, 0]
        assert (ids == x1[:, 0]).all(), "tensors of different samples were brought together"
        branch = np.full_like(ids, float(name.replace("-", "")))
        return {"outputs": np.stack([ids, x1[:, 1], branch], axis=1)}


def images_of(ids):
    return np.repeat(np.asarray(ids, np.float32), 4).reshape(len(ids), 1, 2, 2)


def expected_outputs(ids, options):
    return [[i, a, 10 * a + b] for i, (a, b) in zip(ids, options, strict=True)]


def decided(ids):
    return [[(i & 1) + 1, (i >> 1 & 1) + 1] for i in ids]


def fused_plan() -> Plan:
    """The plan of the manifest with each agent step in the branch before it; x0 is kept for the last."""
    plan = plan_of_bundle(small_manifest())
    stages = [step for step in plan.steps if not step.agent_only]
    steps = [_with_agent(step, t) for t, step in enumerate(stages[:2])]
    return Plan(tensors=plan.tensors, steps=(*steps, stages[2]))


def _with_agent(step: Step, t: int) -> Step:
    read = {"state": state_name(t), "penalty": PENALTY}
    made = {name: name for name in step.outputs if name != f"f{t}"}
    made |= {"option": option_name(t), "next_state": state_name(t + 1)}
    return step.model_copy(update={"inputs": {**step.inputs, **read}, "outputs": made, "decides": t})
