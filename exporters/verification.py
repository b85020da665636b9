"""Compare an exported bundle with the masked torch reference, branch by branch and end to end."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor

from rnp_deploy.bundle.manifest import Manifest, TensorManifest, Verification
from rnp_deploy.controller import Controller
from rnp_deploy.datasets import ImageData, spread_rows
from rnp_deploy.dtypes import as_float32
from rnp_deploy.engine import AnyArray, Arrays, OpenEngine
from rnp_deploy.errors import VerificationError
from rnp_deploy.exporters.masked_stage import MaskedStage, Reference
from rnp_deploy.network.runtime_pruned import RuntimePrunedNetwork
from rnp_deploy.network.stages import Stage
from rnp_deploy.progress import Progress

__all__ = ["PATH_LIMITS", "TOLERANCE", "TOLERANCES", "checked_path_deviation", "verify_bundle"]

#: Largest absolute error ÷ largest absolute activation that float32 rounding may cause.
TOLERANCE = 1e-4
#: The same by precision: four units in the last place of the largest, and one step of quantisation.
TOLERANCES = {"fp32": TOLERANCE, "fp16": 4 * 2.0**-11, "bf16": 4 * 2.0**-8, "int8": 1 / 127}
#: Largest error of a path ÷ its largest output in fp32: what no rounding does, but a wrong weight or scale would.
PATH_LIMITS = {"fp32": TOLERANCE, "fp16": 0.05, "bf16": 0.2, "int8": 0.5}
_RANDOM_PATHS = 2


def verify_bundle(
    network: RuntimePrunedNetwork,
    stages: Sequence[Stage],
    models: Sequence[ir.Model],
    manifest: Manifest,
    folder: Path,
    open_engine: OpenEngine,
    samples: int,
    data: ImageData | None,
    progress: Progress,
) -> Verification:
    """Run every branch with random inputs, and some whole paths with random ones or images.

    Each branch gets what the reference computes up to it. The reference of a branch is its stage's masked torch
    module; in another precision than fp32, the stage's own graph at full width, masked. Paths: option 1
    everywhere, option k everywhere, random ones per sample, and the agent's own, against the torch network in fp32.

    Args:
        network: On the CPU, in eval mode.
        stages: The torch form of the manifest's.
        models: What their branches were cut from.
        manifest: Of the bundle.
        folder: Where it lies.
        open_engine: Opens its graphs.
        samples: How many inputs.
        data: Its held-out images go through the paths, whose activations int8's ranges are to fit; None: random ones.
        progress: Told of branches verified.

    Raises:
        VerificationError: A deviation over the tolerance, or a number that is not finite; it names stage and
            options, or the path.
    """
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(samples, *network.input_shape, generator=generator)
    references: Iterable[Reference]
    if manifest.precision == "fp32":
        references = (partial(_masked_torch, stage) for stage in stages)
    else:
        references = (  # one open at a time
            MaskedStage.open(model, folder, f"stage {stage.index}", manifest.precision)
            for stage, model in zip(stages, models, strict=False)  # the agent's come after
        )
    worst, worst_file = _verify_branches(network, references, manifest, open_engine, images, progress)
    if data is not None:
        images = torch.from_numpy(data.test.read(spread_rows(data.test, samples))[0])
        samples = len(images)
    with Controller(manifest, open_engine) as controller:
        full = network.full_options(samples)
        paths = [torch.ones_like(full), full]
        paths += [network.random_options(samples, generator) for _ in range(_RANDOM_PATHS)]
        path_deviation = 0.0
        for options in (*(path.numpy() for path in paths), None):  # None: the agent's own, last
            result = controller.run(images.numpy(), options=options)
            # A rounding error may tip a near tie, so outputs are compared at equal options.
            taken = torch.from_numpy(result.options)
            expected = network.run(images, taken)
            deviation = checked_path_deviation(result.outputs, expected, taken, manifest.precision)
            path_deviation = max(path_deviation, deviation)
        _, decided = network(images)
    return Verification(
        samples=samples,
        tolerance=TOLERANCES[manifest.precision],
        branches=manifest.branch_count(),
        max_branch_deviation=worst,
        worst_branch=worst_file,
        paths=(len(paths) + 1) * samples,
        max_path_deviation=path_deviation,
        agent_decisions=int(decided.numel()),
        agent_decisions_equal=int((decided.numpy() == result.options).sum()),
    )


def _masked_torch(stage: Stage, inputs: Arrays, options: Mapping[int, NDArray[np.int64]]) -> Arrays:
    feeds = [torch.from_numpy(inputs[tensor.name]) for tensor in stage.inputs]
    results = stage.module(*feeds, *(torch.from_numpy(options[t]) for t in stage.option_decisions))
    return {tensor.name: x.numpy() for tensor, x in zip(stage.outputs, results, strict=True)}


def _verify_branches(
    network: RuntimePrunedNetwork,
    references: Iterable[Reference],
    manifest: Manifest,
    open_engine: OpenEngine,
    images: Tensor,
    progress: Progress,
) -> tuple[float, str | None]:
    tolerance = TOLERANCES[manifest.precision]
    tensors: dict[str, AnyArray] = {"images": images.numpy()}
    full = dict(enumerate(network.full_options(len(images)).numpy().T))
    worst, worst_file, done = 0.0, None, 0
    for s, (stage, reference) in enumerate(zip(manifest.stages, references, strict=True)):
        inputs = {tensor.name: tensors[tensor.name] for tensor in stage.inputs}
        for branch in stage.branches:
            options = dict(zip(stage.option_decisions, branch.options, strict=True))
            expected = reference(inputs, {t: np.full(len(images), o) for t, o in options.items()})
            engine = open_engine(branch.file)
            got = engine.run(
                {tensor.name: _kept(inputs[tensor.name], tensor, options) for tensor in stage.inputs}
            )
            engine.close()
            wanted = {tensor.name: _kept(expected[tensor.name], tensor, options) for tensor in stage.outputs}
            # One scale a branch: the mean of a normalised tensor is rounding and nothing else.
            largest = max(float(np.abs(as_float32(array)).max(initial=0.0)) for array in wanted.values())
            _check_finite(wanted, f"stage {s}, {branch.file}", manifest.precision)
            for name, array in wanted.items():
                deviation = _deviation(as_float32(got[name]), as_float32(array), largest)
                if not deviation <= tolerance:
                    raise VerificationError(
                        f"stage {s}, {branch.file}: {name} differs from the masked reference "
                        f"by {deviation:.2e} of the largest activation (tolerance {tolerance:.0e}) at options "
                        f"{tuple(options.values())}; this is a bug of the exporter or an unstable network"
                    )
                if deviation >= worst:
                    worst, worst_file = deviation, branch.file
            done += 1
            progress("verifying branches", done, manifest.branch_count())
        tensors.update(reference(inputs, full))
    return worst, worst_file


def _check_finite(arrays: Arrays, where: str, precision: str) -> None:
    """In fp32, what is not finite fails the comparison; here it has a reason of its own."""
    name = next((name for name, array in arrays.items() if not np.isfinite(as_float32(array)).all()), None)
    if precision != "fp32" and name is not None:
        hint = "the network is unstable; export it in fp32"
        if precision == "fp16":
            hint = (
                "a number passes 65504, the largest of fp16, or a divisor rounds to 0; "
                "export it in bf16, or in fp32"
            )
        raise VerificationError(f"{where}: {name} is not finite in {precision}: {hint}")


def _kept(full: AnyArray, tensor: TensorManifest, options: Mapping[int, int]) -> AnyArray:
    """What a branch has of a full-width tensor."""
    if tensor.follows is not None:
        size = tensor.sizes[options[tensor.follows] - 1]
        full = full[(slice(None),) * tensor.axis + (slice(size),)]
    return np.ascontiguousarray(full)


def _deviation(got: NDArray[np.float32], expected: NDArray[np.float32], largest: float) -> float:
    if got.shape != expected.shape:
        return float("inf")
    error = float(np.abs(got - expected).max(initial=0.0))
    return error / largest if largest > 0 else error


def checked_path_deviation(
    outputs: NDArray[np.float32], expected: Tensor, options: Tensor, precision: str = "fp32"
) -> float:
    """Largest error ÷ largest reference output in fp32; raises VerificationError over the precision's limit."""
    _check_finite({"outputs": outputs}, f"end to end, at options {options.tolist()}", precision)
    largest = float(expected.abs().max())
    deviation = _deviation(outputs, expected.numpy(), largest)
    limit = PATH_LIMITS[precision]
    if not deviation <= limit:
        reason = {
            "fp32": "this is a bug of the exporter or an unstable network",
            "fp16": "the network does not bear fp16; export it in fp32",
            "bf16": "the network does not bear bf16; export it in fp16 or fp32",
            "int8": "the network does not bear int8, or data= is unlike its inputs; export it in fp16, or pass other data",
        }[precision]
        raise VerificationError(
            f"end to end, the outputs differ from the masked reference by {deviation:.2e} of the largest "
            f"(tolerance {limit:.0e}) at options {options.tolist()}; {reason}"
        )
    return deviation
