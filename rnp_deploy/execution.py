"""Going through a plan: bound calls while a batch agrees, regrouped by option once it does not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rnp_deploy.engine import AnyArray
from rnp_deploy.engine_cache import EngineCache
from rnp_deploy.errors import EngineError
from rnp_deploy.plan import PENALTY, Piece, Plan, Step, option_name, state_name
from rnp_deploy.routing import RoutedTensor, rows_by_options
from rnp_deploy.workspace import BoundCall, MemoryLayout, Workspace, Workspaces

__all__ = ["PlanRun", "PlanRunner"]


class PlanRun(NamedTuple):
    """Outputs ``[N, ...]`` float32 and MACs ``[N]`` int64 of one run; the caller's."""

    outputs: AnyArray
    macs: NDArray[np.int64]


class _Batch(NamedTuple):
    """What one run is given; ``options`` ``[N, T]`` are filled in where ``deciding``."""

    images: AnyArray
    prices: AnyArray
    options: NDArray[np.int64]
    deciding: bool
    round_up: bool


class _Place(NamedTuple):
    """A step, as the loop needs it; pieces are found by ``key_of`` the options of all decisions."""

    key_of: Callable[[list[int]], Any]
    pieces: dict[Any, Piece]
    decides: int | None
    agent_only: bool


def _place(step: Step) -> _Place:
    """An option alone is its own key: itemgetter gives it so."""
    decisions = step.option_decisions
    key_of: Callable[[list[int]], Any] = itemgetter(*decisions) if decisions else _no_key
    pieces = {p.options[0] if len(decisions) == 1 else p.options: p for p in step.pieces}
    return _Place(key_of, pieces, step.decides, step.agent_only)


def _no_key(_: list[int]) -> tuple[()]:
    return ()


