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
from rnp_deploy.routing import RoutedTensor, Rows, rows_by_options
from rnp_deploy.workspace import BoundCall, Workspace, Workspaces

__all__ = ["PlanRun", "PlanRunner"]


#: A tensor of one sample above this is large: to move it from part to part costs more than calls of more
#: samples save. A batch of 32 at 224x224, options mixed, on two cores, ÷ the same samples in static graphs:
#: VGG-16 1.34 without a limit, 1.02 at 1 MiB, 1.01 at 256 KiB; ResNet-50 1.24, 1.17 and 1.13.
_LARGE_BYTES = 2**18
#: A part of a batch may have its largest tensor of this size, and at least one sample: larger ones leave the
#: caches before they are pooled. VGG-16 in parts of 8 samples took 1.36 times the static graphs, of 1 sample 1.04;
#: ResNet-50 in parts of 8 1.08, of 1 sample 1.26.
_PART_BYTES = 2**24


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


def _large_until(plan: Plan) -> int:
    """The step from which on all tensors of a sample are small."""
    sizes = {tensor.name: tensor.largest_bytes for tensor in plan.tensors}
    large = [
        i + 1
        for i, step in enumerate(plan.steps)
        if any(sizes[name] > _LARGE_BYTES for name in (*step.inputs.values(), *step.outputs.values()))
    ]
    return max(large, default=0)


