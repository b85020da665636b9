"""From a runtime-pruned network to a bundle."""

from __future__ import annotations

import fnmatch
import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch

from rnp_deploy import __version__
from rnp_deploy.atomic import atomic_directory, check_output
from rnp_deploy.bundle.calibration import Calibration
from rnp_deploy.bundle.engine_set import is_engine_set
from rnp_deploy.bundle.manifest import (
    FORMAT_VERSION,
    WEIGHTS_FILE,
    AgentManifest,
    AgentStepManifest,
    BranchManifest,
    DecisionManifest,
    Manifest,
    Precision,
    Preprocessing,
    StageManifest,
    Verification,
    check_description,
)
from rnp_deploy.bundle.reading import MANIFEST_FILE, open_bundle
from rnp_deploy.bundle.writing import describe_files, save_manifest
from rnp_deploy.datasets import ImageData
from rnp_deploy.errors import InputError, OutputExistsError
from rnp_deploy.exporters.branch_cutting import cut_branch, loaded_weight_bytes
from rnp_deploy.exporters.half_types import HALF_TYPES, give_half_types
from rnp_deploy.exporters.precision import (
    checked_opset,
    float32_ends,
    reporting_opener,
    verifying_opener,
    with_edge_types,
)
from rnp_deploy.exporters.precision_report import precision_report
from rnp_deploy.exporters.quantization import cuts_of_scales, quantise_stages
from rnp_deploy.exporters.stage_graph import ZEROS_FOLLOW, Piece, agent_step_piece, onnx_graphs, stage_piece
from rnp_deploy.exporters.verification import TOLERANCES, verify_bundle
from rnp_deploy.exporters.weights import WeightFile
from rnp_deploy.network.full_width_inputs import with_full_width_inputs
from rnp_deploy.network.runtime_pruned import RuntimePrunedNetwork
from rnp_deploy.network.stages import Stage
from rnp_deploy.progress import Progress, no_progress

__all__ = ["export_bundle", "on_cpu_in_eval_mode"]

_SMALL = 64  # elements


def export_bundle(  # noqa: PLR0913 - what goes into a bundle
    network: RuntimePrunedNetwork,
    path: str | Path,
    overwrite: bool = False,
    *,
    branches: str | Mapping[str, str] = "pairs",
    precision: Precision = "fp32",
    opset: int | None = None,
    data: ImageData | None = None,
    verify: int = 2,
    calibration: Calibration | None = None,
    preprocessing: Preprocessing | None = None,
    classes: tuple[str, ...] | None = None,
    progress: Progress = no_progress,
) -> Manifest:
    """Write a bundle: one ONNX graph per agent step and per branch, every weight once.

    The bundle appears whole under ``path`` or not at all.

    Args:
        network: Left as it was.
        path: The directory to write.
        overwrite: Whether an earlier bundle at ``path`` may be replaced.
        branches: ``"pairs"``, a branch for every choice of input and output options: all the
            speed; or ``"outputs"``, a branch for every output option, which takes full-width
            inputs padded with zeros: fewer branches, less memory. Or a mapping, pattern of
            the convolution that opens a stage → mode; the first match counts, pairs is the rest.
        precision: Of the backbone; the agent, its features, images and outputs stay float32. ``"fp16"`` and
            ``"bf16"``: the graphs' types. ``"int8"``: convolutions and linear layers between nodes that
            quantise, with ranges found on ``data``.
        opset: Of ONNX: 17 to 20; None is 20. bf16 takes 22 alone.
        data: Labelled images; its train split gives int8 its ranges, its held-out one the report on what a
            precision changes and the inputs of the paths that are verified, which are random else.
        verify: Random inputs with which every branch, and whole paths, are compared with
            the masked torch reference; 0 switches verification off, and the report on the precision.
        calibration: Held-out results, kept in the manifest.
        preprocessing: How image files become inputs, kept in the manifest.
        classes: Class names, kept in the manifest.
        progress: Told of stages exported and branches verified.

    Returns:
        The manifest as written.

    Raises:
        OutputExistsError: ``path`` exists and may not be replaced.
        InputError: An option that is not supported, or a network that is not float32.
        ExportError: A stage cannot be exported.
        VerificationError: A branch or path differs by more than the tolerance, or holds what is not finite.
    """
    opset = checked_opset(network, precision, opset, data, preprocessing)
    modes = {"*": branches} if isinstance(branches, str) else dict(branches)
    if not set(modes.values()) <= {"pairs", "outputs"}:
        raise InputError(f"branches={branches!r}: use 'pairs', 'outputs', or patterns mapped to these")
    if isinstance(verify, bool) or not isinstance(verify, int) or verify < 0:
        raise InputError(f"verify is {verify!r}; pass the number of random inputs, 0 or more")
    _check_description(network, preprocessing, classes)
    path = Path(path)
    check_output(path, overwrite=overwrite, marker=MANIFEST_FILE)
    if is_engine_set(path):
        raise OutputExistsError(f"{path} is an engine set, which holds a manifest too; pass another path")
    with (
        on_cpu_in_eval_mode(network),
        torch.no_grad(),
        atomic_directory(path, overwrite=overwrite, marker=MANIFEST_FILE) as folder,
    ):
        torch_stages = with_full_width_inputs(network.stages, _stages_in_mode(network, modes, "outputs"))
        torch_stages = with_edge_types(network, torch_stages, precision)
        progress("tracing stages", 0, len(torch_stages))
        kinds = _agent_kinds(network)
        pieces = [stage_piece(stage, masks=precision != "fp32") for stage in torch_stages]
        models = onnx_graphs([*pieces, *kinds.values()], opset)
        progress("tracing stages", len(torch_stages), len(torch_stages))
        if precision in HALF_TYPES:
            for piece, model in zip(pieces, models, strict=False):  # the agent's come after
                give_half_types(
                    model,
                    precision,
                    float32_ends(network),
                    dict(piece.module.named_parameters()),
                    piece.where,
                )
        if precision == "int8" and data is not None:
            quantise_stages(network, torch_stages, models[: len(pieces)], data.train, progress)
        with (folder / WEIGHTS_FILE).open("wb") as stream:
            weights = WeightFile(stream)
            agents = dict(zip(kinds, models[len(pieces) :], strict=True))
            steps = tuple(_save_agent(network, agents, folder, weights))
            stages = tuple(_save_stages(network, torch_stages, pieces, models, folder, weights, progress))
        manifest = _manifest(
            network,
            steps,
            stages,
            precision=precision,
            files=describe_files(folder),
            calibration=calibration,
            preprocessing=preprocessing,
            classes=classes,
        )
        save_manifest(manifest, folder)
        if verify:
            bundle = open_bundle(folder)
            opened = verifying_opener(bundle, precision)
            update: dict[str, Any] = {
                "verification": verify_bundle(
                    network, torch_stages, models, manifest, folder, opened, verify, data, progress
                )
            }
            if precision != "fp32":
                opened = reporting_opener(bundle, precision)
                update["precision_report"] = precision_report(network, manifest, opened, data, progress)
            manifest = manifest.model_copy(update=update)
            save_manifest(manifest, folder)
    return manifest


