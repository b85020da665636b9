"""Time the controller beside the static graphs a user would pick instead, in one run."""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from rnp_deploy import __version__
from rnp_deploy.bundle.engine_set import check_not_an_engine_set, is_engine_set
from rnp_deploy.bundle.manifest import Manifest
from rnp_deploy.bundle.reading import open_bundle
from rnp_deploy.controller import Controller
from rnp_deploy.engines import ort
from rnp_deploy.engines.fingerprint import processor_name
from rnp_deploy.engines.static_graph import static_graph
from rnp_deploy.errors import InputError
from rnp_deploy.progress import Progress, no_progress

__all__ = ["Profile", "Timing", "environment", "percentile", "profile_bundle", "timed_in_turns"]

_MAX_BATCHES = 64  # distinct batches that are timed in turn

Images = NDArray[np.float32]
Contender = Callable[[int, Images], Any]  # of the index of a batch, and the batch
Key = TypeVar("Key")


@dataclass(frozen=True)
class Timing:
    """Latencies of one contender, for a whole batch.

    ``p90_ms`` and ``p99_ms`` are None where there are fewer than 10 and 100 runs.
    ``macs_share`` is mean MACs ÷ the dense network's, the agent's included where it ran;
    ``speedup`` the dense network's p50 ÷ this p50; ``efficiency`` is ``speedup`` times
    ``macs_share``: the actual speed-up ÷ the theoretical one.
    """

    name: str
    runs: int
    p50_ms: float
    p90_ms: float | None
    p99_ms: float | None
    macs_share: float
    speedup: float
    efficiency: float


@dataclass(frozen=True)
class Profile:
    """What :func:`profile_bundle` measured.

    Attributes:
        environment: Versions, processor, threads.
        batch: Images per run.
        images: Images the decisions and accuracies are from.
        timings: What speed-ups are over first, where there are static rivals.
        agent_share: Share of the controller's p50 that goes away when its own decisions
            are given to it, so that the agent does not run.
        option_counts: ``[t][j-1]``: images that took option j at decision t.
        accuracy: Controller's, 0..1, or None without labels.
        dense_accuracy: Dense network's, or None.
    """

    environment: Mapping[str, Any]
    batch: int
    images: int
    timings: tuple[Timing, ...]
    agent_share: float
    option_counts: tuple[tuple[int, ...], ...]
    accuracy: float | None
    dense_accuracy: float | None


def percentile(latencies_ms: NDArray[np.float64], q: int) -> float | None:
    """The q-th percentile, or None where the runs are too few to hold one beyond it."""
    if len(latencies_ms) * (100 - q) < 100:
        return None
    return float(np.percentile(latencies_ms, q))


def profile_bundle(
    path: str | Path,
    images: Images,
    labels: NDArray[np.int64] | None = None,
    *,
    batch: int = 1,
    penalty: float | None = None,
    threads: int | None = None,
    bundle: str | Path | None = None,
    duration_s: float = 3.0,
    min_runs: int = 100,
    progress: Progress = no_progress,
) -> Profile:
    """Time a controller, its fixed options and the static graphs, interleaved.

    Each round runs every contender once, on the same batch, every second one from the last to
    the first; rounds go through the images until both ``duration_s`` (for all contenders
    together) and ``min_runs`` are reached. Engines are opened and every batch seen once before.

    Args:
        path: A bundle or engine set.
        images: float32 ``[N, C, H, W]``, N ≥ ``batch``.
        labels: ``[N]`` class indices, for accuracies.
        batch: Images per run.
        penalty: Price of one more group; None is the trained one.
        threads: Threads that compute; None is one per core.
        bundle: Where ``path`` is an engine set, the bundle it was built from, whose graphs the
            static rivals are; None: there are none, and dense is the controller at option k.
        duration_s: Seconds.
        min_runs: Runs of each contender.
        progress: Told of rounds.

    Raises:
        InputError: Fewer images than a batch, labels of another length, or the engine set of
            another bundle.
        BundleError, EngineError: As :meth:`rnp_deploy.Controller.load`.
    """
    count = len(images) if np.ndim(images) else 0
    if count < batch or batch < 1:
        raise InputError(f"{count} images do not fill a batch of {batch}")
    if labels is not None and np.shape(labels) != (count,):
        raise InputError(f"labels of shape {np.shape(labels)} for {count} images; pass one class index each")
    rivals = path if bundle is None and not is_engine_set(Path(path)) else bundle
    with Controller.load(path, threads=threads, cache_dir="") as controller:
        manifest = controller.manifest
        static = {} if rivals is None else _static_engines(rivals, manifest, threads)
        parts = [images[i : i + batch] for i in range(0, len(images), batch)]
        decided = [controller.run(part, penalty=penalty) for part in parts]
        contenders = _contenders(controller, static, [d.options for d in decided], penalty)
        dense = [contenders[_dense_name(contenders, manifest.groups)](0, part) for part in parts]
        parts = [part for part in parts if len(part) == batch][:_MAX_BATCHES]
        for i, part in enumerate(parts):
            for run in contenders.values():
                run(i, part)
        latencies = timed_in_turns(contenders, parts, duration_s, min_runs, progress)
    options = np.concatenate([d.options for d in decided])
    macs_share = float(np.concatenate([d.macs for d in decided[: len(parts)]]).mean() / manifest.macs)
    p50 = {name: float(np.median(values)) for name, values in latencies.items()}
    groups = range(1, manifest.groups + 1)
    return Profile(
        environment=environment(threads),
        batch=batch,
        images=len(images),
        timings=_timings(manifest, latencies, macs_share),
        agent_share=1 - p50["controller, its decisions given"] / p50["controller"],
        option_counts=tuple(tuple(int((column == j).sum()) for j in groups) for column in options.T),
        accuracy=_accuracy([d.outputs for d in decided], labels),
        dense_accuracy=_accuracy(dense, labels),
    )


