"""What a user would deploy instead of a controller, made ready to be timed beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from rnp_deploy.array_memory import ArrayMemory
from rnp_deploy.benchmarking.timing import Contender
from rnp_deploy.bundle.engine_set import check_not_an_engine_set
from rnp_deploy.bundle.manifest import Manifest, TensorManifest
from rnp_deploy.bundle.reading import Bundle, open_bundle
from rnp_deploy.engine import Engine
from rnp_deploy.engines.backends import Opened
from rnp_deploy.engines.static_engines import static_opener
from rnp_deploy.errors import InputError

__all__ = [
    "Rival",
    "contender_of",
    "nearest_path",
    "open_rivals",
    "rival_bundle",
    "static_contender",
]


@dataclass(frozen=True)
class Rival:
    """One of what a controller is timed beside; it holds its engine for as long as it lives.

    Attributes:
        name, kind, options, macs_share: As in :class:`rnp_deploy.benchmarking.report.ContenderReport`.
        contender: Gives outputs ``[N, ...]`` on the host, which are the caller's. Any N goes, but where a file or a
            plan of TensorRT fixed one.
        nearest: Whether no static graph is nearer in MACs to the controller's mean.
    """

    name: str
    kind: Literal["dense", "static", "nearest", "single-file", "baseline"]
    contender: Contender
    options: tuple[int, ...] | None = None
    macs_share: float | None = None
    nearest: bool = False


def open_rivals(
    bundle: Bundle,
    opened: Opened,
    *,
    batch: int,
    threads: int | None,
    nearest: Sequence[int] | None = None,
) -> tuple[Rival, ...]:
    """Open the static graphs of a bundle on the backend, device and memory of its controller.

    Args:
        bundle: See :func:`rival_bundle`.
        opened: What the controller runs on.
        batch: Images per run; graphs of TensorRT are built for it, and take no more.
        threads: As the controller was given them.
        nearest: See :func:`nearest_path`; where it is a uniform path, that rival is marked, and no other is opened.

    Returns:
        The dense network, the uniform widths from the widest on, then the nearest path.

    Raises:
        InputError: ``nearest`` names no path.
        EngineError: A graph cannot be built or loaded; of these MissingRuntimeError where a package is missing.
    """
    manifest, open_static = bundle.manifest, static_opener(bundle, opened, threads, batch)
    wanted = None if nearest is None else tuple(map(int, nearest))

    def rival(name: str, kind: Literal["dense", "static", "nearest"], options: tuple[int, ...]) -> Rival:
        contender = _of_static(open_static(options), bundle, opened)
        share = manifest.path_macs(options) / manifest.macs
        return Rival(name, kind, contender, options, share, nearest=options == wanted)

    rivals = [rival("dense network, one graph", "dense", manifest.uniform_options(manifest.groups))]
    rivals += [
        rival(f"static graph, option {j}", "static", manifest.uniform_options(j))
        for j in range(manifest.groups - 1, 0, -1)
    ]
    if wanted is not None and not any(made.nearest for made in rivals):
        rivals.append(rival("static graph nearest in MACs", "nearest", wanted))
    return tuple(rivals)


def static_contender(
    bundle: Bundle, opened: Opened, options: Sequence[int], *, batch: int, threads: int | None
) -> Contender:
    """Open one static graph alone; arguments and errors as :func:`open_rivals`."""
    return _of_static(static_opener(bundle, opened, threads, batch)(options), bundle, opened)


def _of_static(engine: Engine, bundle: Bundle, opened: Opened) -> Contender:
    return contender_of(engine, opened.memory, bundle.manifest.inputs[0].name, bundle.manifest.outputs[0])


def rival_bundle(opened: Opened, path: str | Path | None = None) -> Bundle | None:
    """The bundle whose static graphs a controller is timed beside.

    Args:
        opened: What the controller runs on.
        path: Where that is an engine set, the bundle it was built from.

    Returns:
        Verified; None of an engine set without ``path``.

    Raises:
        InputError: ``path`` is an engine set, or another bundle.
        BundleError: It is missing, changed, or of another format.
    """
    if path is None:
        graphs = opened.source.graphs
        return graphs if isinstance(graphs, Bundle) else None
    check_not_an_engine_set(Path(path))
    bundle = open_bundle(path)
    if bundle.manifest != opened.source.manifest:
        raise InputError(
            f"{path} is not the bundle that {opened.source.graphs.path} was built from; pass that one"
        )
    return bundle


def nearest_path(options: NDArray[np.int64], macs: NDArray[np.int64], manifest: Manifest) -> tuple[int, ...]:
    """The path whose MACs are nearest to the mean, of those that images took and the uniform ones.

    Args:
        options: ``[N, T]`` in 1..k, as the controller took them.
        macs: ``[N]``, of the backbone, as it counted them.
        manifest: Of the bundle.

    Returns:
        Options, one per decision; a uniform path where it is as near as any, then the narrower.
    """
    mean = float(np.mean(macs))
    uniform = [manifest.uniform_options(j) for j in range(1, manifest.groups + 1)]
    taken, rows = np.unique(options, axis=0, return_index=True)
    paths = {tuple(path): int(macs[row]) for path, row in zip(taken.tolist(), rows, strict=True)}
    paths |= {path: manifest.path_macs(path) for path in uniform}
    return min(paths, key=lambda path: (abs(paths[path] - mean), path not in uniform, path))


def contender_of(
    engine: Engine, memory: ArrayMemory, name_in: str, output: TensorManifest | None = None
) -> Contender:
    """Make an engine with one input a contender.

    On a device the images are copied to, and the outputs from, memory that is bound once per batch size; images may
    lie there already.

    Args:
        engine: Of float32 images.
        memory: Where it reads and writes.
        name_in: Of its input.
        output: What the contender gives; None: the engine's first, as it comes out.
    """
    if memory.on_host:
        return lambda _, images: next(iter(engine.run({name_in: images}).values()))
    bound: dict[int, tuple[Any, NDArray[Any], Callable[[], None]]] = {}

    def bind(images: Any) -> tuple[Any, NDArray[Any], Callable[[], None]]:
        fed = memory.empty(images.shape, images.dtype)
        if output is None:
            memory.write(fed, images)
            made = {
                name: memory.host_empty(a.shape, a.dtype) for name, a in engine.run({name_in: fed}).items()
            }
        else:
            made = {output.name: memory.host_empty((len(images), *output.shape), np.dtype(np.float32))}
        return fed, next(iter(made.values())), engine.bind({name_in: fed}, made)

    def run(_: int, images: Any) -> NDArray[Any]:
        with memory.turn():
            if len(images) not in bound:
                bound[len(images)] = bind(images)
            fed, made, call = bound[len(images)]
            memory.write(fed, images)
            call()
            return made.copy()

    return run
