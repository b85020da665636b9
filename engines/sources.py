"""What a controller can be loaded from: a bundle, an engine set, or one built into a cache."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rnp_deploy.bundle.engine_set import (
    LATENCY_FILE,
    EngineSet,
    is_engine_set,
    open_engine_set,
)
from rnp_deploy.bundle.manifest import Manifest
from rnp_deploy.bundle.reading import MANIFEST_FILE, Bundle, open_bundle
from rnp_deploy.canonical_json import canonical_sha256
from rnp_deploy.engines.fingerprint import check_fits, fingerprint
from rnp_deploy.errors import BundleError, EngineSetMismatchError, RnpError
from rnp_deploy.hashing import file_sha256
from rnp_deploy.latency import LatencyCurve, read_latency_curve
from rnp_deploy.plan import Plan

__all__ = ["CACHE_VARIABLE", "Source", "open_source"]

logger = logging.getLogger(__name__)

CACHE_VARIABLE = "RNP_CACHE_DIR"
#: Goes up when engine sets are built in another way, so that those in caches are not taken.
_CACHE_GENERATION = 1


@dataclass(frozen=True)
class Source:
    """Verified graphs by path and the manifest; of an engine set the plan, and latencies if measured."""

    graphs: Bundle | EngineSet
    manifest: Manifest
    plan: Plan | None
    curves: tuple[LatencyCurve, ...] = ()


def open_source(path: str | Path, cache_dir: str | Path | None = None) -> Source:
    """Open a bundle or engine set.

    Args:
        path: Of either.
        cache_dir: As for :meth:`rnp_deploy.Controller.load`.

    Raises:
        BundleError: As :func:`open_bundle` and :func:`open_engine_set`.
        EngineSetMismatchError: An engine set that was built for something else, or needs a GPU.
        MissingRuntimeError: onnxruntime, or the TensorRT of the engine set, is not installed.
    """
    path = Path(path)
    if is_engine_set(path):
        engine_set = open_engine_set(path)
        check_fits(path, engine_set.engines)
        return _of(engine_set)
    bundle = open_bundle(path)
    folder = os.environ.get(CACHE_VARIABLE, "") if cache_dir is None else str(cache_dir)
    cached = _cached(bundle, Path(folder).expanduser()) if folder else None
    if cached is not None:
        return _of(cached)
    return Source(bundle, bundle.manifest, None)


def _of(engine_set: EngineSet) -> Source:
    file = engine_set.path / LATENCY_FILE
    curves: tuple[LatencyCurve, ...] = ()
    if file.exists() or file.is_symlink():
        try:
            curves = read_latency_curve(file)
        except BundleError as err:  # it is an extra: targets in milliseconds will ask for it, nothing else
            logger.warning("the latency curve is left out: %s", err)
    return Source(engine_set, engine_set.manifest, engine_set.engines.plan, curves)


def _cached(bundle: Bundle, folder: Path) -> EngineSet | None:
    """The bundle's engine set of this machine, built now if need be; None where that cannot be done."""
    if bundle.manifest.precision != "fp32":  # engine sets of ONNX Runtime are in fp32
        return None
    here = canonical_sha256({**fingerprint(), "generation": _CACHE_GENERATION}, without="")
    try:
        manifest_hash = file_sha256(bundle.path / MANIFEST_FILE)
        target = folder / f"{manifest_hash[:24]}-{here[:16]}"
        whole = _opened(target, manifest_hash)
        if whole is not None:  # also where nothing may be written
            return whole
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder / f"{target.name}.lock"):
            found = _opened(target, manifest_hash)
            if found is None:
                from rnp_deploy.engines.ort_build import build_engine_set

                logger.info("building the engine set of %s into %s", bundle.path, target)
                shutil.rmtree(
                    target, ignore_errors=True
                )  # of ours: what is in it is damaged or cannot be told
                build_engine_set(bundle, target)
                found = open_engine_set(target)
    except (RnpError, OSError, ImportError, ValueError) as err:
        logger.warning("%s is run without an engine set, since none can be cached: %s", bundle.path, err)
        return None
    return found


def _opened(target: Path, manifest_hash: str) -> EngineSet | None:
    """The bundle's engine set, whole and fitting, or None: then it is built anew."""
    if not is_engine_set(target):
        return None
    try:
        engine_set = open_engine_set(target)
        check_fits(target, engine_set.engines)
        engine_set.check_engines()
    except (BundleError, EngineSetMismatchError) as err:
        logger.warning("a cached engine set is built again: %s", err)
        return None
    return engine_set if engine_set.engines.bundle_sha256 == manifest_hash else None


@contextlib.contextmanager
def _locked(file: Path) -> Iterator[None]:
    """One process at a time; where the system has no such locks, the last to build wins."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    with file.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield
