"""What a controller runs, step by step: which piece for which options, and the tensors between."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import Field, model_validator

from rnp_deploy.bundle.fields import Count, Frozen, Size, check_values_per_sample
from rnp_deploy.bundle.manifest import Manifest, TensorManifest
from rnp_deploy.dtypes import storage_dtype

__all__ = [
    "PENALTY",
    "Piece",
    "Plan",
    "PlanTensor",
    "Step",
    "check_plan",
    "option_name",
    "plan_of_bundle",
    "state_name",
]

#: Name of the prices ``[N]`` among the tensors of a plan; no tensor of a network has a slash.
PENALTY = "agent/penalty"
_OF_AGENT = ("agent/state.", "agent/option.")


def state_name(decision: int) -> str:
    """The agent's state ``[N, D]`` before a decision; zeros before the first."""
    return f"agent/state.{decision}"


def option_name(decision: int) -> str:
    """The options ``[N]`` int64 in 1..k that the agent chose."""
    return f"agent/option.{decision}"


class PlanTensor(Frozen):
    """A tensor between steps, as it lies in memory: C-contiguous, the batch N first.

    Attributes:
        shape: Without N; an engine set may lay channels out in blocks, and round them up.
        follows: The decision whose option sets the size of ``axis``, or None: full width.
        axis: Counted with N as 0.
        sizes: By option of that decision.
    """

    name: str
    shape: tuple[Size, ...]
    dtype: Literal["float32", "float16", "bfloat16", "int32", "int64"] = "float32"
    follows: Count | None = None
    axis: Size = 1
    sizes: tuple[Size, ...] = ()

    @model_validator(mode="after")
    def _can_be_held(self) -> PlanTensor:
        check_values_per_sample(self.name, self.shape, self.axis, self.sizes)
        return self

    def shape_at(self, options: Sequence[int]) -> tuple[int, ...]:
        """The shape without N, for one option per decision."""
        if self.follows is None:
            return self.shape
        size = self.sizes[options[self.follows] - 1]
        return (*self.shape[: self.axis - 1], size, *self.shape[self.axis :])

    @property
    def largest_bytes(self) -> int:
        """Of one sample, at the option that makes it largest."""
        shape = list(self.shape)
        if self.follows is not None:
            shape[self.axis - 1] = max(self.sizes)
        return math.prod(shape) * storage_dtype(self.dtype).itemsize


class Piece(Frozen):
    """One graph to run: a branch, an agent step, or a branch with the agent step after it."""

    options: tuple[Size, ...]
    file: str
    macs: Count
    weight_bytes: Count


class Step(Frozen):
    """A place in the run: one of its pieces is run for each sample.

    Attributes:
        option_decisions: The decisions whose options name the piece.
        inputs, outputs: The graphs' name of each tensor → its name in the plan.
        pieces: One for each choice of options.
        decides: The decision whose option it gives, or None.
        agent_only: Whether nothing but the agent is in it, so that it is skipped where
            options are given.
        in_place: Output → the input whose memory it may take, by names of the plan.
    """

    option_decisions: tuple[Count, ...]
    inputs: dict[str, str]
    outputs: dict[str, str]
    pieces: tuple[Piece, ...]
    decides: Count | None = None
    agent_only: bool = False
    in_place: dict[str, str] = Field(default_factory=dict)


class Plan(Frozen):
    """Steps in order, and every tensor that they pass on."""

    tensors: tuple[PlanTensor, ...]
    steps: tuple[Step, ...]

    @model_validator(mode="after")
    def _names_are_known(self) -> Plan:
        known = {tensor.name for tensor in self.tensors}
        if len(known) != len(self.tensors):
            raise ValueError("a tensor stands twice in the plan")
        for i, step in enumerate(self.steps):
            unknown = sorted({*step.inputs.values(), *step.outputs.values()} - known)
            if unknown:
                raise ValueError(f"step {i} names {unknown[0]!r}, which is no tensor of the plan")
            misplaced = [out for out, x in step.in_place.items() if out not in step.outputs.values()
                         or x not in step.inputs.values()]  # fmt: skip
            if misplaced:
                raise ValueError(f"step {i} makes {misplaced[0]!r} in place of what it does not read")
        return self

    def last_uses(self) -> dict[str, int]:
        """Tensor → the last step that reads it."""
        return {name: i for i, step in enumerate(self.steps) for name in step.inputs.values()}


def check_plan(plan: Plan, manifest: Manifest) -> None:
    """Refuse a plan that could not be run for a network; raises ValueError.

    Every tensor is made once and before it is read, every decision is taken once and before its option
    names a piece or sizes a tensor, every choice of options has a piece, what is skipped where options are
    given is wanted by nothing else, and what the controller itself reads and writes is as it takes it.
    """
    counts = manifest.option_counts
    tensors = {tensor.name: tensor for tensor in plan.tensors}
    _check_ends(tensors, manifest)
    for tensor in plan.tensors:
        t = tensor.follows
        if t is not None and (
            t >= len(counts) or len(tensor.sizes) != counts[t] or tensor.axis > len(tensor.shape)
        ):
            raise ValueError(f"tensor {tensor.name!r} does not fit the decision it follows")
    made = {manifest.inputs[0].name, PENALTY, state_name(0)}
    skipped: set[str] = set()  # what is not made where options are given
    decided: set[int] = set()
    for i, step in enumerate(plan.steps):
        if not decided.issuperset(step.option_decisions):
            raise ValueError(f"step {i} needs options before they are chosen")
        _check_pieces(i, step, counts)
        _check_tensors(i, step, tensors, made)
        _check_agent_only(i, step, skipped)
        t = step.decides
        if t is not None:
            if t in decided or t >= len(counts) or option_name(t) not in step.outputs.values():
                raise ValueError(
                    f"step {i} takes decision {t}, which is none or taken already, or gives no option"
                )
            decided.add(t)
    if len(decided) != len(counts) or manifest.outputs[0].name not in made:
        raise ValueError("it leaves a decision or the output unmade")


