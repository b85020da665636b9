"""Random plans, and engines in whose results every value they read leaves its mark."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from rnp_deploy.engine import Arrays
from rnp_deploy.engines.fake import FakeEngine
from rnp_deploy.plan import PENALTY, Piece, Plan, PlanTensor, Step, option_name, state_name

__all__ = ["PlanCase", "plan_cases"]

_PRIME = 4093  # float32 holds what is below exactly


@dataclass(frozen=True)
class PlanCase:
    """A plan, with fake engines for its pieces.

    Attributes:
        plan: Its images are ``images``, its outputs ``outputs``.
        counts: Options of each decision.
        engines: File → the last engine opened for it.
        opened: Files in the order they were opened.
    """

    plan: Plan
    counts: tuple[int, ...]
    engines: dict[str, FakeEngine] = field(default_factory=dict)
    opened: list[str] = field(default_factory=list)

    def open(self, file: str) -> FakeEngine:
        """The engine of a piece."""
        step, piece = next((s, p) for s in self.plan.steps for p in s.pieces if p.file == file)
        self.opened.append(file)
        self.engines[file] = FakeEngine(lambda feeds: self._compute(step, piece, feeds))
        return self.engines[file]

    def alone(
        self, image: NDArray[Any], price: float, given: tuple[int, ...] | None
    ) -> tuple[list[float], list[int], int]:
        """Outputs, options and MACs of one image: every tensor in memory of its own, nothing bound."""
        options = list(given or [0] * len(self.counts))
        tensors = {"images": image[None], PENALTY: np.array([price], np.float32)}
        tensors[state_name(0)] = np.zeros((1, 2), np.float32)
        macs = 0
        for step in self.plan.steps:
            if step.agent_only and given is not None:
                continue
            key = tuple(options[t] for t in step.option_decisions)
            piece = next(piece for piece in step.pieces if piece.options == key)
            feeds = {inner: tensors[name] for inner, name in step.inputs.items()}
            made = self._compute(step, piece, feeds)
            tensors.update({name: made[inner] for inner, name in step.outputs.items()})
            macs += piece.macs
            if step.decides is not None and given is None:
                options[step.decides] = int(tensors[option_name(step.decides)][0])
        return tensors["outputs"][0].tolist(), options, macs

    def _compute(self, step: Step, piece: Piece, feeds: Arrays) -> Arrays:
        kinds = {tensor.name: tensor for tensor in self.plan.tensors}
        chosen = [0] * len(self.counts)
        for t, option in zip(step.option_decisions, piece.options, strict=True):
            chosen[t] = option
        batch = len(next(iter(feeds.values())))
        mark = np.full(batch, 17 + 31 * len(piece.file) + sum(piece.file.encode()), np.int64)
        for inner, name in step.inputs.items():
            wanted = (batch, *kinds[name].shape_at(chosen))
            assert feeds[inner].shape == wanted, f"{name} came as {feeds[inner].shape}, not {wanted}"
            values = feeds[inner].reshape(batch, -1).astype(np.int64)
            mark = (5 * mark + values @ np.arange(3, 3 + values.shape[1])) % _PRIME
        made = {}
        for place, (inner, name) in enumerate(step.outputs.items()):
            shape = kinds[name].shape_at(chosen)
            values = (mark[:, None] * (place + 2) + np.arange(int(np.prod(shape)))) % _PRIME
            if name == option_name(step.decides or 0):
                values = values % self.counts[step.decides or 0] + 1
            made[inner] = values.reshape(batch, *shape).astype(kinds[name].dtype)
        return made


@st.composite
def plan_cases(draw: st.DrawFn) -> PlanCase:
    """Plans of one to three decisions, with the agent inside or beside, shortcuts, and memory used twice."""
    counts = tuple(draw(st.lists(st.integers(1, 3), min_size=1, max_size=3)))
    fused = draw(st.booleans())
    tensors = [PlanTensor(name=PENALTY, shape=()), PlanTensor(name="images", shape=(2, 3))]
    tensors += [PlanTensor(name=state_name(t), shape=(2,)) for t in range(len(counts) + 1)]
    tensors += [PlanTensor(name=option_name(t), shape=(), dtype="int64") for t in range(len(counts))]
    steps: list[Step] = []
    passed_on = [tensors[1]]
    ends_at = draw(st.sampled_from([len(counts), *range(len(counts))]))
    for s in range(len(counts) + 1):
        if s and not fused:
            steps.append(_agent_step(s - 1))
        read = draw(st.lists(st.sampled_from(passed_on), min_size=1, max_size=3, unique_by=lambda x: x.name))
        made = [draw(_tensor(f"x{s}.{n}", s - 1, counts)) for n in range(draw(st.integers(1, 2)))]
        last = s == len(counts)
        made += [PlanTensor(name="outputs", shape=(3, 2))] if s == ends_at else []
        passed_on += made
        tensors += made if last else [*made, PlanTensor(name=f"f{s}", shape=(2,))]
        outputs = {f"out.{x.name}": x.name for x in made}
        inputs = {f"in.{x.name}": x.name for x in read}
        if draw(st.booleans()):
            inputs["again"] = read[0].name
        if not last and not fused:
            outputs["features"] = f"f{s}"
        decides = s if fused and not last else None
        if decides is not None:
            agent = _agent_step(s)
            inputs |= {inner: name for inner, name in agent.inputs.items() if inner != "features"}
            outputs |= agent.outputs
        steps.append(_branches(s, read, inputs, outputs, counts, decides))
    plan = Plan(tensors=tuple(tensors), steps=tuple(steps))
    return PlanCase(_some_in_place(draw, plan), counts)


@st.composite
def _tensor(draw: st.DrawFn, name: str, decision: int, counts: tuple[int, ...]) -> PlanTensor:
    if decision < 0 or draw(st.booleans()):
        return PlanTensor(name=name, shape=(draw(st.sampled_from([1, 8, 20, 40])), 2))
    sizes = sorted(draw(st.sets(st.integers(1, 40), min_size=counts[decision], max_size=counts[decision])))
    return PlanTensor(name=name, shape=(sizes[-1], 2), follows=decision, axis=1, sizes=tuple(sizes))


def _agent_step(t: int) -> Step:
    return Step(
        option_decisions=(),
        inputs={"features": f"f{t}", "state": state_name(t), "penalty": PENALTY},
        outputs={"option": option_name(t), "next_state": state_name(t + 1)},
        pieces=(Piece(options=(), file=f"agent/{t}.onnx", macs=0, weight_bytes=0),),
        decides=t,
        agent_only=True,
    )


def _branches(
    s: int,
    read: list[PlanTensor],
    inputs: dict[str, str],
    outputs: dict[str, str],
    counts: tuple[int, ...],
    decides: int | None,
) -> Step:
    decisions = sorted({x.follows for x in read if x.follows is not None} | ({s - 1} if s else set()))
    pieces = tuple(
        Piece(
            options=tuple(int(i) + 1 for i in key),
            file=f"s{s}/{'-'.join(str(i + 1) for i in key) or 'full'}.onnx",
            macs=1000 * (s + 1) + sum((i + 1) * 7**place for place, i in enumerate(key)),
            weight_bytes=10 + sum(key),
        )
        for key in np.ndindex(*(counts[t] for t in decisions))
    )
    return Step(
        option_decisions=tuple(decisions), inputs=inputs, outputs=outputs, pieces=pieces, decides=decides
    )


def _some_in_place(draw: st.DrawFn, plan: Plan) -> Plan:
    """Let outputs take the memory of inputs of the same shape that nothing needs afterwards."""
    last, kinds, steps = plan.last_uses(), {tensor.name: tensor for tensor in plan.tensors}, []
    for i, step in enumerate(plan.steps):
        taken: dict[str, str] = {}
        for out in step.outputs.values():
            fit = [
                x
                for x in step.inputs.values()
                if last[x] == i
                and x != "outputs"
                and x not in taken.values()
                and kinds[x].follows is kinds[out].follows is None
                and (kinds[x].shape, kinds[x].dtype) == (kinds[out].shape, kinds[out].dtype)
            ]
            if fit and draw(st.booleans()):
                taken[out] = fit[0]
        steps.append(step.model_copy(update={"in_place": taken}))
    return Plan(tensors=plan.tensors, steps=tuple(steps))
