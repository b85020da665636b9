"""Compare an engine set with the bundle it was built from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rnp_deploy.array_memory import HOST, ArrayMemory
from rnp_deploy.bundle.engine_set import EngineSet
from rnp_deploy.bundle.paths import paths_through_every_branch
from rnp_deploy.bundle.reading import Bundle
from rnp_deploy.controller import Controller
from rnp_deploy.engine import AnyArray, Arrays, Engine, OpenEngine
from rnp_deploy.engines import ort
from rnp_deploy.errors import EngineError
from rnp_deploy.price_scale import PriceScale

__all__ = ["compare_with_bundle"]

_PRICES = 9
#: Rounding may tip a decision between options of nearly equal value, but not one in twenty.
_LEAST_EQUAL = 0.95


def compare_with_bundle(
    bundle: Bundle,
    built: EngineSet,
    open_engine: OpenEngine,
    samples: int,
    *,
    memory: ArrayMemory = HOST,
    tolerance: float | None = None,
) -> dict[str, Any]:
    """Run both on random images: by paths through every branch, and at prices over the agent's range.

    The bundle is run by ONNX Runtime on the CPU.

    Args:
        bundle: Verified.
        built: From it.
        open_engine: Of what was built.
        samples: Images.
        memory: Where its engines' arrays lie.
        tolerance: Of the largest output, and for the agent's states; None: the bundle's own.

    Returns:
        Values of :class:`rnp_deploy.bundle.engine_set.EngineSetManifest`.

    Raises:
        EngineError: Outputs or the agent's states differ by more than the bundle's tolerance,
            or decisions do.
    """
    manifest, random = bundle.manifest, np.random.default_rng(0)
    images = random.standard_normal((samples, *manifest.inputs[0].shape), np.float32)
    prices = [manifest.agent.penalty]
    if manifest.agent.penalty_range is not None:
        scale = PriceScale(*manifest.agent.penalty_range)
        prices += [scale.penalty(position) for position in np.linspace(0, 1, _PRICES)]
    equal = total = 0
    deviations, apart = [], []
    states, expected_states = _States(), _States()
    with (
        Controller(
            manifest, expected_states.recorded(ort.opener(bundle, ort.threads_in_use()), HOST)
        ) as reference,
        Controller(
            manifest,
            states.recorded(open_engine, memory),
            plan=built.engines.plan,
            memory=memory,
        ) as controller,
    ):
        for i, options in enumerate(paths_through_every_branch(manifest)):
            image = images[i % samples : i % samples + 1]
            deviations.append(_deviation(controller, reference, image, [options]))
        for price in prices:
            states.forget()
            expected_states.forget()
            runs = [c.run(images, penalty=price, policy="serial") for c in (controller, reference)]
            decided, expected = (run.options for run in runs)
            equal += int((decided == expected).sum())
            total += decided.size
            apart.append(_apart(states.taken(), expected_states.taken(), decided, expected))
    tolerance = manifest.verification.tolerance if tolerance is None else tolerance
    worst, furthest = float(np.max(deviations)), np.max(apart)
    if not worst <= tolerance:  # nor where it is NaN
        raise EngineError(
            f"{built.path}: outputs differ from the bundle's by {worst:.2e} of the largest (tolerance "
            f"{tolerance:.0e}); {built.engines.backend} made something else of it. Load the bundle instead"
        )
    if not furthest <= tolerance:
        raise EngineError(
            f"{built.path}: states of the agent differ from the bundle's by {furthest:.2e} (tolerance "
            f"{tolerance:.0e}); this is a bug of rnp-build. Load the bundle instead"
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


@dataclass
class _States:
    """The states ``[1, D]`` that an agent went through, one after another, as engines gave them."""

    _arrays: list[AnyArray] = field(default_factory=list)

    def forget(self) -> None:
        self._arrays.clear()

    def taken(self) -> NDArray[Any]:
        """Those since the last ``forget``, ``[steps, D]``."""
        return np.concatenate(self._arrays)

    def recorded(self, open_engine: OpenEngine, memory: ArrayMemory) -> OpenEngine:
        """Engines that note the states they give."""

        def note(outputs: Arrays) -> None:
            states = [array for name, array in outputs.items() if _is_state(name)]
            self._arrays.extend(memory.to_host(array).copy() for array in states)

        return lambda path: _Recorded(open_engine(path), note)


@dataclass(frozen=True)
class _Recorded:
    engine: Engine
    note: Callable[[Arrays], None]

    def run(self, feeds: Arrays) -> Arrays:
        outputs = self.engine.run(feeds)
        self.note(outputs)
        return outputs

    def bind(self, inputs: Arrays, outputs: Arrays) -> Callable[[], None]:
        call, kept = self.engine.bind(inputs, outputs), dict(outputs)

        def run() -> None:
            call()
            self.note(kept)

        return run

    def close(self) -> None:
        self.engine.close()


def _is_state(name: str) -> bool:
    return name == "next_state" or name.startswith("agent/state.")


def _apart(got: AnyArray, expected: AnyArray, options: AnyArray, expected_options: AnyArray) -> float:
    """The largest difference of states of images and decisions before which all options were equal."""
    samples, decisions = options.shape
    shape = (samples, decisions, -1)
    alike = np.cumprod(options == expected_options, axis=1).astype(bool)
    comparable = np.hstack([np.ones((samples, 1), bool), alike[:, :-1]])
    return float(np.abs(got.reshape(shape) - expected.reshape(shape))[comparable].max())