def _check_tensors(i: int, step: Step, tensors: Mapping[str, PlanTensor], made: set[str]) -> None:
    """Refuse a step that reads what is not made, or makes what is; adds what it makes. Raises ValueError."""
    unmade = sorted(set(step.inputs.values()) - made)
    if unmade:
        raise ValueError(f"step {i} reads {unmade[0]!r} before it is made")
    for name in step.outputs.values():
        if name in made:
            raise ValueError(f"step {i} makes {name!r} again")
        made.add(name)
    for name in (*step.inputs.values(), *step.outputs.values()):
        if tensors[name].follows not in (None, *step.option_decisions):
            raise ValueError(f"step {i} takes or gives {name!r} but not the option it follows")


def _check_agent_only(i: int, step: Step, skipped: set[str]) -> None:
    """Refuse an agent's step that gives more than the agent does, and another that reads what one gives.

    Adds what it makes to ``skipped`` where it is an agent's; raises ValueError.
    """
    if not step.agent_only:
        unmade = sorted(skipped.intersection(step.inputs.values()))
        if unmade:
            raise ValueError(f"step {i} reads {unmade[0]!r}, which is not made where options are given")
        return
    if step.decides is None or not all(name.startswith(_OF_AGENT) for name in step.outputs.values()):
        raise ValueError(
            f"step {i} is the agent's alone, and decides nothing or gives more than the agent does"
        )
    skipped.update(step.outputs.values())


def _check_ends(tensors: Mapping[str, PlanTensor], manifest: Manifest) -> None:
    """Refuse other tensors than the controller takes at both ends and of the agent."""
    ends = {tensor.name: tensor.shape for tensor in (*manifest.inputs, *manifest.outputs)}
    floats = ends | {PENALTY: (), state_name(0): (manifest.agent.state_size,)}
    options = {option_name(t): () for t in range(len(manifest.decisions))}
    for name, shape in (floats | options).items():
        if name not in tensors:
            raise ValueError(f"it has no tensor {name!r}")
        found, dtypes = tensors[name], ("float32",) if name in floats else ("int32", "int64")
        if found.shape != shape or found.follows is not None or found.dtype not in dtypes:
            raise ValueError(f"tensor {name!r} is not of shape {shape} and {' or '.join(dtypes)}")


def _check_pieces(i: int, step: Step, counts: Sequence[int]) -> None:
    """Refuse a step without exactly one piece for each choice of options; raises ValueError.

    Numbers of pieces are compared before any choice is: their product may be huge.
    """
    most = [counts[t] for t in step.option_decisions]
    keys = {piece.options for piece in step.pieces}
    each = len(keys) == len(step.pieces) == math.prod(most) and all(
        len(key) == len(most) and all(option <= k for option, k in zip(key, most, strict=True))
        for key in keys
    )
    if not each:
        raise ValueError(f"step {i} has not one piece for each choice of options")


def plan_of_bundle(manifest: Manifest) -> Plan:
    """Stage 0, agent step 0, stage 1, …: each graph of the bundle as it is."""
    agent = manifest.agent
    tensors = {PENALTY: PlanTensor(name=PENALTY, shape=())}
    tensors |= agent_tensors(manifest)
    steps = []
    for stage in manifest.stages:
        if stage.decision is not None:
            t = stage.decision
            step = agent.steps[t]
            graph = Piece(options=(), file=step.file, macs=0, weight_bytes=0)
            steps.append(
                Step(
                    option_decisions=(),
                    inputs={"features": step.features, "state": state_name(t), "penalty": PENALTY},
                    outputs={"option": option_name(t), "next_state": state_name(t + 1)},
                    pieces=(graph,),
                    decides=t,
                    agent_only=True,
                )
            )
        described = (*stage.inputs, *stage.outputs)
        tensors |= {tensor.name: plan_tensor(tensor) for tensor in described}
        steps.append(
            Step(
                option_decisions=stage.option_decisions,
                inputs={tensor.name: tensor.name for tensor in stage.inputs},
                outputs={tensor.name: tensor.name for tensor in stage.outputs},
                pieces=tuple(
                    Piece(options=b.options, file=b.file, macs=b.macs, weight_bytes=b.weight_bytes)
                    for b in stage.branches
                ),
            )
        )
    return Plan(tensors=tuple(tensors.values()), steps=tuple(steps))


def agent_tensors(manifest: Manifest) -> Mapping[str, PlanTensor]:
    """The states and options of an agent."""
    decisions = len(manifest.decisions)
    states = [state_name(t) for t in range(decisions + 1)]
    options = [option_name(t) for t in range(decisions)]
    return {name: PlanTensor(name=name, shape=(manifest.agent.state_size,)) for name in states} | {
        name: PlanTensor(name=name, shape=(), dtype="int64") for name in options
    }


def plan_tensor(tensor: TensorManifest) -> PlanTensor:
    """An edge of a stage as the bundle's graphs take it."""
    return PlanTensor(**tensor.model_dump())
