"""What Triton's Python backend gives a model to work with, and a model loaded from its folder as Triton does."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace

import numpy as np

__all__ = ["Answer", "Refusal", "ask", "load_model"]


class TritonModelException(Exception):  # noqa: N818 - Triton's name
    """That a model cannot be loaded."""


@dataclass
class Tensor:
    """Name and array, as Triton takes them: contiguous, of a type it knows."""

    name: str
    array: np.ndarray

    def __post_init__(self):
        assert self.array.dtype in (np.float32, np.int64)

    def as_numpy(self):
        return self.array


@dataclass
class Refusal:
    """An error for one request; the codes are numbers of Triton's."""

    message: str
    code: int

    INTERNAL, INVALID_ARG = 1, 3


@dataclass
class Answer:
    """To one request."""

    output_tensors: list = field(default_factory=list)
    error: Refusal | None = None

    def __getitem__(self, name):
        assert self.error is None, self.error
        return next(tensor.array for tensor in self.output_tensors if tensor.name == name)


def ask(**inputs):
    """A request of arrays, read-only and at odd addresses as those in Triton's shared memory may be."""
    return SimpleNamespace(inputs=[Tensor(name, _unaligned(np.asarray(a))) for name, a in inputs.items()])


def _unaligned(array):
    memory = np.zeros(array.nbytes + 1, np.uint8)
    moved = memory[1:].view(array.dtype).reshape(array.shape)
    moved[...] = array
    moved.flags.writeable = False
    return moved


def load_model(folder, parameters, monkeypatch):
    """The model of ``folder/1/model.py``, initialized; ``parameters`` are of its configuration."""
    utils = ModuleType("triton_python_backend_utils")
    utils.Tensor, utils.InferenceResponse, utils.TritonError = Tensor, Answer, Refusal
    utils.TritonModelException = TritonModelException
    utils.get_input_tensor_by_name = lambda request, name: next(
        (tensor for tensor in request.inputs if tensor.name == name), None
    )
    monkeypatch.setitem(sys.modules, utils.__name__, utils)
    spec = importlib.util.spec_from_file_location("model_in_triton", folder / "1" / "model.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    model = module.TritonPythonModel()
    config = {"parameters": {name: {"string_value": value} for name, value in parameters.items()}}
    model.initialize({"model_config": json.dumps(config)})
    return model
