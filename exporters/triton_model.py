"""What Triton's Python backend runs: ``rnp-triton`` copies this file beside a bundle or engine set, as ``model.py``.

It imports nothing of this package but what runs a bundle, and can be imported inside of Triton only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray

from rnp_deploy import Controller, Result
from rnp_deploy.errors import InputError, RnpError
from rnp_deploy.run_inputs import checked_images, checked_penalty

__all__ = ["TritonPythonModel"]

_FOLDER = Path(__file__).parent / "bundle"


@dataclass(frozen=True)
class _Asked:
    """One request, checked: images ``[N, C, H, W]`` and the price of each; the images are Triton's memory."""

    images: NDArray[np.float32]
    prices: NDArray[np.float32]


class TritonPythonModel:
    """One instance of the model: a controller, which answers a batch of requests in one run."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Open what lies beside this file, verified.

        Args:
            args: Of Triton; ``"model_config"`` is the configuration as JSON.

        Raises:
            TritonModelException: It cannot be opened; the message is the controller's.
        """
        parameters = json.loads(args["model_config"]).get("parameters", {})
        given = {name: value["string_value"] for name, value in parameters.items()}
        numbers = {name: int(given[name]) for name in ("threads", "memory_budget_bytes") if name in given}
        names = {name: given[name] for name in ("backend", "device", "preload") if name in given}
        self._policy = given.get("policy", "regroup")
        try:
            self._controller = Controller.load(_FOLDER, **names, **numbers)  # type: ignore[arg-type]
        except RnpError as err:
            raise pb_utils.TritonModelException(f"{type(err).__name__}: {err}") from err

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer each request, in their order; one that does not fit gets an error, and the others their answers."""
        read = [self._read(request) for request in requests]
        answers = iter(self._answers([asked for asked in read if isinstance(asked, _Asked)]))
        return [next(answers) if isinstance(asked, _Asked) else _error(asked) for asked in read]

    def finalize(self) -> None:
        """Close the controller."""
        self._controller.close()

    def _read(self, request: Any) -> _Asked | InputError:
        """What is asked, or why it cannot be answered."""
        try:
            return self._checked(request)
        except InputError as err:
            return err

    def _checked(self, request: Any) -> _Asked:
        manifest = self._controller.manifest
        tensor = manifest.inputs[0]
        given = _array(request, tensor.name)
        if given is None:
            raise InputError(f"the input {tensor.name!r} is missing")
        images = checked_images(given, tensor.shape)
        penalty, shares = _array(request, "penalty"), _array(request, "target_macs")
        if penalty is not None and shares is not None:
            raise InputError("target_macs is given beside a penalty; pass one of them")
        prices = None if penalty is None else penalty.reshape(-1)
        if shares is not None:
            if manifest.calibration is None:
                raise InputError(
                    "target_macs needs a calibration, which this bundle lacks: rnp-train makes one, "
                    "and rnp-export keeps it; or pass a penalty"
                )
            prices = np.array([manifest.calibration.penalty_for(float(share)) for share in shares.flat])
        return _Asked(images, checked_penalty(prices, len(images), manifest))

    def _answers(self, asked: Sequence[_Asked]) -> list[Any]:
        if not asked:
            return []
        images = np.concatenate([request.images for request in asked])  # Triton's memory may be unaligned
        prices = np.concatenate([request.prices for request in asked])
        try:
            result = self._controller.run(images, penalty=prices, policy=self._policy)
        except RnpError as err:
            return [_error(err) for _ in asked]
        ends = np.cumsum([len(request.images) for request in asked])
        return [
            self._response(result, slice(end - len(request.images), end))
            for request, end in zip(asked, ends, strict=True)
        ]

    def _response(self, result: Result, rows: slice) -> Any:
        output = self._controller.manifest.outputs[0]
        values = result.outputs[rows]
        shape = (len(values), *(output.shape or (1,)))  # Triton knows no tensors of the batch axis alone
        return pb_utils.InferenceResponse(
            [
                pb_utils.Tensor(output.name, values.reshape(shape)),
                pb_utils.Tensor("options", result.options[rows]),
                pb_utils.Tensor("macs", result.macs[rows].reshape(-1, 1)),
            ]
        )


def _array(request: Any, name: str) -> NDArray[np.float32] | None:
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return None if tensor is None else tensor.as_numpy()


def _error(err: RnpError) -> Any:
    code = pb_utils.TritonError.INVALID_ARG if isinstance(err, InputError) else pb_utils.TritonError.INTERNAL
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(err), code))
