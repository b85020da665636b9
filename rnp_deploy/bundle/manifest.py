"""The manifest of a bundle, format 1.0: what the files are and how they fit together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Annotated, Literal, TypeAlias

from pydantic import Field, model_validator

from rnp_deploy.bundle.calibration import Calibration
from rnp_deploy.bundle.fields import Count, Finite, Frozen, Size, check_values_per_sample
from rnp_deploy.bundle.precision import PrecisionReport

__all__ = [
    "FORMAT_VERSION",
    "AgentManifest",
    "AgentStepManifest",
    "BranchManifest",
    "ConvManifest",
    "DecisionManifest",
    "FileManifest",
    "Manifest",
    "Precision",
    "Preprocessing",
    "StageManifest",
    "TensorManifest",
    "Verification",
    "check_description",
]

FORMAT_VERSION = "1.0"
WEIGHTS_FILE = "weights.bin"

Precision: TypeAlias = Literal["fp32", "fp16", "bf16", "int8"]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class TensorManifest(Frozen):
    """A tensor on the edge of a stage.

    Attributes:
        name: Unique within the network.
        shape: Full-width shape without the batch axis N, which comes first and is dynamic.
        follows: The decision whose option sets the size of ``axis``, or None: full width.
        axis: Counted with N as 0.
        sizes: By option of that decision, the size of ``axis``; empty where none is followed.
    """

    name: str
    shape: tuple[Size, ...]
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    follows: Count | None = None
    axis: Size = 1
    sizes: tuple[Size, ...] = ()

    @model_validator(mode="after")
    def _can_be_held(self) -> TensorManifest:
        check_values_per_sample(self.name, self.shape, self.axis, self.sizes)
        return self

    def shape_at(self, options: Mapping[int, int]) -> tuple[int, ...]:
        """The shape, without the batch axis, for decision → option."""
        if self.follows is None or self.follows not in options:
            return self.shape
        shape = list(self.shape)
        shape[self.axis - 1] = self.sizes[options[self.follows] - 1]
        return tuple(shape)


class DecisionManifest(Frozen):
    """Where the agent chooses: ``conv`` is its module path, ``stage`` the stage it opens."""

    conv: str
    widths: Annotated[tuple[Size, ...], Field(min_length=2)]
    stage: Size

    @model_validator(mode="after")
    def _widths_rise(self) -> DecisionManifest:
        if list(self.widths) != sorted(set(self.widths)):
            raise ValueError(f"widths {self.widths} of {self.conv} do not rise")
        return self


class ConvManifest(Frozen):
    """What becomes of one convolution, and why.

    Attributes:
        conv: Module path. A linear layer over the last axis of ``[N, H, W, C]`` is a
            pointwise convolution and listed too.
        role: ``"prunable"``: an option is chosen for it. ``"follower"``: it is as wide as a
            prunable one before it. ``"whole"``: its output channels are always all computed,
            though it may read fewer.
        reason: In words.
        macs: Multiply-accumulates at full width for one image.
        decision: Of a prunable one, the decision that chooses its option.
        widths: Of a prunable one, its channels by option.
    """

    conv: str
    role: Literal["prunable", "follower", "whole"]
    reason: str
    macs: Count
    decision: Count | None = None
    widths: tuple[Size, ...] | None = None


class BranchManifest(Frozen):
    """A stage for one choice of options; ``macs`` per sample, ``weight_bytes`` once loaded.

    ``input_options`` are in the order of the stage's ``input_decisions``.
    """

    input_options: tuple[Size, ...]
    output_option: Size | None
    file: str
    macs: Count
    weight_bytes: Count

    @property
    def options(self) -> tuple[int, ...]:
        """The options it is for: of the stage's input decisions, then of its own."""
        own = () if self.output_option is None else (self.output_option,)
        return (*self.input_options, *own)


class StageManifest(Frozen):
    """A piece of network from one decision to the next."""

    decision: Count | None
    input_decisions: tuple[Count, ...]
    inputs: Annotated[tuple[TensorManifest, ...], Field(min_length=1)]
    outputs: tuple[TensorManifest, ...]
    branches: Annotated[tuple[BranchManifest, ...], Field(min_length=1)]

    @property
    def option_decisions(self) -> tuple[int, ...]:
        """The decisions whose options the stage depends on: its inputs', then its own."""
        return self.input_decisions if self.decision is None else (*self.input_decisions, self.decision)


class AgentStepManifest(Frozen):
    """One agent step; ``features`` names the pooled tensor ``[N, C_in]`` it reads."""

    file: str
    features: str
    macs: Count


class AgentManifest(Frozen):
    """The agent: steps take features, state ``[N, D]`` and penalty ``[N]``.

    They give q_values ``[N, K]``, option ``[N]`` int64 in 1..K and the next state. The
    first state is zeros; ``penalty`` is the one to pass where the caller names none.
    ``penalty_range`` holds the prices it was trained for; None: for ``penalty`` alone.
    """

    state_size: Size
    penalty: Finite
    penalty_range: tuple[Finite, Finite] | None = None
    steps: tuple[AgentStepManifest, ...]


