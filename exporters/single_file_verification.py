"""Compare a single file with the masked torch reference: through every branch, and as its agent decides."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rnp_deploy.bundle.manifest import Manifest, Verification
from rnp_deploy.bundle.paths import paths_through_every_branch
from rnp_deploy.engine import Arrays, Engine
from rnp_deploy.engines import ort
from rnp_deploy.errors import VerificationError
from rnp_deploy.exporters.verification import TOLERANCE, checked_path_deviation
from rnp_deploy.network.runtime_pruned import RuntimePrunedNetwork
from rnp_deploy.progress import Progress

__all__ = ["verify_single_file"]


def verify_single_file(
    network: RuntimePrunedNetwork,
    manifest: Manifest,
    deciding: bytes,
    fed: bytes,
    samples: int,
    progress: Progress,
) -> Verification:
    """Run the file with random images, one by one.

    Args:
        network: The reference, on the CPU in eval mode.
        manifest: Of the bundle the file was joined from.
        deciding: The file. Its agent decides at its own penalty and at some that move its choice.
        fed: The file with options for an input in the agent's place, the branches behind the same choices:
            so that all are taken, whatever the agent likes.
        samples: Random images.
        progress: Told of paths verified.

    Returns:
        The manifest's, with the file's paths and decisions.

    Raises:
        VerificationError: Outputs over the tolerance, MACs that are not the path's, or an option whose value
            is not the largest, to the tolerance.
    """
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(samples, *network.input_shape, generator=generator).split(1)
    paths, prices = list(paths_through_every_branch(manifest)), _penalties(network)
    worst, equal = 0.0, 0
    with _opened(fed) as engine:
        for count, options in enumerate(paths):
            image, taken = images[count % samples], torch.tensor([options])
            got = engine.run({"images": image.numpy(), "options": taken.numpy()})
            worst = max(worst, _deviation(manifest, got, network.run(image, taken), taken))
            progress("verifying paths", count + 1, len(paths))
    with _opened(deciding) as engine:
        for price, image in itertools.product(prices, images):
            given = {} if price is None else {"penalty": np.array([price], np.float32)}
            got = engine.run({"images": image.numpy(), **given})
            taken = torch.from_numpy(got["options"])
            expected, best = _followed(network, image, price, taken)
            worst = max(worst, _deviation(manifest, got, expected, taken))
            equal += best
    return manifest.verification.model_copy(
        update={
            "paths": len(paths) + len(prices) * samples,
            "max_path_deviation": worst,
            "agent_decisions": len(prices) * samples * len(manifest.decisions),
            "agent_decisions_equal": equal,
        }
    )


@contextmanager
def _opened(model: bytes) -> Iterator[Engine]:
    """One at a time: a session holds every branch."""
    engine = ort.engine_from_onnx(model, Path(), "the single file", ort.threads_in_use())
    try:
        yield engine
    finally:
        engine.close()


def _penalties(network: RuntimePrunedNetwork) -> list[float | None]:
    """None, the agent's own, and prices between which its choice moves."""
    agent = network.agent
    if agent.scale is None:
        return [None, agent.penalty - 1.0, agent.penalty + 0.1, agent.penalty + 1.0]
    return [None, *agent.scale.penalty(torch.tensor([0.0, 0.5, 0.75, 1.0])).tolist()]


def _followed(
    network: RuntimePrunedNetwork, image: Tensor, price: float | None, taken: Tensor
) -> tuple[Tensor, int]:
    """The reference's outputs at the options taken, and how many of these it would have taken."""
    penalty = torch.full((1,), network.agent.penalty if price is None else price)
    state, equal = network.agent.initial_state(image), 0

    def choose(decision: int, features: Tensor) -> Tensor:
        nonlocal state, equal
        step = network.agent(decision, features, state, penalty)
        state, option = step.state, taken[:, decision]
        equal += int(step.option == option)
        # A rounding error may tip a near tie, so it is its value that counts.
        chosen = step.q_values[0, int(option) - 1] if 1 <= option <= step.q_values.shape[1] else torch.nan
        loss = float((step.q_values.max() - chosen) / step.q_values.abs().max().clamp(min=1e-12))
        if not loss <= TOLERANCE:
            raise VerificationError(
                f"decision {decision} took option {int(option)} at penalty {float(penalty):g}, where the "
                f"reference takes {int(step.option)}; this is a bug of the exporter or an unstable network"
            )
        return option

    outputs, _ = network.route(image, choose)
    return outputs, equal


def _deviation(manifest: Manifest, got: Arrays, expected: Tensor, taken: Tensor) -> float:
    macs = manifest.path_macs(taken[0].tolist())
    if got["macs"].tolist() != [macs]:
        raise VerificationError(
            f"the single file gives {got['macs'].tolist()} MACs at options {taken.tolist()}, not {macs}; "
            "this is a bug of the exporter"
        )
    return checked_path_deviation(got["outputs"], expected, taken)
