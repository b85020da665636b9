"""``rnp-build --backend onnxruntime``: bundle → engine set for this processor and this ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx

from rnp_deploy import __version__
from rnp_deploy.atomic import atomic_directory, check_output
from rnp_deploy.bundle.engine_set import ENGINES_FILE, ENGINES_FORMAT, EngineSetManifest, open_engine_set
from rnp_deploy.bundle.manifest import WEIGHTS_FILE, BranchManifest, Manifest
from rnp_deploy.bundle.reading import Bundle
from rnp_deploy.bundle.writing import copy_manifest, describe_files, save_engines
from rnp_deploy.engines.agent_fusion import (
    AgentStepGraph,
    add_agent_step,
    add_prologue,
    bias_name,
    price_name,
    read_agent_step,
)
from rnp_deploy.engines.blocked_layout import (
    MarkedGraph,
    block_size,
    in_blocks,
    in_place_inputs,
    marked_graph,
    with_blocked_edges,
)
from rnp_deploy.engines.engine_weights import BundleArrays, EngineWeights
from rnp_deploy.engines.fingerprint import fingerprint
from rnp_deploy.engines.ort import opener, threads_in_use
from rnp_deploy.engines.set_verification import compare_with_bundle
from rnp_deploy.errors import EngineError, InputError
from rnp_deploy.plan import PENALTY, Piece, Plan, PlanTensor, Step, agent_tensors, plan_tensor
from rnp_deploy.progress import Progress, no_progress

__all__ = ["build_engine_set"]


def build_engine_set(
    bundle: Bundle,
    path: str | Path,
    overwrite: bool = False,
    *,
    verify: int = 4,
    progress: Progress = no_progress,
) -> EngineSetManifest:
    """Optimise every branch of a bundle for this machine, and write them as an engine set.

    Each branch is optimised once, with the agent step behind it, and stays blocked at its
    edges; weights are kept in the layout that is computed with, so that loading maps them.
    The set appears whole under ``path`` or not at all.

    Args:
        bundle: Verified.
        path: The directory to write.
        overwrite: Whether an earlier engine set at ``path`` may be replaced.
        verify: Random images on which the set is compared with the bundle; 0: do not.
        progress: Told of branches built.

    Raises:
        OutputExistsError, InputError, OutputError: As :func:`rnp_deploy.atomic.atomic_directory`.
        InputError: The bundle is not fp32.
        EngineError: ONNX Runtime refuses a branch, or the set computes something else.
        IntegrityError: The bundle was changed meanwhile.
        MissingRuntimeError: onnxruntime is not installed.
    """
    path = Path(path)
    if bundle.manifest.precision != "fp32":
        raise InputError(
            f"{bundle.path} is {bundle.manifest.precision}; engine sets for ONNX Runtime are built of fp32 bundles alone: "
            "load the bundle as it is, or export it in fp32"
        )
    check_output(path, overwrite=overwrite, marker=ENGINES_FILE)
    with atomic_directory(path, overwrite=overwrite, marker=ENGINES_FILE) as folder:
        bundle_sha256 = copy_manifest(bundle, folder)
        plan = _write_pieces(bundle, folder, progress)
        bundle.check_unchanged()  # what was read from disk meanwhile is what was verified
        engines = EngineSetManifest(
            format_version=ENGINES_FORMAT.version,
            producer=f"rnp-deploy {__version__}",
            backend="onnxruntime",
            bundle_sha256=bundle_sha256,
            fingerprint=fingerprint(),
            plan=plan,
            files=describe_files(folder),
        )
        save_engines(engines, folder)
        if verify:
            built = open_engine_set(folder)
            open_engine = opener(built, threads_in_use(), optimised=True)
            compared = compare_with_bundle(bundle, built, open_engine, verify)
            engines = engines.model_copy(update=compared)
            save_engines(engines, folder)
    return engines


def _write_pieces(bundle: Bundle, folder: Path, progress: Progress) -> Plan:
    manifest = bundle.manifest
    arrays = BundleArrays(bundle)
    agent = _agent_steps(bundle, arrays)
    marked = _marked_branches(bundle, agent, progress)
    block = block_size(bundle.path)
    blocked = _blocked_edges(manifest, marked)
    steps = []
    with (folder / WEIGHTS_FILE).open("wb") as stream:
        weights = EngineWeights(stream, arrays)
        for s, stage in enumerate(manifest.stages):
            built = [with_blocked_edges(graph, blocked, block) for graph in marked[s]]
            marked[s] = []
            weight_bytes = {}
            # The widest first: what is narrower may be the beginning of its weights.
            for branch, model in sorted(
                zip(stage.branches, built, strict=True), key=lambda pair: -pair[0].weight_bytes
            ):
                weight_bytes[branch.file] = weights.store(model)
                file = folder / branch.file
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(model.SerializeToString(deterministic=True))
            steps.append(_step(manifest, s, built, weight_bytes))
            weights.end_stage()
            progress("writing stages", s + 1, len(manifest.stages))
    tensors = _tensors(manifest, agent, blocked, block)
    return _kept_in_place(Plan(tensors=tensors, steps=tuple(steps)))


def _marked_branches(
    bundle: Bundle, agent: Mapping[int, AgentStepGraph], progress: Progress
) -> list[list[MarkedGraph]]:
    manifest, done = bundle.manifest, 0
    marked: list[list[MarkedGraph]] = []
    for s, stage in enumerate(manifest.stages):
        edges = [tensor.name for tensor in stage.inputs if len(tensor.shape) == 3 and s > 0]
        marked.append([])
        for branch in stage.branches:
            joined = _joined(bundle, s, branch, agent)
            marked[s].append(marked_graph(joined, edges, bundle.path, f"{bundle.path}/{branch.file}"))
            done += 1
            progress("optimising branches", done, manifest.branch_count())
    return marked


def _agent_steps(bundle: Bundle, arrays: BundleArrays) -> dict[int, AgentStepGraph]:
    steps = {}
    for t, step in enumerate(bundle.manifest.agent.steps):
        model = onnx.ModelProto.FromString(bundle.graph(step.file))
        try:
            steps[t] = read_agent_step(model, arrays.of(model), bundle.manifest.option_counts[t])
        except (KeyError, ValueError) as err:
            raise EngineError(
                f"{bundle.path}/{step.file}: the agent is built in a way this version does not know ({err}); "
                "export the bundle again, or load it as it is"
            ) from err
    return steps


def _joined(
    bundle: Bundle, s: int, branch: BranchManifest, agent: Mapping[int, AgentStepGraph]
) -> onnx.ModelProto:
    """A branch with the agent step behind it, and what later agent steps need of the penalty."""
    model: onnx.ModelProto = onnx.ModelProto.FromString(bundle.graph(branch.file))
    manifest = bundle.manifest
    if s == 0:
        add_prologue(model.graph, agent)
    if s < len(agent):
        name = manifest.agent.steps[s].features
        add_agent_step(model.graph, agent[s], s, name)
        for info in list(model.graph.output):
            if info.name == name and not _is_read_later(manifest, s, name):
                model.graph.output.remove(info)  # zeros padded to it go when nodes are put in order
    return model


def _is_read_later(manifest: Manifest, s: int, name: str) -> bool:
    """Whether anything but agent step s, which stage s holds, reads one of its tensors."""
    return (
        any(step.features == name for step in manifest.agent.steps[s + 1 :])
        or any(name == tensor.name for stage in manifest.stages[s + 1 :] for tensor in stage.inputs)
        or name == manifest.outputs[0].name
    )


def _blocked_edges(manifest: Manifest, marked: Sequence[Sequence[MarkedGraph]]) -> set[str]:
    """Edges that every branch makes blocked and at least one branch reads so."""
    made: set[str] = set()
    for s, stage in enumerate(manifest.stages):
        made.update(
            t.name for t in stage.outputs if all(t.name in graph.makes_blocked for graph in marked[s])
        )
    read = {name for graphs in marked for graph in graphs for name in graph.reads_blocked}
    return made & read - {manifest.outputs[0].name}


def _step(
    manifest: Manifest, s: int, built: Sequence[onnx.ModelProto], weight_bytes: Mapping[str, int]
) -> Step:
    stage = manifest.stages[s]
    inputs = [info.name for info in built[0].graph.input]
    outputs = [info.name for info in built[0].graph.output]
    in_place = [in_place_inputs(model).items() for model in built]
    common = dict(set(in_place[0]).intersection(*in_place[1:]))
    return Step(
        option_decisions=stage.option_decisions,
        inputs=dict(zip(inputs, inputs, strict=True)),
        outputs=dict(zip(outputs, outputs, strict=True)),
        pieces=tuple(
            Piece(options=b.options, file=b.file, macs=b.macs, weight_bytes=weight_bytes[b.file])
            for b in stage.branches
        ),
        decides=s if s < len(manifest.decisions) else None,
        in_place=dict(sorted(common.items())),
    )


def _tensors(
    manifest: Manifest, agent: Mapping[int, AgentStepGraph], blocked: set[str], block: int
) -> tuple[PlanTensor, ...]:
    tensors = [PlanTensor(name=PENALTY, shape=()), *agent_tensors(manifest).values()]
    size = manifest.agent.state_size
    tensors += [PlanTensor(name=bias_name(t), shape=(size,)) for t, step in agent.items() if step.position]
    tensors += [PlanTensor(name=price_name(k), shape=(1 + k,)) for k in sorted(set(manifest.option_counts))]
    edges = {t.name: t for stage in manifest.stages for t in (*stage.inputs, *stage.outputs)}
    for name, edge in edges.items():
        tensor = plan_tensor(edge)
        if name in blocked:
            channels, *image = tensor.shape
            tensor = tensor.model_copy(
                update={
                    "shape": (in_blocks(channels, block), *image),
                    "sizes": tuple(in_blocks(size, block) for size in tensor.sizes),
                }
            )
        tensors.append(tensor)
    return tuple(tensors)


def _kept_in_place(plan: Plan) -> Plan:
    """Drop what may not be done in place: where the input is needed later, or differs in size."""
    last, tensors = plan.last_uses(), {tensor.name: tensor for tensor in plan.tensors}
    steps = []
    for i, step in enumerate(plan.steps):
        kept = {
            output: added
            for output, added in step.in_place.items()
            if last[added] == i
            and tensors[output].model_copy(update={"name": added}) == tensors[added]
            and tensors[added].follows is None
        }
        steps.append(step.model_copy(update={"in_place": kept}))
    return Plan(tensors=plan.tensors, steps=tuple(steps))
