"""``rnp-build --backend tensorrt``: bundle → engine set of TensorRT or TensorRT-RTX."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rnp_deploy import __version__
from rnp_deploy.atomic import atomic_directory, check_output
from rnp_deploy.bundle.engine_set import ENGINES_FILE, ENGINES_FORMAT, EngineSetManifest, open_engine_set
from rnp_deploy.bundle.manifest import FileManifest
from rnp_deploy.bundle.reading import Bundle
from rnp_deploy.bundle.writing import copy_manifest, describe_file, save_engines
from rnp_deploy.canonical_json import canonical_sha256
from rnp_deploy.engines.cuda_driver import CudaDevice, cuda_device
from rnp_deploy.engines.cuda_memory import CudaMemory
from rnp_deploy.engines.engine_weights import BundleArrays
from rnp_deploy.engines.ort import require_runtime
from rnp_deploy.engines.set_verification import compare_with_bundle
from rnp_deploy.engines.trt import opener
from rnp_deploy.engines.trt_cache import PlanCache, cache_folder, plan_key
from rnp_deploy.engines.trt_fingerprint import environment, misfits, tensorrt_fingerprint
from rnp_deploy.engines.trt_graph import PieceGraph, piece_graph
from rnp_deploy.engines.trt_library import FLAVORS, TensorRt, load_tensorrt
from rnp_deploy.engines.trt_network import BuildOptions, compute_capabilities
from rnp_deploy.engines.trt_plan import PieceSource, piece_sources, tensorrt_plan, with_files
from rnp_deploy.engines.trt_workers import BuildTask, build_all, peak_bytes
from rnp_deploy.errors import InputError, IntegrityError, MissingRuntimeError, OutputError
from rnp_deploy.memory import available_bytes
from rnp_deploy.progress import Progress, no_progress

__all__ = ["BuildOutlook", "build_outlook", "build_tensorrt_set"]

TIMING_FILE = "timing.cache"
_THREADS = 4
#: Precision → largest deviation from the bundle on ONNX Runtime's CPU, ÷ the largest output. Wide: kernels add in
#: other orders, and a wrong layout or branch is off by the size of the outputs. That CPU has no bf16 convolutions.
_TOLERANCES = {"fp32": 1e-2, "fp16": 5e-2, "int8": 0.2}


@dataclass(frozen=True)
class BuildOutlook:
    """What a build would do; bytes.

    Attributes:
        library: TensorRT's name and version.
        pieces: Of the bundle's plan.
        engines: Different ones.
        cached: Of these, built already.
        weight_bytes: Of the engines that are to be built, about what they will take on disk.
        peak_bytes: Memory by estimate.
        workers: Processes.
        cache: The cache's folder.
    """

    library: str
    pieces: int
    engines: int
    cached: int
    weight_bytes: int
    peak_bytes: int
    workers: int
    cache: str


def build_tensorrt_set(
    bundle: Bundle,
    path: str | Path,
    overwrite: bool = False,
    *,
    options: BuildOptions = BuildOptions(),  # noqa: B008 - frozen
    flavor: str = "auto",
    workers: int | None = None,
    memory_bytes: int | None = None,
    cache_dir: str | Path | None = None,
    verify: int = 4,
    progress: Progress = no_progress,
) -> EngineSetManifest:
    """Build every branch and every agent step, and write them as an engine set.

    Plans go into a cache as they are built. A build that was stopped is taken up where it
    was, and the same piece is built once. The set appears whole under ``path`` or not at all.

    Args:
        bundle: Verified.
        path: The directory to write.
        overwrite: Whether an earlier engine set at ``path`` may be replaced.
        options: Of all engines.
        flavor: ``"tensorrt"``, ``"rtx"``, or ``"auto"``: TensorRT where it is installed.
        workers: Engines built at once; None: one per core for TensorRT-RTX, and one for TensorRT,
            whose measurements would disturb each other.
        memory_bytes: What builds may take together; None: half of what is free.
        cache_dir: Where plans are kept; ``""``: nowhere; None: ``$RNP_CACHE_DIR``, or
            this user's cache directory.
        verify: Random images on which the set is compared with the bundle, where this machine
            can run it; 0: do not.
        progress: Told of engines built.

    Raises:
        OutputExistsError, InputError, OutputError: As :func:`rnp_deploy.atomic.atomic_directory`;
            also for options that do not fit, and a disk that is full.
        MissingRuntimeError: TensorRT is not installed.
        DeviceError: TensorRT needs a GPU, and there is none.
        EngineError: A piece cannot be built; it is named.
        IntegrityError: The bundle was changed meanwhile.
    """
    path = Path(path)
    check_output(path, overwrite=overwrite, marker=ENGINES_FILE)
    with _cache(cache_dir) as cache:
        build = _prepared(bundle, cache, flavor, options, progress)
        limits = build.limits(workers, memory_bytes)

        def fill_cache(missing: list[int]) -> None:
            built = build_all(build.tasks(missing), build.library.flavor, cache, build.timed_on, limits)
            for done, _ in enumerate(built, start=1):
                progress("building engines", done, len(missing))

        fill_cache(build.missing())
        return _write_set(build, path, overwrite, fill_cache, verify)


def build_outlook(
    bundle: Bundle,
    *,
    options: BuildOptions = BuildOptions(),  # noqa: B008 - frozen
    flavor: str = "auto",
    workers: int | None = None,
    memory_bytes: int | None = None,
    cache_dir: str | Path | None = None,
    progress: Progress = no_progress,
) -> BuildOutlook:
    """Tell what :func:`build_tensorrt_set` would do; nothing is written. Arguments and errors as there."""
    with _cache(cache_dir) as cache:
        build = _prepared(bundle, cache, flavor, options, progress)
        count, memory = build.limits(workers, memory_bytes)
        missing = build.missing()
        needed = sorted((peak_bytes(build.sizes[i]) for i in missing), reverse=True)[:count]
        return BuildOutlook(
            library=build.library.name,
            pieces=len(build.keys),
            engines=len(set(build.keys)),
            cached=len(set(build.keys)) - len(missing),
            weight_bytes=sum(build.sizes[i] for i in missing),
            peak_bytes=min(sum(needed), max([memory, *needed[:1]])) if needed else 0,
            workers=count,
            cache=str(cache.folder) if cache_dir != "" else "",
        )


@dataclass(frozen=True)
class _Build:
    """What is to be built, with keys and graph sizes (bytes) in the order of the sources."""

    bundle: Bundle
    library: TensorRt
    device: CudaDevice | None
    options: BuildOptions
    cache: PlanCache
    arrays: BundleArrays
    sources: list[PieceSource]
    keys: list[str]
    sizes: list[int]

    @property
    def timed_on(self) -> str | None:
        """The key of the timing cache; TensorRT-RTX has none, it times nothing."""
        return None if self.library.flavor == "rtx" else canonical_sha256(self.fingerprint(), without="")

    def missing(self) -> list[int]:
        """The first source of each key that the cache lacks, the largest first, so that none is late."""
        first = {key: i for i, key in reversed(list(enumerate(self.keys)))}
        wanted = [i for key, i in first.items() if not self.cache.holds(key)]
        return sorted(wanted, key=lambda i: (-self.sizes[i], i))

    def graph(self, i: int) -> PieceGraph:
        source = self.sources[i]
        return piece_graph(self.bundle, self.arrays, source.file, source.where, source.inputs, source.outputs)

    def tasks(self, wanted: list[int]) -> Iterator[BuildTask]:
        for i in wanted:
            yield BuildTask(self.graph(i), self.options, self.keys[i])

    def limits(self, workers: int | None, memory_bytes: int | None) -> tuple[int, int]:
        """Processes and bytes."""
        default = (os.cpu_count() or 1) if self.library.flavor == "rtx" else 1
        return workers or default, memory_bytes or available_bytes() // 2

    def settings(self) -> dict[str, object]:
        """All but the graph that decides a plan."""
        return {**self.fingerprint(), "options": dataclasses.asdict(self.options)}

    def fingerprint(self) -> dict[str, str]:
        return tensorrt_fingerprint(self.library, self.device, self.options.compute_capabilities)


def _prepared(
    bundle: Bundle, cache: PlanCache, flavor: str, options: BuildOptions, progress: Progress
) -> _Build:
    if not 1 <= options.opt_batch <= options.max_batch:
        raise InputError(f"opt_batch {options.opt_batch} is not between 1 and max_batch {options.max_batch}")
    if flavor not in ("auto", *FLAVORS):
        raise InputError(f"flavor is {flavor!r}; use 'auto', 'tensorrt' or 'rtx'")
    library = load_tensorrt(flavor)
    known = compute_capabilities(library)
    unknown = [name for name in options.compute_capabilities if name not in known]
    if unknown:
        raise InputError(
            f"{library.name} builds for no compute capability {unknown[0]}; it knows {', '.join(known)}"
            if library.flavor == "rtx"
            else "compute capabilities are chosen for TensorRT-RTX alone; TensorRT builds for the GPU that is here"
        )
    device = None if library.flavor == "rtx" else cuda_device()
    build = _Build(
        bundle, library, device, options, cache, BundleArrays(bundle), piece_sources(bundle.manifest), [], []
    )
    settings = build.settings()

    def measured(i: int) -> tuple[str, int]:
        graph = build.graph(i)
        return plan_key(graph, settings), len(graph.onnx)

    total = len(build.sources)
    with ThreadPoolExecutor(_THREADS) as threads:  # hashing leaves Python's lock
        for i, (key, size) in enumerate(threads.map(measured, range(total)), start=1):
            build.keys.append(key)
            build.sizes.append(size)
            progress("reading graphs", i, total)
    return build


@contextlib.contextmanager
def _cache(folder: str | Path | None) -> Iterator[PlanCache]:
    if folder == "":
        with tempfile.TemporaryDirectory(prefix="rnp-deploy-") as temporary:
            yield PlanCache(Path(temporary))
    else:
        yield PlanCache(cache_folder() if folder is None else Path(folder).expanduser())


def _write_set(
    build: _Build, path: Path, overwrite: bool, fill_cache: Callable[[list[int]], None], verify: int
) -> EngineSetManifest:
    bundle, cache = build.bundle, build.cache
    plan, engine_files = with_files(tensorrt_plan(bundle.manifest), build.keys)
    _check_space(path, sum(cache.size(key) for key in engine_files))
    with atomic_directory(path, overwrite=overwrite, marker=ENGINES_FILE) as folder:
        bundle_sha256 = copy_manifest(bundle, folder)
        files = _copied(build, engine_files, folder, fill_cache)
        if build.timed_on is not None and cache.timing_file(build.timed_on).exists():
            shutil.copyfile(cache.timing_file(build.timed_on), folder / TIMING_FILE)
            files.append(describe_file(folder / TIMING_FILE, TIMING_FILE))
        bundle.check_unchanged()
        engines = EngineSetManifest(
            format_version=ENGINES_FORMAT.version,
            producer=f"rnp-deploy {__version__}",
            backend="tensorrt",
            bundle_sha256=bundle_sha256,
            fingerprint=build.fingerprint(),
            environment=environment(build.library, build.device),
            build_options={name: str(value) for name, value in dataclasses.asdict(build.options).items()},
            max_batch=build.options.max_batch,
            plan=plan,
            files=tuple(sorted(files, key=lambda file: file.path)),
        )
        save_engines(engines, folder)
        if verify:
            engines = engines.model_copy(update=_compared(build, folder, verify))
            save_engines(engines, folder)
    return engines


def _compared(build: _Build, folder: Path, samples: int) -> Mapping[str, Any]:
    """How the set does beside the bundle; nothing where it cannot be run here, or the bundle on this CPU."""
    tolerance = _TOLERANCES.get(build.bundle.manifest.precision)
    if tolerance is None or misfits(build.fingerprint()):
        return {}
    try:
        require_runtime()
    except MissingRuntimeError:  # a machine with TensorRT alone
        return {}
    built, memory = open_engine_set(folder), CudaMemory()
    open_engine = opener(built, build.library, memory)
    return compare_with_bundle(build.bundle, built, open_engine, samples, memory=memory, tolerance=tolerance)


def _copied(
    build: _Build, engine_files: Mapping[str, str], folder: Path, fill_cache: Callable[[list[int]], None]
) -> list[FileManifest]:
    """Copy plans out of the cache; what turns out to be damaged there is built again, once."""

    def copy(key: str) -> FileManifest | None:
        return build.cache.copy_to(key, folder / engine_files[key], engine_files[key])

    with ThreadPoolExecutor(_THREADS) as threads:  # copying and hashing leave Python's lock
        files = dict(zip(engine_files, threads.map(copy, engine_files), strict=True))
    damaged = [key for key, file in files.items() if file is None]
    fill_cache([build.keys.index(key) for key in damaged])
    files |= {key: copy(key) for key in damaged}
    whole = [file for file in files.values() if file is not None]
    if len(whole) < len(files):
        raise IntegrityError(
            f"{build.cache.folder} does not keep what is written to it; pass another --cache-dir"
        )
    return whole


def _check_space(path: Path, needed: int) -> None:
    free = shutil.disk_usage(path.absolute().parent).free
    if free < needed:
        raise OutputError(
            f"{path} needs {needed / 1e6:.0f} MB and {path.absolute().parent} has {free / 1e6:.0f} MB free; free some "
            "space or choose another place (what is built is kept in the cache)"
        )
