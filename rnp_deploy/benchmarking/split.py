"""Where the time of a controller's run goes: the same run, with its engines and its loop marked in time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rnp_deploy.array_memory import HOST, ArrayMemory
from rnp_deploy.benchmarking.clock import WALL, Clock
from rnp_deploy.benchmarking.report import Split
from rnp_deploy.bundle.manifest import Manifest
from rnp_deploy.controller import Controller, Result
from rnp_deploy.engine import Arrays, Engine, OpenEngine
from rnp_deploy.engines.backends import open_backend
from rnp_deploy.errors import InputError
from rnp_deploy.execution import PlanRun, PlanRunner
from rnp_deploy.plan import Plan
from rnp_deploy.routing import RoutedTensor

__all__ = ["MeasuredController", "RunTimes", "open_measured", "split_report"]

_PAUSED_PERCENT = 2

Account: TypeAlias = Literal["agent", "pieces", "read_back", "regrouping", "dispatch"]


@dataclass(frozen=True)
class RunTimes:
    """One run, every moment of it in one account; see :class:`rnp_deploy.benchmarking.report.Split`.

    Attributes:
        agent_ms: In steps that hold the agent alone; what is in other pieces is in ``pieces_ms``.
        calls: File of the piece, and ms, of each call in order.
    """

    agent_ms: float
    pieces_ms: float
    read_back_ms: float
    regrouping_ms: float
    dispatch_ms: float
    calls: tuple[tuple[str, float], ...]

    @property
    def sum_ms(self) -> float:
        """Of the five accounts."""
        return self.agent_ms + self.pieces_ms + self.read_back_ms + self.regrouping_ms + self.dispatch_ms


class _Call(NamedTuple):
    """What the calls of an engine are."""

    account: Account
    file: str
    decides: bool


class _Between(NamedTuple):
    """What the time between calls is: after one that decides nothing, and after one that does."""

    plain: Account
    decided: Account


_DISPATCH = _Between("dispatch", "dispatch")
_DECIDING = _Between("dispatch", "read_back")
_REGROUPING = _Between("regrouping", "regrouping")


class _Ledger:
    """Marks of one run in order; the time from one to the next is the account's that the first says.

    On a host a mark is a moment of the clock, on a device one in its stream. A mark says that a call
    begins, or whether the call that ends decided, or what is between calls from now on.
    """

    def __init__(self, memory: Any, clock: Clock) -> None:
        self._now_ns = clock.now_ns
        self._on_host = memory.on_host
        self.moment: Callable[[], Any] = clock.now_ns if memory.on_host else memory.mark
        self._elapsed_ms: Callable[[Any, Any], float] = _ms_between if memory.on_host else memory.elapsed_ms
        self.said: list[_Call | bool | _Between] = []
        self.moments: list[Any] = []
        self._together = self._between = _DISPATCH
        self._began_ns = 0

    def begin(self, *, deciding: bool) -> None:
        """Begin with dispatch."""
        self.said.clear()  # of a run that failed
        self.moments.clear()
        self._together = self._between = _DECIDING if deciding else _DISPATCH
        self._began_ns = self._now_ns()
        self.mark(self._between)

    def mark(self, says: _Call | bool | _Between) -> None:
        """Mark this moment. All else is done in :meth:`end`: what is done here slows the run."""
        self.said.append(says)
        self.moments.append(self.moment())

    def set_together(self, together: bool) -> bool:
        """Mark whether samples go together from now on, or are regrouped; whether they did before."""
        before, self._between = self._between, self._together if together else _REGROUPING
        if self._between is not before:
            self.mark(self._between)
        return before is not _REGROUPING

    def end(self) -> RunTimes:
        """The sums; what of the run a device's marks do not span is dispatch."""
        moments = [*self.moments, self.moment()]
        wall_ms = _ms_between(self._began_ns, self._now_ns())
        totals = dict.fromkeys(get_args(Account), 0.0)
        calls = []
        between = _DISPATCH
        for says, begun, ended in zip(self.said, moments, moments[1:], strict=False):
            ms = self._elapsed_ms(begun, ended)
            if isinstance(says, _Call):
                totals[says.account] += ms
                calls.append((says.file, ms))
                continue
            between = says if isinstance(says, _Between) else between
            totals[between.decided if says is True else between.plain] += ms
        if not self._on_host:
            totals["dispatch"] += max(0.0, wall_ms - sum(totals.values()))
        self.said.clear()
        self.moments.clear()
        return RunTimes(**{f"{account}_ms": ms for account, ms in totals.items()}, calls=tuple(calls))


