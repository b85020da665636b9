"""The host-side controller: asks the agent, picks the branch, per image."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rnp_deploy.array_memory import HOST, ArrayMemory
from rnp_deploy.bundle.manifest import Manifest
from rnp_deploy.engine import OpenEngine
from rnp_deploy.engine_cache import EngineCache
from rnp_deploy.errors import ControllerClosedError, InputError
from rnp_deploy.execution import PlanRun, PlanRunner
from rnp_deploy.latency import LatencyCurve, curve_for
from rnp_deploy.memory import MemoryReport, resident_bytes
from rnp_deploy.plan import Plan, plan_of_bundle
from rnp_deploy.preloading import common_files, files_by_use
from rnp_deploy.run_inputs import checked_images, checked_options, checked_penalty
from rnp_deploy.workspace import MemoryLayout, Workspaces

if TYPE_CHECKING:
    from rnp_deploy.engines.backends import Opened

__all__ = ["Controller", "Result"]

_POLICIES = ("regroup", "serial", "round-up")


@dataclass(frozen=True)
class Result:
    """What one run gave; the arrays are the caller's.

    Attributes:
        outputs: ``[N, ...]`` float32, in input order.
        options: ``[N, T]`` int64 in 1..k, as taken: decided, given, or rounded up.
        macs: ``[N]`` int64, multiply-accumulates of the backbone branches each sample took.
            The agent's are in the manifest (``agent.steps[].macs``).
        approximate: Whether the policy may have let samples take more than they were decided
            to (``"round-up"``, more than one sample): then outputs depend on the batch.
    """

    outputs: NDArray[np.float32]
    options: NDArray[np.int64]
    macs: NDArray[np.int64]
    approximate: bool = False


class Controller:
    """Runs a bundle or an engine set; made with :meth:`load`, used as a context manager or closed by hand.

    ``run`` may be called from many threads. Engines are opened when first needed.

    Attributes:
        manifest: Of the bundle.
        plan: What is run, step by step.
        latency_curves: Of an engine set, as ``rnp-bench --calibrate`` measured them here.
        backend, device: What computes, and where, such as ``"onnxruntime"`` and ``"cpu"``;
            ``"custom"`` for engines of the caller's.
    """

    backend = device = "custom"

    def __init__(
        self,
        manifest: Manifest,
        open_engine: OpenEngine,
        *,
        plan: Plan | None = None,
        memory_budget_bytes: int | None = None,
        latency_curves: Sequence[LatencyCurve] = (),
        memory: ArrayMemory = HOST,
        max_batch: int | None = None,
        runner: Callable[..., PlanRunner] = PlanRunner,
    ) -> None:
        """Make a controller over any engines; :meth:`load` is the usual way.

        Args:
            manifest: Checked.
            open_engine: Called once for each graph path that is needed.
            plan: Of an engine set; None runs the bundle's own graphs.
            memory_budget_bytes: As for :meth:`load`.
            latency_curves: As measured on this machine with these threads.
            memory: Where the engines' arrays lie.
            max_batch: What the engines take at most; larger batches are run in parts. None: any.
            runner: Makes what goes through the plan, of the arguments of :class:`PlanRunner`.
        """
        self.manifest = manifest
        self.plan = plan or plan_of_bundle(manifest)
        self.latency_curves = tuple(latency_curves)
        self._uses = files_by_use(self.plan, manifest)
        self._budget_bytes = _checked_budget(memory_budget_bytes)
        ends = (manifest.inputs[0].name, manifest.outputs[0].name)
        workspaces = Workspaces(MemoryLayout(self.plan, len(manifest.decisions), ends[1:]), memory)
        self._memory = memory
        self._max_batch = max_batch
        self._engines = EngineCache(
            open_engine,
            {piece.file: piece.weight_bytes for step in self.plan.steps for piece in step.pieces},
            self._budget_bytes,
            workspaces.forget,
        )
        self._runner = runner(self.plan, ends, manifest.option_counts, self._engines, workspaces)
        self._lock = threading.Condition()
        self._running = 0
        self._closed = False

    @classmethod
    def load(
        cls,
        path: str | Path,
        backend: str = "auto",
        device: str = "auto",
        threads: int | None = None,
        preload: str = "none",
        *,
        memory_budget_bytes: int | None = None,
        cache_dir: str | Path | None = None,
    ) -> Controller:
        """Open a bundle or an engine set, after checking its hashes.

        Args:
            path: The directory.
            backend: Of a bundle ``"onnxruntime"`` or ``"torch"``; of an engine set the one it was built
                for. ``"auto"``: that, or ONNX Runtime, or torch for a bundle in bf16.
            device: ``"cpu"``, ``"cuda"``, or ``"auto"``: the GPU where the backend has one that works. A
                GPU runs one batch at a time, whatever number of threads ask.
            threads: Threads that compute on the CPU; None is one per core. See
                :func:`rnp_deploy.engines.ort.opener` on sharing them in a process.
            preload: ``"none"`` opens an engine when a decision first needs it, ``"common"``
                opens those now that at least 1 % of the calibration images took, ``"all"``
                every one, the most used first; both stop where the budget ends.
            memory_budget_bytes: Bytes of weights the open engines may hold together; the
                least recently used are let go. None: no limit.
            cache_dir: A bundle's engine set is built here on first use, and taken from here
                later, also by other processes. None: the environment variable
                ``RNP_CACHE_DIR``, or no cache; ``""``: no cache.

        Raises:
            BundleError: The bundle or engine set is missing, changed, or of another format.
            EngineSetMismatchError: The engine set was built for another machine or runtime.
            MissingRuntimeError: The backend is not installed.
            EngineError: The backend or device is not supported, or a graph cannot be loaded.
            InputError: Another argument is none of the above.
        """
        if preload not in ("none", "common", "all"):
            raise InputError(f"preload is {preload!r}; use 'none', 'common' or 'all'")
        from rnp_deploy.engines.backends import open_backend

        opened = open_backend(path, backend, device, threads, cache_dir)
        controller = cls.over(opened, threads=threads, memory_budget_bytes=memory_budget_bytes)
        try:
            if preload != "none":
                controller.preload(common_only=preload == "common")
        except BaseException:
            controller.close()
            raise
        return controller

    @classmethod
    def over(
        cls, opened: Opened, *, threads: int | None = None, memory_budget_bytes: int | None = None
    ) -> Controller:
        """Make a controller over an open backend.

        Args:
            opened: By :func:`rnp_deploy.engines.backends.open_backend`.
            threads: That it was opened with: those latency curves are kept that were measured with them.
            memory_budget_bytes: As for :meth:`load`.
        """
        controller = cls(
            opened.source.manifest,
            opened.open_engine,
            plan=opened.source.plan,
            memory_budget_bytes=memory_budget_bytes,
            latency_curves=[curve for curve in opened.source.curves if curve.threads == threads],
            memory=opened.memory,
            max_batch=opened.max_batch,
        )
        controller.backend, controller.device = opened.backend, opened.device
        return controller

    def preload(self, *, common_only: bool = False) -> None:
        """Open engines now, the most used first, as far as the budget goes.

        Args:
            common_only: Only those that at least 1 % of the calibration images took.

        Raises:
            InputError: Only the common ones, and there is no calibration.
            EngineError: A graph cannot be loaded.
        """
        files = common_files(self.plan, self.manifest) if common_only else list(self._uses)
        with self._use(), self._memory.turn():
            self._engines.open_within_budget(files)

    def run(
        self,
        images: NDArray[np.float32],
        *,
        penalty: ArrayLike | None = None,
        target_macs: float | None = None,
        target_latency_ms: float | None = None,
        options: ArrayLike | None = None,
        policy: str = "regroup",
    ) -> Result:
        """Run a batch.

        Args:
            images: float32 ``[N, C, H, W]``, finite, N ≥ 1.
            penalty: Price of one more group, one number or ``[N]``; None is the agent's own.
            target_macs: What an image is to cost on average, as a share, 0..1, of the full
                network's MACs: takes the penalty that did on the calibration data. Images
                unlike these cost more or less.
            target_latency_ms: Milliseconds in which 95 of 100 batches of this size are to be
                done, with the machine to themselves: takes the penalty that did when
                ``rnp-bench --calibrate`` measured this engine set here.
            options: Integers ``[N, T]`` in 1..k: take these; the agent and the penalty then
                have no say.
            policy: For samples that decide differently. ``"regroup"``: those that take the
                same branch are computed together, or where tensors are large in parts that
                fit the caches, each as if it were alone. ``"serial"``: one
                sample after another; the same results, bit for bit those of single runs.
                ``"round-up"``: at every decision all take the largest option any of them
                chose; approximate, and it computes at least what was decided (each part for itself,
                where engines take smaller batches). Given options
                are rounded up likewise.

        Raises:
            InputError: Images, penalty, options or policy that do not fit, or a target beside
                them, without a calibration or latency curve, or out of its reach.
            ControllerClosedError: After :meth:`close`.
            EngineError: An engine failed; the message names the piece.
        """
        images = checked_images(images, self.manifest.inputs[0].shape)
        if policy not in _POLICIES:
            raise InputError(f"policy is {policy!r}; use one of {', '.join(map(repr, _POLICIES))}")
        penalty = self._wanted_penalty(len(images), penalty, target_macs, target_latency_ms, options)
        chosen = checked_options(options, len(images), self.manifest)
        prices = checked_penalty(penalty, len(images), self.manifest)
        deciding, round_up = options is None, policy == "round-up"
        if round_up and not deciding:
            chosen[:] = chosen.max(axis=0)
        with self._use():
            most = 1 if policy == "serial" else self._max_batch or len(images)
            parts = [slice(i, i + most) for i in range(0, len(images), most)]
            runs = [
                self._runner.run(images[p], prices[p], chosen[p], deciding=deciding, round_up=round_up)
                for p in parts
            ]
            run = runs[0] if len(runs) == 1 else PlanRun(*map(np.concatenate, zip(*runs, strict=True)))
        return Result(run.outputs, chosen, run.macs, approximate=round_up and len(images) > 1)

    def memory(self) -> MemoryReport:
        """What this controller holds now."""
        loaded = self._engines.loaded()
        return MemoryReport(
            engines=len(loaded),
            engines_in_all=len(self._uses),
            weight_bytes=sum(loaded.values()),
            budget_bytes=self._budget_bytes,
            evictions=self._engines.evictions,
            workspace_bytes=self._runner.workspaces.nbytes,
            resident_bytes=resident_bytes(),
        )

    def close(self) -> None:
        """Refuse new runs, wait for those under way, release the engines. May be called twice."""
        with self._lock:
            self._closed = True
            self._lock.wait_for(lambda: self._running == 0)
        with self._memory.turn():
            self._engines.close()
            self._runner.workspaces.clear()

    def __enter__(self) -> Controller:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

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

    def _wanted_penalty(
        self,
        batch: int,
        penalty: ArrayLike | None,
        target_macs: float | None,
        target_latency_ms: float | None,
        options: ArrayLike | None,
    ) -> ArrayLike | None:
        """The penalty, or the one that a target takes; a target has to stand alone."""
        targets = {"target_macs": target_macs, "target_latency_ms": target_latency_ms}
        named = [name for name, target in targets.items() if target is not None]
        if named and (len(named) > 1 or penalty is not None or options is not None):
            raise InputError(f"{named[0]} is given beside a penalty, options or a target; pass one of them")
        if target_latency_ms is not None:
            return curve_for(self.latency_curves, batch).penalty_for(target_latency_ms)
        if target_macs is None:
            return penalty
        if self.manifest.calibration is None:
            raise InputError(
                "target_macs needs a calibration, which this bundle lacks: rnp-train makes one, "
                "and rnp-export keeps it; or pass a penalty"
            )
        return self.manifest.calibration.penalty_for(target_macs)


def _checked_budget(budget_bytes: int | None) -> int | None:
    if budget_bytes is not None and (
        isinstance(budget_bytes, bool) or not isinstance(budget_bytes, int) or budget_bytes < 1
    ):
        raise InputError(f"memory_budget_bytes is {budget_bytes!r}; pass a number of bytes, or None")
    return budget_bytes
