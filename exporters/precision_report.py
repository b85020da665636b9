"""What a lower precision changes: decisions, Q-values, outputs and accuracy, held against fp32."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rnp_deploy.bundle.calibration import Calibration
from rnp_deploy.bundle.manifest import Manifest
from rnp_deploy.bundle.precision import AtPenalty, PrecisionReport
from rnp_deploy.controller import Controller
from rnp_deploy.datasets import ImageData, spread_rows
from rnp_deploy.engine import Arrays, OpenEngine
from rnp_deploy.engine_cache import EngineCache
from rnp_deploy.errors import VerificationError
from rnp_deploy.network.agent import StepOutput
from rnp_deploy.network.runtime_pruned import RuntimePrunedNetwork
from rnp_deploy.progress import Progress
from rnp_deploy.routing import RoutedTensor, rows_by_options

__all__ = ["precision_report"]

_MOST_IMAGES = 1000
_RANDOM_IMAGES = 16
_BATCH = 32
#: Weights of the engines that are open at a time, here and in the controller.
_BUDGET_BYTES = 2**30
#: Between the cheapest and the dearest of an agent that knows the price.
_PARTS = (0.25, 0.5, 0.75)


class _Batch(NamedTuple):
    """Of N images: did the decision fall as in fp32 ``[N, T]``; margins and drifts ``[T, N]``; outputs.

    ``finite`` ``[N]``: whether all that was computed of an image is.
    """

    equal: NDArray[np.bool_]
    margins: NDArray[np.float64]
    drifts: NDArray[np.float64]
    output_drift: NDArray[np.float64]  # [N, ...]
    largest_output: float
    right_fp32: NDArray[np.bool_]
    right: NDArray[np.bool_]
    finite: NDArray[np.bool_]


def precision_report(
    network: RuntimePrunedNetwork,
    manifest: Manifest,
    open_engine: OpenEngine,
    data: ImageData | None,
    progress: Progress,
) -> PrecisionReport:
    """Run a bundle and the network it was made from, at the agent's own price and a few over its range.

    Those between the ends of the range are where the calibration, if there is one, says that an image costs a
    quarter, half and three quarters of the way from the least to the most.

    Args:
        network: On the CPU, in eval mode.
        manifest: Of the bundle.
        open_engine: Opens its graphs.
        data: Its held-out images are run, at most 1000 evenly taken; None: 16 of random numbers.
            Accuracies need labels, one for each output.
        progress: Told of images run.

    Raises:
        VerificationError: An image gives numbers that are not finite; it and the price are named.
    """
    if data is None:
        generator = torch.Generator().manual_seed(1)
        images = torch.randn(_RANDOM_IMAGES, *network.input_shape, generator=generator)
        taken, labels = np.arange(_RANDOM_IMAGES), np.full(_RANDOM_IMAGES, -1)
    else:
        taken = spread_rows(data.test, _MOST_IMAGES)
        read, labels = data.test.read(taken)
        images = torch.from_numpy(read)
    prices = _prices(network, manifest.calibration)
    batches = []
    sizes = {branch.file: branch.weight_bytes for stage in manifest.stages for branch in stage.branches}
    engines = EngineCache(open_engine, sizes, _BUDGET_BYTES, lambda _: None)
    with Controller(manifest, open_engine, memory_budget_bytes=_BUDGET_BYTES) as controller:
        total = len(prices) * len(images)
        for price in prices:
            for start in range(0, len(images), _BATCH):
                rows = slice(start, start + _BATCH)
                batch = _batch(network, controller, engines, images[rows], labels[rows], price)
                if not batch.finite.all():
                    which = "random image" if data is None else f"held-out image of {data.name}, row"
                    raise VerificationError(
                        f"{which} {taken[rows][~batch.finite][0]} gives numbers that are not finite at penalty "
                        f"{price:.3g}, in {manifest.precision} or in fp32 already; look at the image, or take bf16 or fp32"
                    )
                batches.append(batch)
                progress("comparing with fp32", sum(len(b.equal) for b in batches), total)
    margins, drifts = (
        np.concatenate([getattr(b, n) for b in batches], axis=1) for n in ("margins", "drifts")
    )
    equal = np.concatenate([batch.equal for batch in batches])
    output_drift = np.concatenate([batch.output_drift for batch in batches])
    largest = max(batch.largest_output for batch in batches) or 1.0
    labelled = data is not None and len(data.classes) == math.prod(manifest.outputs[0].shape)
    accuracy_fp32, accuracy = (
        None if not labelled else float(np.concatenate([getattr(batch, name) for batch in batches]).mean())
        for name in ("right_fp32", "right")
    )
    by_price = equal.reshape(len(prices), -1).mean(axis=1)
    at = [AtPenalty(penalty=p, decisions_equal=float(e)) for p, e in zip(prices, by_price, strict=True)]
    if labelled:
        right = {
            name: np.concatenate([getattr(batch, field) for batch in batches]).reshape(len(prices), -1).mean(axis=1)
            for name, field in (("accuracy_fp32", "right_fp32"), ("accuracy", "right"))
        }  # fmt: skip
        at = [a.model_copy(update={name: float(r[i]) for name, r in right.items()}) for i, a in enumerate(at)]
    return PrecisionReport(
        data=None if data is None else data.name,
        images=len(images),
        penalties=prices,
        decisions=equal.size,
        decisions_equal=int(equal.sum()),
        margin_median=float(np.median(margins)),
        margin_p5=float(np.percentile(margins, 5)),
        drift_median=float(np.median(drifts)),
        drift_p99=float(np.percentile(drifts, 99)),
        at_risk=float((drifts > margins / 2).mean()),
        output_drift_max=float(output_drift.max()) / largest,
        output_drift_mean=float(output_drift.mean()) / largest,
        accuracy_fp32=accuracy_fp32,
        accuracy=accuracy,
        by_penalty=tuple(at),
    )


def _prices(network: RuntimePrunedNetwork, calibration: Calibration | None) -> tuple[float, ...]:
    """The agent's own, the ends of its range, and some between: there decisions differ from image to image."""
    agent = network.agent
    if agent.scale is None:
        return (agent.penalty,)
    between = agent.scale.penalty(torch.tensor(_PARTS)).tolist()
    if calibration is not None:
        shares = [point.macs_share for point in calibration.points]
        low, high = min(shares), max(shares)
        between = [calibration.penalty_for(low + part * (high - low)) for part in _PARTS]
    return tuple(
        sorted(
            {
                agent.penalty,
                agent.scale.numbers.low,
                agent.scale.numbers.high,
                *(float(f"{p:.6g}") for p in between),
            }
        )
    )


