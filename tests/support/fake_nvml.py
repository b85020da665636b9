"""NVML of plain Python: answers by the name of the function, and refuses the rest as a GPU does that lacks it."""

from __future__ import annotations

import sys
from typing import Any

__all__ = ["PCI_ADDRESS", "FakeNvml", "NVMLError", "use_fake_nvml"]

PCI_ADDRESS = b"0000:65:00.0"


class NVMLError(Exception):
    """As nvidia-ml-py's."""


class FakeNvml:
    """In the place of the module ``pynvml``.

    Attributes:
        answers: Function → its answer: a value, a dict by the last argument, something to call, or an error.
    """

    NVMLError = NVMLError
    NVML_TEMPERATURE_GPU, NVML_CLOCK_SM, NVML_CLOCK_MEM = 0, 1, 2

    def __init__(self, answers: dict[str, Any]) -> None:
        self.answers = {"nvmlDeviceGetName": "NVIDIA H100", "nvmlInit": None, **answers}
        self._started = False

    def nvmlDeviceGetHandleByPciBusId(self, address: bytes) -> str:
        assert self._started
        if address != PCI_ADDRESS:
            raise NVMLError("Not Found")
        return "gpu"

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("nvml"):
            raise AttributeError(name)

        def call(*arguments: Any) -> Any:
            self._started |= name == "nvmlInit"
            assert self._started
            assert arguments[:1] == (("gpu",) if name.startswith("nvmlDevice") else ())
            answer = self.answers.get(name, NVMLError("Not Supported"))
            if isinstance(answer, Exception):
                raise answer
            if isinstance(answer, dict):
                return answer[arguments[-1]]
            return answer() if callable(answer) else answer

        return call


def use_fake_nvml(monkeypatch: Any, address: bytes = PCI_ADDRESS, **answers: Any) -> FakeNvml:
    """Put it in the place of nvidia-ml-py, beside a driver whose first device is at ``address``."""
    from rnp_deploy.benchmarking import nvml

    def driver_call(name: str, *arguments: Any) -> None:
        if name == "cuDeviceGet":
            assert arguments[1] == 0
            arguments[0]._obj.value = 3
        else:
            assert (name, arguments[1], arguments[2].value) == ("cuDeviceGetPCIBusId", len(arguments[0]), 3)
            arguments[0].value = address

    fake = FakeNvml(answers)
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    monkeypatch.setattr(nvml, "driver_call", driver_call)
    return fake
