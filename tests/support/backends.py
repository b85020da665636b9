"""One bundle on every backend that runs on the CPU."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from rnp_deploy import Controller
from rnp_deploy.bundle import open_bundle
from rnp_deploy.engines import ort
from rnp_deploy.engines.torch_engine import opener

__all__ = ["cpu_controllers"]


@contextlib.contextmanager
def cpu_controllers(path: Path) -> Iterator[tuple[Controller, Controller]]:
    """On ONNX Runtime, and on torch."""
    bundle = open_bundle(path)
    with (
        Controller(bundle.manifest, ort.opener(bundle, 1)) as on_onnxruntime,
        Controller(bundle.manifest, opener(bundle, "cpu")) as on_torch,
    ):
        yield on_onnxruntime, on_torch