def _static_engines(path: str | Path, manifest: Manifest, threads: int | None) -> dict[int, ort.OrtEngine]:
    check_not_an_engine_set(Path(path))
    bundle = open_bundle(path)
    if bundle.manifest != manifest:
        raise InputError(f"{path} is not the bundle that the engine set was built from")
    engines = {}
    for j in range(manifest.groups, 0, -1):
        graph = static_graph(bundle, manifest.uniform_options(j))
        engines[j] = ort.engine_from_onnx(graph, bundle.path, f"static graph of option {j}", threads)
    return engines


def _contenders(
    controller: Controller, static: Mapping[int, ort.OrtEngine], decided: list[Any], penalty: float | None
) -> dict[str, Contender]:
    manifest = controller.manifest
    name_in, name_out = manifest.inputs[0].name, manifest.outputs[0].name

    def fixed(j: int) -> Contender:
        options = manifest.uniform_options(j)
        return lambda _, part: controller.run(part, options=np.tile(options, (len(part), 1))).outputs

    def graph(j: int) -> Contender:
        return lambda _, part: static[j].run({name_in: part})[name_out]

    contenders: dict[str, Contender] = {_static_name(j, manifest.groups): graph(j) for j in static}
    contenders["controller"] = lambda _, part: controller.run(part, penalty=penalty)
    contenders["controller, its decisions given"] = lambda i, part: controller.run(part, options=decided[i])
    contenders.update({_held_name(j): fixed(j) for j in range(manifest.groups, 0, -1)})
    return contenders


def _dense_name(contenders: Mapping[str, Any], groups: int) -> str:
    """What speed-ups are over: the dense network in one graph where there is one."""
    name = _static_name(groups, groups)
    return name if name in contenders else _held_name(groups)


def _held_name(j: int) -> str:
    return f"controller, option {j} held"


def _static_name(j: int, groups: int) -> str:
    return "dense network, one graph" if j == groups else f"static graph, option {j}"


def timed_in_turns(
    contenders: Mapping[Key, Contender],
    parts: Sequence[Images],
    duration_s: float,
    min_runs: int,
    progress: Progress,
) -> dict[Key, NDArray[np.float64]]:
    """Milliseconds ``[round]`` of each contender; all should have run on all parts before.

    Rounds are as :func:`profile_bundle` says.
    """
    order = list(contenders.items())
    latencies: dict[Key, list[float]] = {key: [] for key in contenders}
    started, rounds, reported = time.perf_counter(), 0, 0
    while rounds < min_runs or time.perf_counter() - started < duration_s:
        i = rounds % len(parts)
        for key, run in order:
            before = time.perf_counter_ns()
            run(i, parts[i])
            latencies[key].append((time.perf_counter_ns() - before) / 1e6)
        order.reverse()
        rounds += 1
        share = min(rounds / min_runs, (time.perf_counter() - started) / max(duration_s, 1e-9), 1.0)
        if int(100 * share) > reported:
            reported = int(100 * share)
            progress("timing, percent", reported, 100)
    return {key: np.asarray(values) for key, values in latencies.items()}


def _timings(
    manifest: Manifest, latencies: Mapping[str, NDArray[np.float64]], macs_share: float
) -> tuple[Timing, ...]:
    agent = sum(step.macs for step in manifest.agent.steps) / manifest.macs
    shares = {"controller": macs_share + agent, "controller, its decisions given": macs_share}
    for j in range(1, manifest.groups + 1):
        share = manifest.path_macs(manifest.uniform_options(j)) / manifest.macs
        shares[_static_name(j, manifest.groups)] = shares[_held_name(j)] = share
    dense_p50 = float(np.median(latencies[_dense_name(latencies, manifest.groups)]))
    timings = []
    for name, values in latencies.items():
        p50 = float(np.median(values))
        speedup = dense_p50 / p50
        timings.append(
            Timing(
                name=name,
                runs=len(values),
                p50_ms=p50,
                p90_ms=percentile(values, 90),
                p99_ms=percentile(values, 99),
                macs_share=shares[name],
                speedup=speedup,
                efficiency=speedup * shares[name],
            )
        )
    return tuple(timings)


def _accuracy(outputs: list[NDArray[np.float32]], labels: NDArray[np.int64] | None) -> float | None:
    if labels is None:
        return None
    return float((np.concatenate(outputs).reshape(len(labels), -1).argmax(axis=1) == labels).mean())


def environment(threads: int | None) -> dict[str, str | int | None]:
    """What times depend on: versions (None of a runtime that is not loaded), processor, cores, threads."""
    return {
        "rnp_deploy": __version__,
        "onnxruntime": getattr(sys.modules.get("onnxruntime"), "__version__", None),
        "numpy": np.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "threads": threads,
    }
