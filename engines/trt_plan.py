"""The plan of a TensorRT engine set: the bundle's own, with other files and memory layouts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from rnp_deploy.bundle.manifest import Manifest
from rnp_deploy.engines.trt_graph import Edge
from rnp_deploy.engines.trt_library import in_eights
from rnp_deploy.plan import Piece, Plan, PlanTensor, plan_of_bundle

__all__ = ["PieceSource", "piece_sources", "tensorrt_plan", "with_files"]


@dataclass(frozen=True)
class PieceSource:
    """A piece to build: its graph's file in the bundle, and what its edges are to be.

    ``where`` names it in errors.
    """

    file: str
    where: str
    inputs: tuple[Edge, ...]
    outputs: tuple[Edge, ...]


def tensorrt_plan(manifest: Manifest) -> Plan:
    """The bundle's plan, its tensors as the engines have them; its files still name graphs.

    Images of half precision that only stages pass on have their channels last, in eights:
    so that two engines meet without a kernel that changes the layout. Options are int32.
    """
    plan = plan_of_bundle(manifest)
    ends = {manifest.inputs[0].name, manifest.outputs[0].name}
    tensors = tuple(_laid_out(tensor, kept=tensor.name in ends) for tensor in plan.tensors)
    return Plan(tensors=tensors, steps=plan.steps)


def piece_sources(manifest: Manifest) -> list[PieceSource]:
    """Every piece, in the order of the plan."""
    plan = plan_of_bundle(manifest)
    described = {tensor.name: tensor for tensor in plan.tensors}
    laid_out = {tensor.name: tensor for tensor in tensorrt_plan(manifest).tensors}
    stages, sources = 0, []
    for step in plan.steps:
        name = f"agent step {step.decides}" if step.agent_only else f"stage {stages}"
        stages += not step.agent_only
        for piece in step.pieces:
            options = dict(zip(step.option_decisions, piece.options, strict=True))
            inputs, outputs = (
                tuple(
                    _edge(own, described[tensor], laid_out[tensor], options) for own, tensor in names.items()
                )
                for names in (step.inputs, step.outputs)
            )
            chosen = f", options {' '.join(map(str, piece.options))}" if piece.options else ""
            sources.append(PieceSource(piece.file, f"{name}{chosen} ({piece.file})", inputs, outputs))
    return sources


def with_files(plan: Plan, keys: Sequence[str]) -> tuple[Plan, dict[str, str]]:
    """Name the engines' files; pieces with the same key share one.

    Args:
        plan: Of graphs.
        keys: Of its pieces, in order.

    Returns:
        The plan, and key → file.
    """
    files: dict[str, str] = {}
    left, steps = iter(keys), []
    for step in plan.steps:
        pieces: list[Piece] = []
        for piece in step.pieces:
            file = files.setdefault(next(left), str(PurePosixPath(piece.file).with_suffix(".engine")))
            pieces.append(piece.model_copy(update={"file": file}))
        steps.append(step.model_copy(update={"pieces": tuple(pieces)}))
    return Plan(tensors=plan.tensors, steps=tuple(steps)), files


def _laid_out(tensor: PlanTensor, *, kept: bool) -> PlanTensor:
    if tensor.dtype == "int64":
        return tensor.model_copy(update={"dtype": "int32"})
    halves = tensor.dtype in ("float16", "bfloat16")
    if kept or not halves or len(tensor.shape) != 3 or tensor.axis != 1:
        return tensor
    channels, *image = tensor.shape
    sizes = tuple(in_eights(size) for size in tensor.sizes)
    return tensor.model_copy(update={"shape": (*image, in_eights(channels)), "axis": 3, "sizes": sizes})


def _edge(name: str, tensor: PlanTensor, laid_out: PlanTensor, options: dict[int, int]) -> Edge:
    shape = tensor.shape
    if tensor.follows is not None:
        sizes = tensor.sizes[options[tensor.follows] - 1]
        shape = (*shape[: tensor.axis - 1], sizes, *shape[tensor.axis :])
    return Edge(name, shape, laid_out.dtype, channels_last=laid_out.axis != tensor.axis)
