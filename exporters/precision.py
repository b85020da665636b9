"""The precisions of a bundle: what each asks for, and which tensors on the edges of stages it makes narrower."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from rnp_deploy.bundle.manifest import Preprocessing, TensorManifest
from rnp_deploy.datasets import ImageData
from rnp_deploy.engine import Engine, OpenEngine
from rnp_deploy.engines import ort
from rnp_deploy.errors import EngineError, InputError
from rnp_deploy.exporters.half_types import HALF_TYPES
from rnp_deploy.exporters.stage_graph import OPSET
from rnp_deploy.network.runtime_pruned import RuntimePrunedNetwork
from rnp_deploy.network.stages import Stage

__all__ = [
    "PRECISIONS",
    "checked_opset",
    "float32_ends",
    "reporting_opener",
    "verifying_opener",
    "with_edge_types",
]

#: Precision → the opsets it can be written in, the usual one last.
PRECISIONS = {
    "fp32": (17, 18, 19, OPSET),
    "fp16": (17, 18, 19, OPSET),
    "bf16": (22,),
    "int8": (17, 18, 19, OPSET),
}


def checked_opset(
    network: RuntimePrunedNetwork,
    precision: str,
    opset: int | None,
    data: ImageData | None,
    preprocessing: Preprocessing | None,
) -> int:
    """The opset to write; None is the precision's usual one.

    Raises:
        InputError: No such precision, an opset it cannot be written in, or data that are missing or do not fit.
    """
    if precision not in PRECISIONS:
        raise InputError(f"precision={precision!r}: use one of {', '.join(map(repr, PRECISIONS))}")
    known = PRECISIONS[precision]
    if opset is not None and opset not in known:
        raise InputError(
            f"opset={opset!r}: {precision} bundles are written in opset {', '.join(map(str, known))}"
        )
    if precision == "int8" and data is None:
        raise InputError(
            "int8 needs images to find the ranges of activations; pass data=, or --data NAME as for rnp-train"
        )
    if data is not None:
        made = (len(data.preprocessing.mean), *data.preprocessing.size)
        if made != network.input_shape:
            raise InputError(
                f"{data.name} has images of shape {made}; the network takes {network.input_shape}"
            )
        made_as = data.preprocessing
        if preprocessing is not None:  # the cut out of the middle is no part of what load_data() is asked for
            made_as = made_as.model_copy(update={"shorter_side": preprocessing.shorter_side})
        if preprocessing not in (None, made_as):
            raise InputError(
                f"{data.name} is preprocessed as {data.preprocessing!r}; the bundle is to say {preprocessing!r}; "
                "pass data made in that form, or its preprocessing"
            )
    return known[-1] if opset is None else opset


def float32_ends(network: RuntimePrunedNetwork) -> set[str]:
    """Tensors that are float32 in every precision: images, outputs, and what the agent reads."""
    return {"images", "outputs", *(decision.features for decision in network.decisions)}


def with_edge_types(
    network: RuntimePrunedNetwork, stages: Sequence[Stage], precision: str
) -> tuple[Stage, ...]:
    """Say the types of the tensors between stages; the torch modules go on computing in float32."""
    if precision not in HALF_TYPES:
        return tuple(stages)
    kept, half = float32_ends(network), HALF_TYPES[precision].name.lower()

    def typed(tensors: tuple[TensorManifest, ...]) -> tuple[TensorManifest, ...]:
        return tuple(t if t.name in kept else t.model_copy(update={"dtype": half}) for t in tensors)

    return tuple(
        dataclasses.replace(stage, inputs=typed(stage.inputs), outputs=typed(stage.outputs))
        for stage in stages
    )


def verifying_opener(source: ort.GraphSource, precision: str) -> OpenEngine:
    """What runs the graphs of a precision on the CPU in just that: fp16 and bf16 by torch, the rest by ONNX Runtime.

    ONNX Runtime's CPU provider computes most of fp16 in float32, where nothing overflows; it still takes the fp16
    graphs that torch refuses.
    """
    if precision != "fp16":
        return reporting_opener(source, precision)
    from rnp_deploy.engines import torch_engine

    by_torch, otherwise = torch_engine.opener(source, "cpu"), reporting_opener(source, precision)

    def open_engine(path: str) -> Engine:
        try:
            return by_torch(path)
        except EngineError:
            return otherwise(path)

    return open_engine


def reporting_opener(source: ort.GraphSource, precision: str) -> OpenEngine:
    """What runs them on many images: ONNX Runtime, on CPUs much faster in fp16, or torch where it has no bfloat16.

    With one thread, or the pool there is, so that exporting starts none in the caller's process.
    """
    if precision == "bf16":
        from rnp_deploy.engines import torch_engine

        return torch_engine.opener(source, "cpu")
    return ort.opener(source, ort.threads_in_use())