def _ms_between(begun_ns: int, ended_ns: int) -> float:
    return (ended_ns - begun_ns) / 1e6


class _MarkedRunner(PlanRunner):
    """Goes through the plan as ever, and marks when it regroups and when it does not."""

    def __init__(self, ledger: _Ledger, *plan_and_engines: Any) -> None:
        super().__init__(*plan_and_engines)
        self._ledger = ledger

    def _run_together(self, *what: Any) -> tuple[int, int]:
        before = self._ledger.set_together(True)
        reached, macs = super()._run_together(*what)
        self._ledger.set_together(before and reached == len(self._steps))
        return reached, macs

    def _run_divided(self, *what: Any) -> dict[str, RoutedTensor]:
        self._ledger.set_together(False)
        return super()._run_divided(*what)

    def _run_regrouped(self, *what: Any) -> PlanRun:
        self._ledger.set_together(False)
        run = super()._run_regrouped(*what)
        self._ledger.set_together(True)
        return run


class _MarkedEngine:
    """An engine whose calls are marked; see :class:`rnp_deploy.engine.Engine`."""

    def __init__(self, engine: Engine, call: _Call, ledger: _Ledger, memory: Any) -> None:
        self._engine, self._call, self._ledger, self._memory = engine, call, ledger, memory

    def run(self, feeds: Arrays) -> Arrays:
        self._ledger.mark(self._call)
        results = self._engine.run(feeds)
        self._ledger.mark(self._call.decides)
        return results

    def bind(self, inputs: Arrays, outputs: Arrays) -> Callable[[], None]:
        """On a device what the host wants is copied after the mark: to wait for it is no work of the piece."""
        computed, copy = (outputs, None) if self._memory.on_host else self._memory.beside_host(outputs)
        compute, memory = self._engine.bind(inputs, computed), self._memory
        say, take_down, moment = self._ledger.said.append, self._ledger.moments.append, self._ledger.moment
        begins, decides = self._call, self._call.decides

        def call() -> None:
            say(begins)
            take_down(moment())
            compute()
            take_down(moment())
            say(decides)
            if copy is not None:
                copy()
                memory.synchronise()

        return call

    def close(self) -> None:
        self._engine.close()


class MeasuredController:
    """A controller that keeps account of each run. Its marks cost a run about 1 µs a piece; one thread at a time.

    Attributes:
        manifest, plan: Of what is run.

    Args:
        manifest, open_engine, plan, memory, max_batch: As for :class:`rnp_deploy.controller.Controller`.
        clock: That runs are timed by.
    """

    def __init__(
        self,
        manifest: Manifest,
        open_engine: OpenEngine,
        *,
        plan: Plan | None = None,
        memory: ArrayMemory = HOST,
        max_batch: int | None = None,
        clock: Clock = WALL,
    ) -> None:
        self._memory, self._open_engine = memory, open_engine
        self._ledger = _Ledger(memory, clock)
        self._runs: list[RunTimes] = []
        self._controller = Controller(
            manifest, self._open_marked, plan=plan, memory=memory, max_batch=max_batch,
            runner=partial(_MarkedRunner, self._ledger),
        )  # fmt: skip
        self.manifest, self.plan = manifest, self._controller.plan
        self._called: dict[str, _Call] = {
            piece.file: _Call("agent" if step.agent_only else "pieces", piece.file, step.decides is not None)
            for step in self.plan.steps
            for piece in step.pieces
        }

    def run(
        self,
        images: NDArray[np.float32],
        *,
        penalty: ArrayLike | None = None,
        options: ArrayLike | None = None,
        policy: str = "regroup",
    ) -> Result:
        """As :meth:`rnp_deploy.controller.Controller.run`; what was measured is kept for :meth:`take`."""
        with self._memory.turn():
            self._ledger.begin(deciding=options is None)
            result = self._controller.run(images, penalty=penalty, options=options, policy=policy)
            self._runs.append(self._ledger.end())
        return result

    def take(self) -> list[RunTimes]:
        """The runs since the last call, in order; they are forgotten here."""
        taken, self._runs = self._runs, []
        return taken

    def close(self) -> None:
        """Release the engines."""
        self._controller.close()

    def __enter__(self) -> MeasuredController:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open_marked(self, file: str) -> Engine:
        return _MarkedEngine(self._open_engine(file), self._called[file], self._ledger, self._memory)


