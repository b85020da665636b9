"""Compare an engine set with the bundle it was built from."""

from __future__ import annotations

from typing import Any

import numpy as np

from rnp_deploy.bundle.engine_set import EngineSet
from rnp_deploy.bundle.reading import Bundle
from rnp_deploy.controller import Controller
from rnp_deploy.engines import ort
from rnp_deploy.errors import EngineError

__all__ = ["compare_with_bundle"]

_PRICES = 5
#: Rounding may tip a decision between options of nearly equal value, but not one in twenty.
_LEAST_EQUAL = 0.95


def compare_with_bundle(bundle: Bundle, built: EngineSet, samples: int) -> dict[str, Any]:
    """Run both on random images, at prices over the agent's range and at random options.

    Every branch of each stage is not run: option 1 and k everywhere and random ones are.

    Args:
        bundle: Verified.
        built: From it.
        samples: Images.

    Returns:
        Values of :class:`rnp_deploy.bundle.engine_set.EngineSetManifest`.

    Raises:
        EngineError: Outputs differ by more than the bundle's tolerance, or decisions do.
    """
    manifest, random = bundle.manifest, np.random.default_rng(0)
    images = random.standard_normal((samples, *manifest.inputs[0].shape), np.float32)
    low, high = manifest.agent.penalty_range or (manifest.agent.penalty, manifest.agent.penalty)
    prices = np.linspace(low, high, _PRICES) if high > low else np.array([low])
    counts = np.asarray(manifest.option_counts)
    given = [np.ones_like(counts), counts, *(random.integers(1, counts + 1) for _ in range(2 * max(counts)))]
    threads = ort.threads_in_use()
    equal = total = 0
    worst = 0.0
    with (
        Controller(manifest, ort.opener(bundle, threads)) as reference,
        Controller(
            manifest, ort.opener(built, threads, optimised=True), plan=built.engines.plan
        ) as controller,
    ):
        for options in given:
            taken = np.tile(options, (samples, 1))
            worst = max(worst, _deviation(controller, reference, images, taken))
        for price in prices:
            decided = controller.run(images, penalty=price).options
            equal += int((decided == reference.run(images, penalty=price).options).sum())
            total += decided.size
    tolerance = manifest.verification.tolerance
    if not worst <= tolerance:
        raise EngineError(
            f"{built.path}: outputs differ from the bundle's by {worst:.2e} of the largest (tolerance "
            f"{tolerance:.0e}); ONNX Runtime optimised it into something else. Load the bundle instead"
        )
    if equal < _LEAST_EQUAL * total:
        raise EngineError(
            f"{built.path}: {total - equal} of {total} decisions differ from the bundle's; "
            "this is a bug of rnp-build. Load the bundle instead"
        )
    return {"decisions": total, "decisions_equal": equal, "max_deviation": worst}


def _deviation(controller: Controller, reference: Controller, images: Any, options: Any) -> float:
    got = controller.run(images, options=options).outputs
    expected = reference.run(images, options=options).outputs
    largest = float(np.abs(expected).max())
    error = float(np.abs(got - expected).max())
    return error / largest if largest > 0 else error