class FileManifest(Frozen):
    """A file of the bundle: its POSIX path below the bundle, size and hash."""

    path: str
    bytes: Count
    sha256: Sha256


class Verification(Frozen):
    """What export measured against the masked torch reference.

    Deviations are largest absolute errors ÷ largest absolute reference value. In fp32 both are from the masked
    torch reference. In another precision branches are held against the whole stage, masked, in that precision;
    ``max_path_deviation`` is what the precision changes, and no tolerance applies to it.
    ``samples`` is 0 where verification was switched off.
    """

    samples: Count
    tolerance: Finite
    branches: Count = 0
    max_branch_deviation: Finite | None = None
    worst_branch: str | None = None
    paths: Count = 0
    max_path_deviation: Finite | None = None
    agent_decisions: Count = 0
    agent_decisions_equal: Count = 0


class Preprocessing(Frozen):
    """From an image file to one input ``[C, H, W]``.

    Convert to ``colour``, resize bilinearly to ``size`` (H, W), scale 0..255 to 0..1,
    subtract ``mean`` and divide by ``std``, one value per channel in the order of ``colour``.
    With ``shorter_side`` the image keeps its proportions: its shorter side is resized to
    that, and the middle is cut out.
    """

    colour: Literal["L", "RGB", "BGR"]
    size: tuple[Size, Size]
    shorter_side: Size | None = None
    mean: tuple[Finite, ...]
    std: tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...]

    @model_validator(mode="after")
    def _one_value_per_channel(self) -> Preprocessing:
        channels = 1 if self.colour == "L" else 3
        if len(self.mean) != channels or len(self.std) != channels:
            raise ValueError(f"mean and std need {channels} values for colour {self.colour}")
        if self.shorter_side is not None and self.shorter_side < max(self.size):
            raise ValueError(f"shorter_side {self.shorter_side} is less than the size {self.size} to cut out")
        return self


def check_description(
    input_shape: Sequence[int],
    output_shape: Sequence[int],
    preprocessing: Preprocessing | None,
    classes: tuple[str, ...] | None,
) -> None:
    """Refuse preprocessing or class names that do not fit a network; raises ValueError."""
    if preprocessing is not None:
        made = (len(preprocessing.mean), *preprocessing.size)
        if made != tuple(input_shape):
            raise ValueError(f"preprocessing makes images {made}, the network takes {tuple(input_shape)}")
    if classes is not None and len(classes) != math.prod(output_shape):
        raise ValueError(f"classes: {len(classes)} names for outputs of shape {tuple(output_shape)}")


