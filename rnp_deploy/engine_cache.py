"""Engines by path: opened when first needed, released when memory is short."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterable, Mapping

from rnp_deploy.engine import Engine, OpenEngine

__all__ = ["EngineCache"]


class _Entry:
    """An open engine, and when it was last asked for."""

    __slots__ = ("engine", "used", "weight_bytes")

    def __init__(self, engine: Engine, weight_bytes: int, used: int) -> None:
        self.engine, self.weight_bytes, self.used = engine, weight_bytes, used


class EngineCache:
    """Opens each engine once. Safe in many threads.

    Attributes:
        budget_bytes: As given.
        evictions: Engines let go for want of memory, since the start.

    Args:
        open_engine: Called once for each path that is needed, and again after it was let go.
        weight_bytes: Path → bytes of weights its engine holds; 0 for paths not in it.
        budget_bytes: Weights the open engines may hold together, or None. The least
            recently used are let go first; one that is running stays until it is done, and
            what is needed next is opened in any case.
        on_release: Told of each engine that is let go or closed.
    """

    def __init__(
        self,
        open_engine: OpenEngine,
        weight_bytes: Mapping[str, int],
        budget_bytes: int | None,
        on_release: Callable[[Engine], None],
    ) -> None:
        self._open_engine = open_engine
        self._weight_bytes = weight_bytes
        self.budget_bytes = budget_bytes
        self._on_release = on_release
        self._entries: dict[str, _Entry] = {}
        self._lock = threading.Lock()
        self._clock = itertools.count(1)
        self.evictions = 0

    def get(self, path: str) -> Engine:
        """The engine of a path; raises what ``open_engine`` raises."""
        entry = self._entries.get(path)
        if entry is None:
            entry = self._opened(path)
        entry.used = next(self._clock)
        return entry.engine

    def _opened(self, path: str) -> _Entry:
        with self._lock:
            entry = self._entries.get(path)
            if entry is None:
                self._make_room(self._weight_bytes.get(path, 0))
                engine = self._open_engine(path)
                entry = _Entry(engine, self._weight_bytes.get(path, 0), next(self._clock))
                self._entries[path] = entry
        return entry

    def _make_room(self, needed_bytes: int) -> None:
        if self.budget_bytes is None:
            return
        held = sum(entry.weight_bytes for entry in self._entries.values())
        for path in sorted(self._entries, key=lambda path: self._entries[path].used):
            if held + needed_bytes <= self.budget_bytes:
                return
            if self._entries[path].weight_bytes:
                held -= self._entries[path].weight_bytes
                # Not closed: another thread may be about to run it, and the last to let go frees it.
                self._on_release(self._entries.pop(path).engine)
                self.evictions += 1

    def open_within_budget(self, paths: Iterable[str]) -> None:
        """Open engines in the order given, and stop before the first that would evict another."""
        for path in paths:
            with self._lock:
                held = sum(entry.weight_bytes for entry in self._entries.values())
            more = 0 if path in self._entries else self._weight_bytes.get(path, 0)
            if self.budget_bytes is not None and held + more > self.budget_bytes:
                return
            self.get(path)

    def holds(self, path: str, engine: Engine) -> bool:
        """Whether an engine is still the one of its path: False once it was let go."""
        entry = self._entries.get(path)
        return entry is not None and entry.engine is engine

    def loaded(self) -> dict[str, int]:
        """Path → bytes of weights, of the engines that are open."""
        with self._lock:
            return {path: entry.weight_bytes for path, entry in self._entries.items()}

    def close(self) -> None:
        """Release every engine."""
        with self._lock:
            entries, self._entries = list(self._entries.values()), {}
        for entry in entries:
            self._on_release(entry.engine)
            entry.engine.close()