def _check_description(
    network: RuntimePrunedNetwork, preprocessing: Preprocessing | None, classes: tuple[str, ...] | None
) -> None:
    wrong = next((name for name, p in network.named_parameters() if p.dtype != torch.float32), None)
    if wrong is not None:
        raise InputError(f"parameter {wrong} is not float32; convert the network with network.float()")
    try:
        check_description(network.input_shape, _output_shape(network), preprocessing, classes)
    except ValueError as err:
        raise InputError(str(err)) from err


def _stages_in_mode(network: RuntimePrunedNetwork, modes: Mapping[str, str], mode: str) -> list[int]:
    """The stages whose convolution's first matching pattern has this mode."""
    return [
        t + 1
        for t, decision in enumerate(network.decisions)
        if next((m for p, m in modes.items() if fnmatch.fnmatchcase(decision.conv, p)), "pairs") == mode
    ]


def _output_shape(network: RuntimePrunedNetwork) -> tuple[int, ...]:
    return next(t.shape for stage in network.stages for t in stage.outputs if t.name == "outputs")


@contextmanager
def on_cpu_in_eval_mode(network: RuntimePrunedNetwork) -> Iterator[None]:
    """Hold a network still on the CPU, and give it back on its device, in the modes it was in."""
    modes = {module: module.training for module in network.modules()}
    device = next(network.parameters()).device
    try:
        network.eval().to("cpu")
        yield
    finally:
        network.to(device)
        for module, training in modes.items():
            module.training = training


def _agent_kinds(network: RuntimePrunedNetwork) -> dict[tuple[int, int], Piece]:
    """(features, options) → an agent step of that kind: those of a kind differ in weights alone."""
    pieces: dict[tuple[int, int], Piece] = {}
    for t, decision in enumerate(network.decisions):
        kind = (decision.feature_channels, len(decision.widths))
        where = f"agent step {t} (before {decision.conv})"
        if kind not in pieces:
            pieces[kind] = agent_step_piece(network.agent.step(t), kind[0], network.agent.state_size, where)
    return pieces


