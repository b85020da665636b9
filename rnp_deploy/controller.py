"""The host-side controller: asks the agent, picks the branch, per image."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rnp_deploy.bundle.manifest import BranchManifest, Manifest
from rnp_deploy.bundle.reading import open_bundle
from rnp_deploy.engine import Arrays, Engine, OpenEngine
from rnp_deploy.errors import ControllerClosedError, EngineError, InputError
from rnp_deploy.routing import RoutedTensor, rows_by_options

__all__ = ["Controller", "Result"]


@dataclass(frozen=True)
class Result:
    """What one run gave; the arrays are the caller's.

    Attributes:
        outputs: ``[N, ...]`` float32, in input order.
        options: ``[N, T]`` int64 in 1..k, as decided or given.
        macs: ``[N]`` int64, multiply-accumulates of the backbone branches each sample took.
            The agent's are in the manifest (``agent.steps[].macs``).
    """

    outputs: NDArray[np.float32]
    options: NDArray[np.int64]
    macs: NDArray[np.int64]


class Controller:
    """Runs a bundle; made with :meth:`load`, used as a context manager or closed by hand.

    ``run`` may be called from many threads. Engines are opened when first needed.

    Attributes:
        manifest: Of the bundle.
    """

    def __init__(self, manifest: Manifest, open_engine: OpenEngine) -> None:
        """Make a controller over any engines; :meth:`load` is the usual way.

        Args:
            manifest: Checked.
            open_engine: Called once for each graph path that is needed.
        """
        self.manifest = manifest
        self._open_engine = open_engine
        self._engines: dict[str, Engine] = {}
        self._lock = threading.Condition()
        self._running = 0
        self._closed = False
        self._branches: list[dict[tuple[int, ...], BranchManifest]] = [
            {branch.options: branch for branch in stage.branches} for stage in manifest.stages
        ]
        self._last_use = {
            tensor.name: s for s, stage in enumerate(manifest.stages) for tensor in stage.inputs
        }

    @classmethod
    def load(
        cls,
        path: str | Path,
        backend: str = "auto",
        device: str = "auto",
        threads: int | None = None,
        preload: str = "none",
    ) -> Controller:
        """Open a bundle, after checking every hash in it.

        Args:
            path: A bundle directory.
            backend: ``"onnxruntime"``, or ``"auto"`` for the best there is.
            device: ``"cpu"``, or ``"auto"``.
            threads: Threads that compute; None is one per core. See
                :func:`rnp_deploy.engines.ort.opener` on sharing them in a process.
            preload: ``"none"`` opens an engine when a decision first needs it, ``"all"``
                opens every one now.

        Raises:
            BundleError: The bundle is missing, changed, or of another format.
            MissingRuntimeError: The backend is not installed.
            EngineError: The backend or device is not supported, or a graph cannot be loaded.
            InputError: Another argument is none of the above.
        """
        if backend not in ("auto", "onnxruntime", "tensorrt", "torch"):
            raise InputError(f"backend is {backend!r}; use 'auto' or 'onnxruntime'")
        if backend in ("tensorrt", "torch"):
            raise EngineError(f"backend {backend!r} is not built yet; use 'onnxruntime'")
        if device not in ("auto", "cpu"):
            raise EngineError(f"device {device!r} is not supported by backend 'onnxruntime'; use 'cpu'")
        if preload not in ("none", "all"):
            raise InputError(f"preload is {preload!r}; use 'none' or 'all'")
        from rnp_deploy.engines import ort

        bundle = open_bundle(path)
        controller = cls(bundle.manifest, ort.opener(bundle, threads))
        if preload == "all":
            controller.preload()
        return controller

    def preload(self) -> None:
        """Open every engine now."""
        with self._use():
            for step in self.manifest.agent.steps:
                self._engine(step.file)
            for stage in self.manifest.stages:
                for branch in stage.branches:
                    self._engine(branch.file)

    def run(
        self,
        images: NDArray[np.float32],
        *,
        penalty: ArrayLike | None = None,
        target_macs: float | None = None,
        options: ArrayLike | None = None,
    ) -> Result:
        """Run a batch; each sample is decided for, and computed, as if it were alone.

        Samples that take the same branch are computed together.

        Args:
            images: float32 ``[N, C, H, W]``, finite, N ≥ 1.
            penalty: Price of one more group, one number or ``[N]``; None is the agent's own.
            target_macs: What an image is to cost on average, as a share, 0..1, of the full
                network's MACs: takes the penalty that did on the calibration data. Images
                unlike these cost more or less.
            options: Integers ``[N, T]`` in 1..k: take these, and skip the agent;
                the penalty then has no say.

        Raises:
            InputError: Images, penalty or options that do not fit, or a target beside them,
                without a calibration, or out of its reach.
            ControllerClosedError: After :meth:`close`.
            EngineError: An engine failed; the message names the piece.
        """
        images = _checked_images(images, self.manifest.inputs[0].shape)
        if target_macs is not None:
            if penalty is not None or options is not None:
                raise InputError("target_macs is given beside a penalty or options; pass one of them")
            penalty = self._penalty_for(target_macs)
        chosen = self._checked_options(options, len(images))
        prices = self._checked_penalty(penalty, len(images))
        with self._use():
            return self._run(images, None if options is not None else prices, chosen)

    def close(self) -> None:
        """Refuse new runs, wait for those under way, release the engines. May be called twice."""
        with self._lock:
            self._closed = True
            self._lock.wait_for(lambda: self._running == 0)
            engines, self._engines = list(self._engines.values()), {}
        for engine in engines:
            engine.close()

    def __enter__(self) -> Controller:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(
        self, images: NDArray[np.float32], prices: NDArray[np.float32] | None, options: NDArray[np.int64]
    ) -> Result:
        """Go through the stages; ``prices`` is None where ``options`` are given."""
        batch = len(images)
        every = np.arange(batch)
        tensors = {self.manifest.inputs[0].name: _whole(images)}
        state = np.zeros((batch, self.manifest.agent.state_size), np.float32)
        macs = np.zeros(batch, np.int64)
        for s, stage in enumerate(self.manifest.stages):
            if stage.decision is not None and prices is not None:
                step = self.manifest.agent.steps[stage.decision]
                feeds = {"features": tensors[step.features].take(every), "state": state, "penalty": prices}
                decided = self._compute(step.file, feeds, ("option", "next_state"))
                options[:, stage.decision] = self._in_range(decided["option"], stage.decision)
                state = decided["next_state"]
            made = {tensor.name: RoutedTensor(batch) for tensor in stage.outputs}
            for rows, key in rows_by_options(options[:, list(stage.option_decisions)]):
                branch = self._branches[s][key]
                feeds = {tensor.name: tensors[tensor.name].take(rows) for tensor in stage.inputs}
                results = self._compute(branch.file, feeds, made)
                for name, routed in made.items():
                    routed.put(rows, results[name])
                macs[rows] += branch.macs
            tensors.update(made)
            for tensor in stage.inputs:
                if self._last_use[tensor.name] == s:
                    del tensors[tensor.name]
        return Result(tensors[self.manifest.outputs[0].name].take(every), options, macs)

    def _compute(self, path: str, feeds: Arrays, wanted: Iterable[str]) -> Arrays:
        results = self._engine(path).run(feeds)
        missing = [name for name in wanted if name not in results]
        if missing:
            raise EngineError(f"{path} has no output {missing[0]!r}; the bundle does not fit its manifest")
        return results

    def _in_range(self, option: NDArray[np.int64], decision: int) -> NDArray[np.int64]:
        most = self.manifest.option_counts[decision]
        if option.min() < 1 or option.max() > most:
            raise EngineError(
                f"{self.manifest.agent.steps[decision].file} chose option {option.min()}..{option.max()}; "
                f"decision {decision} has 1..{most}"
            )
        return option

    def _engine(self, path: str) -> Engine:
        engine = self._engines.get(path)
        if engine is None:
            with self._lock:
                engine = self._engines.get(path)
                if engine is None:
                    engine = self._engines[path] = self._open_engine(path)
        return engine

    @contextmanager
    def _use(self) -> Iterator[None]:
        with self._lock:
            if self._closed:
                raise ControllerClosedError("the controller is closed; load it again")
            self._running += 1
        try:
            yield
        finally:
            with self._lock:
                self._running -= 1
                self._lock.notify_all()

    def _checked_options(self, options: ArrayLike | None, batch: int) -> NDArray[np.int64]:
        shape = (batch, len(self.manifest.decisions))
        if options is None:
            return np.zeros(shape, np.int64)
        try:
            given = np.asarray(options)
        except ValueError as err:
            raise InputError(f"options are ragged; pass integers of shape {shape}") from err
        if given.shape != shape or given.dtype.kind not in "iu":
            raise InputError(
                f"options have shape {given.shape} and dtype {given.dtype}; "
                f"pass integers of shape {shape}: one per image and decision"
            )
        counts = self.manifest.option_counts
        if given.min() < 1 or (given > counts).any():
            raise InputError(
                f"options range over {given.min()}..{given.max()}; "
                f"this network takes 1..{self.manifest.groups}"
                + ("" if len(set(counts)) == 1 else f", by decision 1..{counts}")
            )
        return given.astype(np.int64)

    def _penalty_for(self, target_macs: float) -> float:
        if self.manifest.calibration is None:
            raise InputError(
                "target_macs needs a calibration, which this bundle lacks: rnp-train makes one, "
                "and rnp-export keeps it; or pass a penalty"
            )
        return self.manifest.calibration.penalty_for(target_macs)

    def _checked_penalty(self, penalty: ArrayLike | None, batch: int) -> NDArray[np.float32]:
        try:
            given = np.asarray(self.manifest.agent.penalty if penalty is None else penalty)
            if given.dtype.kind not in "fiu":
                raise InputError(f"penalty is {penalty!r}; pass one number, or one per image")
            prices = np.ascontiguousarray(np.broadcast_to(given, (batch,)), np.float32)
        except ValueError as err:
            raise InputError(f"penalty is {penalty!r}; pass one number, or one per image") from err
        if not np.isfinite(prices).all():
            raise InputError("penalty is not finite; pass one number, or one per image")
        return prices


def _whole(images: NDArray[Any]) -> RoutedTensor:
    routed = RoutedTensor(len(images))
    routed.put(np.arange(len(images)), images)
    return routed


def _checked_images(images: NDArray[np.float32], shape: tuple[int, ...]) -> NDArray[np.float32]:
    wanted = f"float32 [N, {', '.join(map(str, shape))}]"
    if not isinstance(images, np.ndarray):
        raise InputError(f"images are a {type(images).__name__}; pass a numpy array, {wanted}")
    if images.dtype != np.float32 or images.ndim != len(shape) + 1 or images.shape[1:] != shape:
        raise InputError(f"images have shape {images.shape} and dtype {images.dtype}; pass {wanted}")
    if not len(images):
        raise InputError(f"images are an empty batch; pass at least one image, {wanted}")
    if not np.isfinite(images).all():
        bad = int(np.flatnonzero(~np.isfinite(images).reshape(len(images), -1).all(axis=1))[0])
        raise InputError(f"image {bad} holds NaN or infinity; check the preprocessing")
    return np.ascontiguousarray(images)
