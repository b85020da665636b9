"""Compare an exported bundle with the masked torch reference, branch by branch and end to end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rnp_deploy.bundle.manifest import Manifest, TensorManifest, Verification
from rnp_deploy.bundle.reading import open_bundle
from rnp_deploy.controller import Controller
from rnp_deploy.engine import OpenEngine
from rnp_deploy.engines import ort
from rnp_deploy.errors import VerificationError
from rnp_deploy.network.runtime_pruned import RuntimePrunedNetwork
from rnp_deploy.network.stages import Stage
from rnp_deploy.progress import Progress

__all__ = ["TOLERANCE", "checked_path_deviation", "verify_bundle"]

#: Largest absolute error ÷ largest absolute activation that float32 rounding may cause.
TOLERANCE = 1e-4
_RANDOM_PATHS = 2


def verify_bundle(
    network: RuntimePrunedNetwork,
    stages: Sequence[Stage],
    manifest: Manifest,
    folder: Path,
    samples: int,
    progress: Progress,
) -> Verification:
    """Run every branch and some whole paths with random inputs.

    Each branch gets what the reference computes up to it; the reference of a branch is
    its stage's masked torch module. Paths: option 1 everywhere, option k everywhere,
    random ones per sample, and the agent's own.

    ``stages`` are the torch form of the manifest's. One thread, or the pool there is, so that exporting starts none in the caller's process.

    Raises:
        VerificationError: A deviation over the tolerance; it names stage and options, or the path.
    """
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(samples, *network.input_shape, generator=generator)
    bundle = open_bundle(folder)
    worst, worst_file = _verify_branches(
        network, stages, manifest, ort.opener(bundle, ort.threads_in_use()), images, progress
    )
    with Controller(manifest, ort.opener(bundle, ort.threads_in_use())) as controller:
        full = network.full_options(samples)
        paths = [torch.ones_like(full), full]
        paths += [network.random_options(samples, generator) for _ in range(_RANDOM_PATHS)]
        path_deviation = 0.0
        for options in (*(path.numpy() for path in paths), None):  # None: the agent's own, last
            result = controller.run(images.numpy(), options=options)
            # A rounding error may tip a near tie, so outputs are compared at equal options.
            taken = torch.from_numpy(result.options)
            deviation = checked_path_deviation(result.outputs, network.run(images, taken), taken)
            path_deviation = max(path_deviation, deviation)
        _, decided = network(images)
    return Verification(
        samples=samples,
        tolerance=TOLERANCE,
        branches=manifest.branch_count(),
        max_branch_deviation=worst,
        worst_branch=worst_file,
        paths=(len(paths) + 1) * samples,
        max_path_deviation=path_deviation,
        agent_decisions=int(decided.numel()),
        agent_decisions_equal=int((decided.numpy() == result.options).sum()),
    )


def _verify_branches(
    network: RuntimePrunedNetwork,
    stages: Sequence[Stage],
    manifest: Manifest,
    open_engine: OpenEngine,
    images: Tensor,
    progress: Progress,
) -> tuple[float, str | None]:
    tensors: dict[str, Tensor] = {"images": images}
    full = network.full_options(len(images))
    worst, worst_file, done = 0.0, None, 0
    for stage, described in zip(stages, manifest.stages, strict=True):
        inputs = [tensors[tensor.name] for tensor in stage.inputs]
        for branch in described.branches:
            options = dict(zip(stage.option_decisions, branch.options, strict=True))
            expected = stage.module(*inputs, *(torch.full((len(images),), o) for o in options.values()))
            engine = open_engine(branch.file)
            feeds = {tensor.name: _kept(tensors[tensor.name], tensor, options) for tensor in stage.inputs}
            got = engine.run(feeds)
            engine.close()
            wanted = {
                tensor.name: _kept(reference, tensor, options)
                for tensor, reference in zip(stage.outputs, expected, strict=True)
            }
            # One scale a branch: the mean of a normalised tensor is rounding and nothing else.
            largest = max(float(np.abs(array).max(initial=0.0)) for array in wanted.values())
            for name, array in wanted.items():
                deviation = _deviation(got[name], array, largest)
                if not deviation <= TOLERANCE:
                    raise VerificationError(
                        f"stage {stage.index}, {branch.file}: {name} differs from the masked reference "
                        f"by {deviation:.2e} of the largest activation (tolerance {TOLERANCE:.0e}) at options "
                        f"{tuple(options.values())}; this is a bug of the exporter or an unstable network"
                    )
                if deviation >= worst:
                    worst, worst_file = deviation, branch.file
            done += 1
            progress("verifying branches", done, manifest.branch_count())
        results = stage.module(*inputs, *(full[:, t] for t in stage.option_decisions))
        tensors.update({tensor.name: x for tensor, x in zip(stage.outputs, results, strict=True)})
    return worst, worst_file


def _kept(full: Tensor, tensor: TensorManifest, options: Mapping[int, int]) -> NDArray[np.float32]:
    """What a branch has of a full-width tensor."""
    if tensor.follows is not None:
        full = full.narrow(tensor.axis, 0, tensor.sizes[options[tensor.follows] - 1])
    return np.ascontiguousarray(full.numpy(), np.float32)


def _deviation(got: NDArray[np.float32], expected: NDArray[np.float32], largest: float) -> float:
    if got.shape != expected.shape:
        return float("inf")
    error = float(np.abs(got - expected).max(initial=0.0))
    return error / largest if largest > 0 else error


def checked_path_deviation(outputs: NDArray[np.float32], expected: Tensor, options: Tensor) -> float:
    """Largest error ÷ largest reference output; raises VerificationError over the tolerance."""
    largest = float(expected.abs().max())
    deviation = _deviation(outputs, expected.numpy(), largest)
    if not deviation <= TOLERANCE:
        raise VerificationError(
            f"end to end, the outputs differ from the masked reference by {deviation:.2e} of the largest "
            f"(tolerance {TOLERANCE:.0e}) at options {options.tolist()}; "
            "this is a bug of the exporter or an unstable network"
        )
    return deviation
