"""Memory for the tensors of one run, and the calls that are bound to it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from rnp_deploy.array_memory import HOST, ArrayMemory
from rnp_deploy.dtypes import storage_dtype
from rnp_deploy.engine import AnyArray, Engine
from rnp_deploy.plan import Plan, option_name

__all__ = ["BoundCall", "Ends", "MemoryLayout", "Workspace", "Workspaces"]

#: Graph's name of a tensor → its name in the plan: of the inputs, and of the outputs.
Ends: TypeAlias = tuple[Mapping[str, str], Mapping[str, str]]

_ALIGNMENT = 64  # a cache line, and the widest vector load
#: Memory that idle workspaces may hold beside the last one used; the largest go first. On a device they hold
#: captured graphs too, and are dear to make.
_IDLE_BYTES, _IDLE_DEVICE_BYTES = 512 * 2**20, 4 * 2**30


class MemoryLayout:
    """Which tensors of a plan share memory: those that are never needed at the same time.

    Attributes:
        slot_of: Tensor → its slot.
        slot_bytes: Bytes of each slot for one sample; a batch of N takes N times that.
        steps: How many the plan has.
        options: The tensors of the agent's options.
        at_ends: Those that the host needs: the options, and what is kept and no step reads.
    """

    def __init__(self, plan: Plan, decisions: int, kept: Sequence[str]) -> None:
        """Lay a plan out.

        Args:
            plan: Its steps run in order.
            decisions: How many there are.
            kept: Tensors that are read after the last step.
        """
        self.tensors = {tensor.name: tensor for tensor in plan.tensors}
        self.slot_of: dict[str, int] = {}
        self.slot_bytes: list[int] = []
        self.steps = len(plan.steps)
        self.options = tuple(option_name(t) for t in range(decisions))
        uses = plan.last_uses()
        self.at_ends = (*self.options, *(name for name in kept if name not in uses))
        last = uses | dict.fromkeys(kept, len(plan.steps))
        made = {name for step in plan.steps for name in step.outputs.values()}
        free: list[int] = []
        for name in sorted({name for step in plan.steps for name in step.inputs.values()} - made):
            self._place(name, free)
        for i, step in enumerate(plan.steps):
            done_with = {name for name in step.inputs.values() if last[name] == i}
            for name in step.outputs.values():
                source = step.in_place.get(name)
                if source is not None and source in done_with:
                    done_with.remove(source)
                    self._place(name, [self.slot_of[source]])
                else:
                    self._place(name, free)
            live = {self.slot_of[name] for name in self.slot_of if last.get(name, i) > i}
            free = [slot for slot in range(len(self.slot_bytes)) if slot not in live]

    def _place(self, name: str, free: list[int]) -> None:
        """Take the free slot that has to grow least; of those that need not, the smallest."""
        needed = -(-self.tensors[name].largest_bytes // _ALIGNMENT) * _ALIGNMENT
        if free:
            slot = min(free, key=lambda s: (max(needed - self.slot_bytes[s], 0), self.slot_bytes[s]))
            free.remove(slot)
            self.slot_bytes[slot] = max(self.slot_bytes[slot], needed)
        else:
            slot = len(self.slot_bytes)
            self.slot_bytes.append(needed)
        self.slot_of[name] = slot


class BoundCall(NamedTuple):
    """A call on the memory of a workspace, the MACs of a sample, and the engine it is of."""

    run: Callable[[], None]
    macs: int
    engine: Engine


class Workspace:
    """The buffers of one batch size; one run uses it at a time.

    Attributes:
        batch: N.
        nbytes: Of all buffers, but for what a device hands to the host.
        columns: Where the agent's options ``[N]`` of each decision are put.
        calls: By step of the plan and by what the caller names a piece.
    """

    def __init__(self, layout: MemoryLayout, batch: int, memory: ArrayMemory = HOST) -> None:
        self.batch = batch
        self.nbytes = batch * sum(layout.slot_bytes)
        self._layout = layout
        self._slots = [_aligned(memory, batch * size) for size in layout.slot_bytes]
        self._views: dict[tuple[str, tuple[int, ...]], AnyArray] = {}
        if not memory.on_host:
            for tensor in (layout.tensors[name] for name in layout.at_ends):
                shape = (batch, *tensor.shape)
                self._views[tensor.name, shape] = memory.host_empty(shape, storage_dtype(tensor.dtype))
        self.columns = [self.array(name, ()) for name in layout.options]
        self.calls: list[dict[Any, BoundCall]] = [{} for _ in range(layout.steps)]

    def array(self, name: str, options: Sequence[int]) -> AnyArray:
        """The memory of a tensor, ``[N, ...]``, for one option per decision; not cleared."""
        tensor = self._layout.tensors[name]
        shape = (self.batch, *tensor.shape_at(options))
        view = self._views.get((name, shape))
        if view is None:
            dtype = storage_dtype(tensor.dtype)
            count = int(np.prod(shape, dtype=np.int64))
            view = (
                self._slots[self._layout.slot_of[name]][: count * dtype.itemsize].view(dtype).reshape(shape)
            )
            self._views[name, shape] = view
        return view

    def bind(self, engine: Engine, macs: int, ends: Ends, options: Sequence[int]) -> BoundCall:
        """Prepare the call of a piece on this memory.

        Args:
            engine: Of the piece.
            macs: Of the piece.
            ends: Graph's name → tensor, of its inputs and of its outputs.
            options: One per decision; those not chosen yet are not read.
        """
        inputs, outputs = ({inner: self.array(name, options) for inner, name in end.items()} for end in ends)
        return BoundCall(engine.bind(inputs, outputs), macs, engine)

    def forget(self, engine: Engine) -> None:
        """Drop the calls of an engine that is to be released; from any thread."""
        for calls in self.calls:
            for key, bound in list(calls.items()):
                if bound.engine is engine:
                    calls.pop(key, None)


class Workspaces:
    """Idle workspaces, to be used again by runs of the same batch size. Safe in many threads.

    Attributes:
        memory: What they are made of.
    """

    def __init__(self, layout: MemoryLayout, memory: ArrayMemory = HOST) -> None:
        self._layout = layout
        self.memory = memory
        self._lock = threading.Lock()
        self._idle: list[Workspace] = []  # least recently used first
        self._lent: list[Workspace] = []

    @contextmanager
    def lend(self, batch: int) -> Iterator[Workspace]:
        """A workspace for a batch of N; nobody else has it until the block ends."""
        with self._lock:
            found = next((w for w in reversed(self._idle) if w.batch == batch), None)
            if found is not None:
                self._idle.remove(found)
                self._lent.append(found)
        if found is None:
            found = Workspace(self._layout, batch, self.memory)
            with self._lock:
                self._lent.append(found)
        try:
            yield found
        finally:
            with self._lock:
                self._lent.remove(found)
                self._idle.append(found)
                limit = _IDLE_BYTES if self.memory.on_host else _IDLE_DEVICE_BYTES
                while sum(workspace.nbytes for workspace in self._idle[:-1]) > limit:
                    self._idle.remove(max(self._idle[:-1], key=lambda workspace: workspace.nbytes))

    @property
    def nbytes(self) -> int:
        """Memory of all workspaces, lent and idle."""
        with self._lock:
            return sum(workspace.nbytes for workspace in (*self._lent, *self._idle))

    def forget(self, engine: Engine) -> None:
        """Drop every call of an engine that is to be released, once none of them is under way on a device."""
        self.memory.synchronise()
        with self._lock:
            for workspace in (*self._lent, *self._idle):
                workspace.forget(engine)

    def clear(self) -> None:
        """Drop the idle workspaces."""
        with self._lock:
            self._idle.clear()


def _aligned(memory: ArrayMemory, nbytes: int) -> AnyArray:
    array: AnyArray = memory.empty((nbytes + _ALIGNMENT * memory.on_host,), np.dtype(np.uint8))
    start = -array.ctypes.data % _ALIGNMENT if memory.on_host else 0  # devices align what they give
    return array[start : start + nbytes]