class PlanRunner:
    """Runs a plan. Safe in many threads.

    Args:
        plan: Checked.
        ends: Names of the images and of the outputs.
        option_counts: Options of each decision.
        engines: Of the pieces' files.
    """

    def __init__(
        self, plan: Plan, ends: tuple[str, str], option_counts: Sequence[int], engines: EngineCache
    ) -> None:
        self._input, self._output = ends
        self._option_counts = option_counts
        self._engines = engines
        self._steps = plan.steps
        self._evicts = engines.budget_bytes is not None
        self._places = [_place(step) for step in plan.steps]
        self._last_uses = plan.last_uses() | {self._output: len(plan.steps)}
        self.workspaces = Workspaces(MemoryLayout(plan, len(option_counts), [self._output]))

    def run(
        self,
        images: AnyArray,
        prices: AnyArray,
        options: NDArray[np.int64],
        *,
        deciding: bool,
        round_up: bool = False,
    ) -> PlanRun:
        """Run a batch.

        Args:
            images: float32 ``[N, C, H, W]``.
            prices: float32 ``[N]``; without a say where ``deciding`` is False.
            options: ``[N, T]``, given, or written here where ``deciding``.
            deciding: Whether the agent chooses.
            round_up: Whether every sample takes the largest option chosen in the batch.
        """
        batch = _Batch(images, prices, options, deciding, round_up)
        with self.workspaces.lend(len(images)) as workspace:
            return self._run_together(batch, workspace)

    def _run_together(self, batch: _Batch, workspace: Workspace) -> PlanRun:
        """As long as all samples take the same pieces; hands over where they part.

        Between two convolutions nothing of this loop is in the processor's caches: what can be
        looked up beforehand is.
        """
        deciding, single = batch.deciding, len(batch.images) == 1
        chosen: list[int] = batch.options[0].tolist()
        stop = len(self._places) if deciding or single else self._first_apart(batch.options)
        for name, value in ((self._input, batch.images), (PENALTY, batch.prices), (state_name(0), 0.0)):
            np.copyto(workspace.array(name, chosen), value)
        macs, calls, columns, counts = 0, workspace.calls, workspace.columns, self._option_counts
        for i, (key_of, pieces, decides, agent_only) in enumerate(self._places[:stop]):
            if agent_only and not deciding:
                continue
            key = key_of(chosen)
            bound = calls[i].get(key)
            if bound is None or self._evicts:
                bound = self._bound(i, key, workspace, chosen)
            bound.run()
            macs += bound.macs
            if decides is not None and deciding:
                agreed = columns[decides].item() if single else None
                if agreed is None or not 1 <= agreed <= counts[decides]:
                    agreed = self._decide(batch, decides, pieces[key], columns[decides])
                if agreed is None:
                    stop = i + 1
                    break
                chosen[decides] = agreed
        if single:
            batch.options[0] = chosen
        if stop < len(self._places):
            return self._run_apart(stop, batch, workspace, chosen, macs)
        outputs = workspace.array(self._output, chosen).copy()
        return PlanRun(outputs, np.full(len(batch.images), macs, np.int64))

    def _bound(self, i: int, key: Any, workspace: Workspace, chosen: list[int]) -> BoundCall:
        """The call of a piece; asking for its engine keeps it from being the first to be let go."""
        step, piece = self._steps[i], self._places[i].pieces[key]
        engine = self._engines.get(piece.file)
        bound = workspace.calls[i].get(key)
        if bound is None:
            bound = workspace.bind(engine, piece.macs, (step.inputs, step.outputs), chosen)
            workspace.calls[i][key] = bound
            if not self._engines.holds(piece.file, engine):
                # Let go meanwhile for another thread: this run still uses it, no later one does.
                workspace.forget(engine)
        return bound

    def _first_apart(self, options: NDArray[np.int64]) -> int:
        """The first step at which samples of given options take different pieces."""
        parted = set(np.flatnonzero((options != options[0]).any(axis=0)).tolist())
        apart = (i for i, step in enumerate(self._steps) if not parted.isdisjoint(step.option_decisions))
        return next(apart, len(self._steps))

    def _decide(self, batch: _Batch, t: int, piece: Piece, column: AnyArray) -> int | None:
        """Take down what the agent chose; the option all samples take, or None where they part."""
        low, high = self._chosen_range(t, piece, column)
        batch.options[:, t] = high if batch.round_up else column
        return high if low == high or batch.round_up else None

    def _chosen_range(self, t: int, piece: Piece, column: AnyArray) -> tuple[int, int]:
        low, high = int(column.min()), int(column.max())
        if low < 1 or high > self._option_counts[t]:
            raise EngineError(
                f"{piece.file} chose option {low}..{high}; decision {t} has 1..{self._option_counts[t]}"
            )
        return low, high

    def _run_apart(
        self, first: int, batch: _Batch, workspace: Workspace, chosen: list[int], macs_so_far: int
    ) -> PlanRun:
        """From step ``first`` on, those of the batch that take the same piece run together."""
        every = np.arange(len(batch.images))
        macs = np.full(len(every), macs_so_far, np.int64)
        tensors: dict[str, RoutedTensor] = {}
        for name in self._made_before(first, batch.deciding):
            tensors[name] = RoutedTensor(len(every))
            array = workspace.array(name, chosen)
            tensors[name].put(every, array.copy() if name == self._output else array)
        for i in range(first, len(self._steps)):
            step, pieces = self._steps[i], self._places[i].pieces
            if step.agent_only and not batch.deciding:
                continue
            made = {name: RoutedTensor(len(every)) for name in step.outputs.values()}
            for rows, key in rows_by_options(batch.options[:, list(step.option_decisions)]):
                piece = pieces[key if len(key) != 1 else key[0]]
                feeds = {inner: tensors[name].take(rows) for inner, name in step.inputs.items()}
                results = self._engines.get(piece.file).run(feeds)
                for inner, name in step.outputs.items():
                    if inner not in results:
                        raise EngineError(
                            f"{piece.file} has no output {inner!r}; it does not fit its manifest"
                        )
                    made[name].put(rows, results[inner])
                macs[rows] += piece.macs
                if step.decides is not None and batch.deciding:
                    column = made[option_name(step.decides)].take(rows)
                    self._chosen_range(step.decides, piece, column)
                    batch.options[rows, step.decides] = column
            tensors.update(made)
            for name in step.inputs.values():
                if self._last_uses[name] == i:
                    tensors.pop(name, None)
        return PlanRun(tensors[self._output].take(every), macs)

    def _made_before(self, first: int, deciding: bool) -> Iterator[str]:
        """Tensors there are before a step and that it or a later one reads."""
        ready = {self._input, PENALTY, state_name(0)}
        run = [step for step in self._steps[:first] if deciding or not step.agent_only]
        ready.update(name for step in run for name in step.outputs.values())
        for name in sorted(ready):
            if self._last_uses.get(name, -1) >= first:
                yield name
