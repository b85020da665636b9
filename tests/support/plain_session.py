"""An ordinary session of ONNX Runtime, also in a process whose thread pool was started."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnxruntime

from rnp_deploy.engines.ort import session_options, threads_in_use

__all__ = ["plain_session"]

#: Before a test puts a stand-in in its place.
_SESSION = onnxruntime.InferenceSession


def plain_session(graph: bytes, weights_folder: Path = Path()) -> Any:
    """Of a whole graph, optimised as usual, on the CPU."""
    options = session_options(weights_folder, threads_in_use())
    options.log_severity_level = 4
    return _SESSION(graph, options, providers=["CPUExecutionProvider"])