@contextmanager
def open_measured(
    path: str | Path, backend: str = "auto", device: str = "auto", threads: int | None = None
) -> Iterator[MeasuredController]:
    """Open a bundle or engine set a second time, to be measured from within; closed with the block.

    Arguments and errors are those of :meth:`rnp_deploy.controller.Controller.load`; no cache of engine sets is used.
    """
    opened = open_backend(path, backend, device, threads, "")
    with MeasuredController(
        opened.source.manifest,
        opened.open_engine,
        plan=opened.source.plan,
        memory=opened.memory,
        max_batch=opened.max_batch,
    ) as measured:
        yield measured


def split_report(
    runs: Sequence[RunTimes],
    whole_ms: NDArray[np.float64],
    batch_of: NDArray[np.int64],
    agent_call_ms: Mapping[str, float] | None = None,
) -> Split:
    """The means of measured runs, and of plain ones: in 2 % of each, those furthest above their batch's median, the machine paused.

    Where pieces hold the agent's nodes and ``agent_call_ms`` is None, ``agent_ms`` is 0 and its time is the pieces'.

    Args:
        runs: In which the agent decided.
        whole_ms: Runs of the plain controller, in turns with these.
        batch_of: The index of the batch of images of each run, of both alike.
        agent_call_ms: File → the agent's ms within a call of the piece, of
            :func:`rnp_deploy.benchmarking.agent_nodes.agent_call_ms`.

    Raises:
        InputError: No runs.
    """
    if not runs:
        raise InputError("no run was measured; run the measured controller before its split is asked for")
    sums_ms = np.array([run.sum_ms for run in runs])
    runs = [runs[i] for i in _without_pauses(sums_ms, batch_of)]
    within = agent_call_ms or {}
    inside = np.mean([sum(min(ms, within.get(file, 0.0)) for file, ms in run.calls) for run in runs])
    agent, pieces, read_back, regrouping, dispatch = (
        float(np.mean([getattr(run, f"{account}_ms") for run in runs])) for account in get_args(Account)
    )
    agent, pieces = agent + float(inside), max(0.0, pieces - float(inside))
    whole = agent + pieces + read_back + regrouping + dispatch
    source: Any = "not told apart"
    if agent_call_ms is not None:
        source = "nodes within pieces, by the runtime's profiler"
    elif agent:
        source = "steps of its own"
    return Split(
        whole_ms=float(whole_ms[_without_pauses(whole_ms, batch_of)].mean()),
        sum_ms=whole,
        agent_ms=agent,
        pieces_ms=pieces,
        read_back_ms=read_back,
        regrouping_ms=regrouping,
        dispatch_ms=dispatch,
        agent_source=source,
        host_share=(read_back + dispatch) / whole if whole else 0.0,
        runs=len(runs),
    )


def _without_pauses(times_ms: NDArray[np.float64], batch_of: NDArray[np.int64]) -> NDArray[np.intp]:
    typical_ms = {batch: np.median(times_ms[batch_of == batch]) for batch in np.unique(batch_of)}
    order = np.argsort([ms - typical_ms[batch] for ms, batch in zip(times_ms, batch_of, strict=True)])
    return order[: len(order) - len(order) * _PAUSED_PERCENT // 100]