def _save_agent(
    network: RuntimePrunedNetwork,
    models: Mapping[tuple[int, int], ir.Model],
    folder: Path,
    weights: WeightFile,
) -> Iterator[AgentStepManifest]:
    for t, decision in enumerate(network.decisions):
        step = network.agent.step(t)
        model = models[decision.feature_channels, len(decision.widths)].clone()
        model.opset_imports.pop(ZEROS_FOLLOW[0], None)
        _store_weights(model, weights)
        for name, parameter in step.named_parameters():
            model.graph.initializers[name].const_value = weights.add(name, parameter.numpy())
        file = f"agent/step_{t:02d}.onnx"
        _save_model(model, folder / file)
        yield AgentStepManifest(file=file, features=decision.features, macs=network.agent.macs(t))


def _save_stages(
    network: RuntimePrunedNetwork,
    stages: tuple[Stage, ...],
    pieces: Sequence[Piece],
    models: Sequence[ir.Model],
    folder: Path,
    weights: WeightFile,
    progress: Progress,
) -> Iterator[StageManifest]:
    cuts = cuts_of_scales(network.analysis.cuts_by_name)
    for stage, piece, model in zip(stages, pieces, models, strict=False):  # the agent's come after
        _store_weights(model, weights, {*cuts, *piece.module.state_dict()})
        branches = []
        most = [network.option_counts[t] for t in stage.option_decisions]
        for options in itertools.product(*(range(1, k + 1) for k in most)):
            taken = dict(zip(stage.option_decisions, options, strict=True))
            kept = {
                conv: width
                for t, option in taken.items()
                for conv, width in network.decisions[t].kept(option).items()
            }
            branch = cut_branch(model, (*stage.inputs, *stage.outputs), cuts, kept, taken)
            own = None if stage.decision is None else taken[stage.decision]
            inputs = tuple(taken[t] for t in stage.input_decisions)
            file = f"stages/{stage.index:02d}/{_branch_name(inputs, own)}.onnx"
            _save_model(branch, folder / file)
            branches.append(
                BranchManifest(
                    input_options=inputs,
                    output_option=own,
                    file=file,
                    macs=network.stage_macs(stage.index, taken),
                    weight_bytes=loaded_weight_bytes(branch),
                )
            )
        yield StageManifest(
            decision=stage.decision,
            input_decisions=stage.input_decisions,
            inputs=stage.inputs,
            outputs=stage.outputs,
            branches=tuple(branches),
        )
        progress("exporting stages", stage.index + 1, len(stages))


def _branch_name(inputs: tuple[int, ...], own: int | None) -> str:
    """``in2-out4``, ``full-out4`` or ``full``; several input options: ``in2.3-out4``."""
    left = f"in{'.'.join(map(str, inputs))}" if inputs else "full"
    return left if own is None else f"{left}-out{own}"


def _store_weights(model: ir.Model, weights: WeightFile, names: Collection[str] | None = None) -> None:
    """Move a graph's numbers to the file; where ``names`` are given, of what is not among them large tensors alone.

    Small constants stay: shape inference reads some, as the scales of ``Resize``, and not from a file.
    """
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        stored = tensor is not None and (tensor.dtype.is_floating_point() or tensor.dtype == ir.DataType.INT8)
        if tensor is not None and tensor.size < _SMALL and names is not None and name not in names:
            continue
        if tensor is not None and stored and len(tensor.shape):
            value.const_value = weights.add(name, tensor.numpy())


def _save_model(model: ir.Model, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(ir.to_proto(model).SerializeToString(deterministic=True))


def _manifest(
    network: RuntimePrunedNetwork,
    steps: tuple[AgentStepManifest, ...],
    stages: tuple[StageManifest, ...],
    **more: Any,
) -> Manifest:
    tensors = {tensor.name: tensor for stage in stages for tensor in (*stage.inputs, *stage.outputs)}
    return Manifest(
        format_version=FORMAT_VERSION,
        producer=f"rnp-deploy {__version__}",
        inputs=(tensors["images"],),
        outputs=(tensors["outputs"],),
        groups=network.groups,
        macs=int(network.macs(network.full_options(1))[0]),
        agent=AgentManifest(
            state_size=network.agent.state_size,
            penalty=float(network.agent.penalty),
            penalty_range=network.agent.penalty_range,
            steps=steps,
        ),
        agent_trained=network.agent.trained,
        convolutions=network.analysis.roles,
        decisions=tuple(
            DecisionManifest(conv=decision.conv, widths=decision.widths, stage=t + 1)
            for t, decision in enumerate(network.decisions)
        ),
        stages=stages,
        verification=Verification(samples=0, tolerance=TOLERANCES[more["precision"]]),
        **more,
    )