def _batch(
    network: RuntimePrunedNetwork,
    controller: Controller,
    engines: EngineCache,
    images: Tensor,
    labels: NDArray[np.int64],
    price: float,
) -> _Batch:
    expected: list[Tensor] = []  # Q-values [N, K] by decision

    def choose(t: int, features: Tensor) -> Tensor:
        step = _step(network, t, features, states[-1], price)
        states.append(step.state)
        expected.append(step.q_values)
        return step.option

    states = [network.agent.initial_state(images)]
    outputs, options = network.route(images, choose)
    at_those = _run_at(controller.manifest, engines, images.numpy(), options.numpy())
    got, state = [], network.agent.initial_state(images)
    for t, decision in enumerate(network.decisions):
        step = _step(network, t, torch.from_numpy(at_those[decision.features]), state, price)
        state = step.state
        got.append(step.q_values)
    own = controller.run(images.numpy(), penalty=price)
    best = [q.topk(2, dim=1).values for q in expected]
    drifts = np.stack(
        [(a - b).abs().amax(dim=1).double().numpy() for a, b in zip(got, expected, strict=True)]
    )
    output_drift = np.abs(at_those["outputs"] - outputs.numpy()).astype(np.float64)
    by_image = (drifts.T, output_drift, own.outputs)
    return _Batch(
        equal=own.options == options.numpy(),
        margins=np.stack([(q[:, 0] - q[:, 1]).double().numpy() for q in best]),
        drifts=drifts,
        output_drift=output_drift,
        largest_output=float(outputs.abs().max()),
        right_fp32=outputs.flatten(1).argmax(dim=1).numpy() == labels,
        right=own.outputs.reshape(len(images), -1).argmax(axis=1) == labels,
        finite=np.all([np.isfinite(x).reshape(len(images), -1).all(axis=1) for x in by_image], axis=0),
    )


def _step(network: RuntimePrunedNetwork, t: int, features: Tensor, state: Tensor, price: float) -> StepOutput:
    step: StepOutput = network.agent(t, features, state, torch.full((len(features),), price))
    return step


def _run_at(
    manifest: Manifest,
    engines: EngineCache,
    images: NDArray[np.float32],
    options: NDArray[np.int64],
) -> Arrays:
    """What the stages make at given options ``[N, T]``: those of their tensors that are full width."""
    every = np.arange(len(images))
    tensors = {"images": RoutedTensor(len(images))}
    tensors["images"].put(every, images)
    for stage in manifest.stages:
        files = {branch.options: branch.file for branch in stage.branches}
        tensors |= {tensor.name: RoutedTensor(len(images)) for tensor in stage.outputs}
        for rows, key in rows_by_options(options[:, list(stage.option_decisions)]):
            results = engines.get(files[key]).run({t.name: tensors[t.name].take(rows) for t in stage.inputs})
            for name, array in results.items():
                tensors[name].put(rows, array)
    whole = {t.name for stage in manifest.stages for t in stage.outputs if t.follows is None}
    return {name: tensors[name].take(every) for name in whole}