class PlanRunner:
    """Runs a plan. Safe in many threads.

    Args:
        plan: Checked.
        ends: Names of the images and of the outputs.
        option_counts: Options of each decision.
        engines: Of the pieces' files.
        workspaces: Laid out for the plan.
    """

    def __init__(
        self,
        plan: Plan,
        ends: tuple[str, str],
        option_counts: Sequence[int],
        engines: EngineCache,
        workspaces: Workspaces,
    ) -> None:
        self._input, self._output = ends
        self._option_counts = option_counts
        self._engines = engines
        self._steps = plan.steps
        self._evicts = engines.budget_bytes is not None
        self._places = [_place(step) for step in plan.steps]
        self._memory = workspaces.memory
        # A device has no caches of this size, and copies between its tensors are cheap.
        self._large_until = _large_until(plan) if self._memory.on_host else 0
        self._part = max(1, _PART_BYTES // max(tensor.largest_bytes for tensor in plan.tensors))
        self._last_uses = plan.last_uses() | {self._output: len(plan.steps)}
        self.workspaces = workspaces

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
        with self._memory.turn():
            return self._run(_Batch(images, prices, options, deciding, round_up))

    def _run(self, batch: _Batch) -> PlanRun:
        images, options, deciding = batch.images, batch.options, batch.deciding
        macs = np.zeros(len(images), np.int64)
        if self._large_until and len(images) > self._part and not batch.round_up:
            tensors = self._run_divided(0, batch, None, macs)
            return self._run_regrouped(self._large_until, batch, tensors, macs)
        with self.workspaces.lend(len(images)) as workspace:
            chosen: list[int] = options[0].tolist()
            self._put_inputs(workspace, images, batch.prices)
            reached, each = self._run_together(batch, workspace, chosen, 0, len(self._steps))
            macs += each
            if reached == len(self._steps):
                return PlanRun(self._memory.to_host(workspace.array(self._output, chosen)).copy(), macs)
            if reached < self._large_until:
                tensors = self._run_divided(reached, batch, workspace, macs)
                return self._run_regrouped(self._large_until, batch, tensors, macs)
            every = np.arange(len(images))
            tensors = {name: self._routed(len(every)) for name in self._made_before(reached, deciding)}
            for name, tensor in tensors.items():
                tensor.put(every, workspace.array(name, chosen))
            return self._run_regrouped(reached, batch, tensors, macs)

    def _put_inputs(self, workspace: Workspace, images: AnyArray, prices: AnyArray) -> None:
        for name, value in ((self._input, images), (PENALTY, prices), (state_name(0), 0.0)):
            self._memory.write(workspace.array(name, ()), value)

    def _routed(self, batch: int) -> RoutedTensor:
        return RoutedTensor(batch, self._memory)

    def _run_together(
        self, batch: _Batch, workspace: Workspace, chosen: list[int], first: int, until: int
    ) -> tuple[int, int]:
        """Run steps from ``first`` as long as all samples take the same pieces.

        Between two convolutions nothing of this loop is in the processor's caches: what can be
        looked up beforehand is.

        Args:
            batch: Its inputs, or what the steps before made, are in the workspace.
            workspace: Of its size.
            chosen: The options taken so far, one per decision; those decided here are written to it.
            first: The step to begin with.
            until: The step to stop before.

        Returns:
            The step that was not run any more, and the MACs of a sample.
        """
        deciding, single = batch.deciding, len(batch.options) == 1
        if not (deciding or single):
            until = min(until, self._first_apart(batch.options))
        macs, calls, columns, counts = 0, workspace.calls, workspace.columns, self._option_counts
        for i, (key_of, pieces, decides, agent_only) in enumerate(self._places[first:until], first):
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
                    return i + 1, macs
                chosen[decides] = agreed
        if single:
            batch.options[0] = chosen
        return until, macs

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

    def _run_divided(
        self, first: int, batch: _Batch, workspace: Workspace | None, macs: NDArray[np.int64]
    ) -> dict[str, RoutedTensor]:
        """Run steps ``first`` until tensors are small, in parts that fit the caches; what is left for later.

        Samples of equal options so far are in one part, until they part too; then each goes by itself.

        Args:
            first: The step to begin with.
            batch: All of it.
            workspace: That holds what the steps before made, or None before the first.
            macs: ``[N]``, added to.
        """
        made: dict[str, RoutedTensor] = {}
        until = self._large_until

        def run(rows: Rows, here: Rows, start: int, source: Workspace | None) -> None:
            """Go on from step ``start`` with samples ``rows`` of the batch, which are ``here`` in ``source``."""
            part = batch._replace(options=batch.options[rows])
            chosen = part.options[0].tolist()
            with self.workspaces.lend(len(rows)) as own:
                if source is None:
                    self._put_inputs(own, batch.images[rows], batch.prices[rows])
                else:
                    for name in self._made_before(start, batch.deciding):
                        np.take(source.array(name, chosen), here, axis=0, out=own.array(name, chosen))
                reached, each = self._run_together(part, own, chosen, start, until)
                macs[rows] += each
                batch.options[rows] = part.options
                if reached < until:
                    for i in range(len(rows)):
                        run(rows[i : i + 1], np.array([i]), reached, own)
                    return
                for name in self._made_before(until, batch.deciding):
                    made.setdefault(name, self._routed(len(macs))).put(rows, own.array(name, chosen).copy())

        read = sorted({t for step in self._steps[:until] for t in step.option_decisions})
        for rows, _ in rows_by_options(batch.options[:, read]):
            for k in range(0, len(rows), self._part):
                run(rows[k : k + self._part], rows[k : k + self._part], first, workspace)
        return made

    def _run_regrouped(
        self, first: int, batch: _Batch, tensors: dict[str, RoutedTensor], macs: NDArray[np.int64]
    ) -> PlanRun:
        """From step ``first`` on, those of the batch that take the same piece run together."""
        for i in range(first, len(self._steps)):
            if batch.deciding or not self._steps[i].agent_only:
                tensors.update(self._run_step(i, batch, tensors, macs))
            for name in self._steps[i].inputs.values():
                if self._last_uses[name] == i:
                    tensors.pop(name, None)
        # A copy: what was made before the batch parted lies in a workspace.
        return PlanRun(self._memory.to_host(tensors[self._output].take(np.arange(len(macs)))).copy(), macs)

    def _run_step(
        self, i: int, batch: _Batch, tensors: dict[str, RoutedTensor], macs: NDArray[np.int64]
    ) -> dict[str, RoutedTensor]:
        """Run each piece of a step on the samples that take it; what it made."""
        step, pieces = self._steps[i], self._places[i].pieces
        made = {name: self._routed(len(macs)) for name in step.outputs.values()}
        for rows, key in rows_by_options(batch.options[:, list(step.option_decisions)]):
            piece = pieces[key if len(key) != 1 else key[0]]
            feeds = {inner: tensors[name].take(rows) for inner, name in step.inputs.items()}
            results = self._engines.get(piece.file).run(feeds)
            for inner, name in step.outputs.items():
                if inner not in results:
                    raise EngineError(f"{piece.file} has no output {inner!r}; it does not fit its manifest")
                made[name].put(rows, results[inner])
            macs[rows] += piece.macs
            if step.decides is not None and batch.deciding:
                column = self._memory.to_host(made[option_name(step.decides)].take(rows))
                self._chosen_range(step.decides, piece, column)
                batch.options[rows, step.decides] = column
        return made

    def _made_before(self, first: int, deciding: bool) -> Iterator[str]:
        """Tensors there are before a step and that it or a later one reads."""
        ready = {self._input, PENALTY, state_name(0)}
        run = [step for step in self._steps[:first] if deciding or not step.agent_only]
        ready.update(name for step in run for name in step.outputs.values())
        for name in sorted(ready):
            if self._last_uses.get(name, -1) >= first:
                yield name
