"""The agent's part within a piece that holds both: the nodes' times, by ONNX Runtime's profiler."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rnp_deploy.controller import Controller
from rnp_deploy.engine import Engine
from rnp_deploy.engines import ort
from rnp_deploy.engines.backends import open_backend
from rnp_deploy.errors import EngineError, InputError

__all__ = ["agent_call_ms"]

_ROUNDS = 11
_AGENT = "agent/"  # begins the names of its nodes, as of its tensors


def agent_call_ms(
    path: str | Path,
    backend: str,
    device: str,
    threads: int | None,
    batches: Sequence[NDArray[np.float32]],
    *,
    penalty: ArrayLike | None = None,
) -> dict[str, float] | None:
    """Mean time of the agent's nodes in a call of each piece, as sessions of their own take it on these batches.

    Of a node it is the median over 11 rounds less the least median of all nodes: the profiler takes 2 to 4 µs
    of each, and some nodes do no more than rename a tensor.

    All arguments but two are those of :meth:`rnp_deploy.controller.Controller.load`, ``penalty`` of its ``run``; ``batches``
    are float32 ``[N, C, H, W]`` each. A few do: pieces that they do not call are given the mean of their step.

    Returns:
        File of the piece → ms; None where the agent has steps of its own, or
        the backend cannot tell its nodes apart.

    Raises:
        InputError: There are no batches.
        EngineError: ONNX Runtime cannot load a piece again.
    """
    opened = open_backend(path, backend, device, threads, "")
    plan = opened.source.plan
    if plan is None or (opened.backend, opened.device) != ("onnxruntime", "cpu"):
        return None  # the plans of engine sets alone hold it within pieces
    if not batches:
        raise InputError("there is no batch to profile the agent's nodes on; pass one at least")
    with tempfile.TemporaryDirectory() as folder:
        sessions: dict[str, Any] = {}

        def open_engine(file: str) -> Engine:
            sessions[file] = _profiled_session(opened.source.graphs, file, threads, Path(folder))
            return ort.OrtEngine(sessions[file], file)

        with Controller(opened.source.manifest, open_engine, plan=plan) as controller:
            for _ in range(_ROUNDS):
                for images in batches:
                    controller.run(images, penalty=penalty)
            profiles = {file: Path(session.end_profiling()) for file, session in sessions.items()}
        agent_ms = _agent_ms({file: json.loads(path.read_bytes()) for file, path in profiles.items()})
    for step in plan.steps:
        called = [agent_ms[piece.file] for piece in step.pieces if piece.file in agent_ms]
        agent_ms.update({p.file: float(np.mean(called)) for p in step.pieces if p.file not in agent_ms})
    return agent_ms


def _profiled_session(source: Any, file: str, threads: int | None, folder: Path) -> Any:
    """As :func:`rnp_deploy.engines.ort.engine_from_onnx` opens a piece of an engine set, but for the profile."""
    runtime = ort.require_runtime()
    options = ort.session_options(source.path, threads)
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.disable_prepacking", "1")
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / file.replace("/", "-"))
    try:
        return runtime.InferenceSession(
            source.graph(file), options, providers=["CPUExecutionProvider"], enable_fallback=0
        )
    except Exception as err:  # pybind raises classes of its own that share no root
        raise EngineError(f"{source.path}/{file}: ONNX Runtime cannot profile it: {err}") from err


def _agent_ms(profiles: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, float]:
    """File → ms of the agent in a call, of the profile's events of 11 equal rounds."""
    durations, names = {}, {}
    for file, events in profiles.items():
        nodes = [event for event in events if event["name"].endswith("_kernel_time")]
        in_a_round = len(nodes) // _ROUNDS
        names[file] = [event["name"] for event in nodes[:in_a_round]]
        rounds = np.reshape([event["dur"] for event in nodes], (_ROUNDS, in_a_round))  # µs [round, node]
        durations[file] = np.median(rounds, axis=0)
    least = min(float(values.min()) for values in durations.values())
    agent_ms = {}
    for file, values in durations.items():
        calls = names[file].count(names[file][0])
        agents = [
            value - least for name, value in zip(names[file], values, strict=True) if name.startswith(_AGENT)
        ]
        agent_ms[file] = float(sum(agents)) / calls / 1e3
    return agent_ms