class Manifest(Frozen):
    """The whole manifest, without ``manifest_sha256``, which covers it.

    ``macs`` is the full network's, per sample; ``producer`` the program that wrote it;
    ``groups`` the largest number of options of a decision; ``agent_trained`` False where the
    agent still takes all groups everywhere. ``precision`` is the backbone's; ``precision_report``
    says what another one than fp32 changes.
    """

    format_version: str
    producer: str
    inputs: Annotated[tuple[TensorManifest, ...], Field(min_length=1, max_length=1)]
    outputs: Annotated[tuple[TensorManifest, ...], Field(min_length=1, max_length=1)]
    precision: Precision = "fp32"
    groups: Annotated[int, Field(ge=2, lt=2**31)]
    macs: Annotated[int, Field(ge=1, lt=2**63)]
    agent: AgentManifest
    agent_trained: bool = True
    convolutions: tuple[ConvManifest, ...]
    decisions: Annotated[tuple[DecisionManifest, ...], Field(min_length=1)]
    stages: Annotated[tuple[StageManifest, ...], Field(min_length=2)]
    files: tuple[FileManifest, ...]
    verification: Verification
    precision_report: PrecisionReport | None = None
    calibration: Calibration | None = None
    preprocessing: Preprocessing | None = None
    classes: tuple[str, ...] | None = None

    @model_validator(mode="after")
    def _parts_fit(self) -> Manifest:
        total = len(self.decisions)
        if len(self.stages) != total + 1 or len(self.agent.steps) != total:
            raise ValueError(
                f"{total} decisions need {total + 1} stages and {total} agent steps; "
                f"there are {len(self.stages)} and {len(self.agent.steps)}"
            )
        self._check_decisions()
        for end in (self.inputs[0], self.outputs[0]):
            if end.dtype != "float32" or end.follows is not None:
                raise ValueError(
                    f"{end.name!r} is not float32, or follows a decision: no end of a network does"
                )
        known = {self.inputs[0].name: self.inputs[0]}
        for s, stage in enumerate(self.stages):
            self._check_stage(s, stage, known)
        if self.outputs[0] != known.get(self.outputs[0].name):
            raise ValueError(f"no stage makes the output {self.outputs[0].name!r} as described")
        of_agent = sorted(name for name in known if name.startswith("agent/"))
        if of_agent:
            raise ValueError(f"tensor {of_agent[0]!r} has a name of the agent's")
        self._check_files()
        check_description(self.inputs[0].shape, self.outputs[0].shape, self.preprocessing, self.classes)
        return self

    def _check_decisions(self) -> None:
        listed = {(conv.conv, conv.decision, conv.widths) for conv in self.convolutions}
        for t, decision in enumerate(self.decisions):
            if decision.stage != t + 1:
                raise ValueError(f"decision {t} opens stage {decision.stage}, not {t + 1}")
            if (decision.conv, t, decision.widths) not in listed:
                raise ValueError(f"convolutions say other widths of decision {t}, {decision.conv}")
        if max(self.option_counts) != self.groups:
            raise ValueError(f"no decision has {self.groups} options, or one has more")

    def _check_stage(self, s: int, stage: StageManifest, known: dict[str, TensorManifest]) -> None:
        if stage.decision != (s - 1 if s else None):
            raise ValueError(f"stage {s} is opened by decision {stage.decision}")
        earlier = range(s - 1)
        if list(stage.input_decisions) != sorted(set(stage.input_decisions).intersection(earlier)):
            raise ValueError(f"stage {s} has input decisions {stage.input_decisions}")
        for tensor in stage.inputs:
            if known.get(tensor.name) != tensor:
                raise ValueError(f"stage {s} takes {tensor.name!r}, which nothing before makes so")
            if tensor.follows is not None and tensor.follows not in stage.input_decisions:
                raise ValueError(f"stage {s} takes {tensor.name!r} but not the option it follows")
        if s:
            features = self.agent.steps[s - 1].features
            made = known.get(features)
            if made is None or len(made.shape) != 1 or made.follows is not None:
                raise ValueError(f"nothing before decision {s - 1} makes its features {features!r}")
        for tensor in stage.outputs:
            if tensor.name in known:
                raise ValueError(f"stage {s} makes {tensor.name!r} again")
            self._check_width(s, stage, tensor)
            known[tensor.name] = tensor
        self._check_branches(s, stage)

    def _check_width(self, s: int, stage: StageManifest, tensor: TensorManifest) -> None:
        if tensor.follows is None:
            return
        if tensor.follows not in (*stage.input_decisions, stage.decision):
            raise ValueError(f"stage {s} gives {tensor.name!r} without the option it follows")
        full = tensor.shape[tensor.axis - 1 : tensor.axis]
        rising = list(tensor.sizes) == sorted(set(tensor.sizes))
        if len(tensor.sizes) != self.option_counts[tensor.follows] or full != tensor.sizes[-1:] or not rising:
            raise ValueError(f"stage {s} gives {tensor.name!r} in sizes that do not fit")

    def _check_branches(self, s: int, stage: StageManifest) -> None:
        keys = {branch.options for branch in stage.branches}
        most = [self.option_counts[t] for t in stage.option_decisions]
        wanted = math.prod(most)
        for branch in stage.branches:
            options, option = branch.input_options, branch.output_option
            fits = len(options) == len(stage.input_decisions) and (option is None) == (stage.decision is None)
            if not fits or any(o > k for o, k in zip(branch.options, most, strict=True)):
                raise ValueError(f"stage {s} has a branch for options {options} → {option}")
        if len(keys) != len(stage.branches) or len(keys) != wanted:
            raise ValueError(f"stage {s} has {len(keys)} of {wanted} branches")

    def _check_files(self) -> None:
        listed = {file.path for file in self.files}
        used = {step.file for step in self.agent.steps} | {
            branch.file for stage in self.stages for branch in stage.branches
        }
        if len(listed) != len(self.files):
            raise ValueError("a file is listed twice")
        missing = sorted((used | {WEIGHTS_FILE}) - listed)
        if missing:
            raise ValueError(f"{missing[0]} is used but not listed under files")
        other = sorted(path for path in used if not path.endswith(".onnx"))
        if other:
            raise ValueError(f"{other[0]} is used as a graph but is no .onnx file")

    @cached_property
    def option_counts(self) -> tuple[int, ...]:
        """How many options each decision has."""
        return tuple(len(decision.widths) for decision in self.decisions)

    def uniform_options(self, option: int) -> tuple[int, ...]:
        """The same option at every decision, or its last where it has fewer."""
        return tuple(min(option, k) for k in self.option_counts)

    def branch_count(self) -> int:
        """Number of branches over all stages."""
        return sum(len(stage.branches) for stage in self.stages)

    def branch(self, stage: int, options: Sequence[int]) -> BranchManifest:
        """The branch a sample with these options, one per decision, takes in a stage."""
        taken = tuple(options[t] for t in self.stages[stage].option_decisions)
        return next(branch for branch in self.stages[stage].branches if branch.options == taken)

    def path_macs(self, options: Sequence[int]) -> int:
        """Backbone MACs of one sample that takes these options, one per decision."""
        return sum(self.branch(s, options).macs for s in range(len(self.stages)))
