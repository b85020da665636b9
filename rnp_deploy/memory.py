"""How much memory a controller holds."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

__all__ = ["MemoryReport", "available_bytes", "resident_bytes"]


@dataclass(frozen=True)
class MemoryReport:
    """What a controller holds; bytes.

    Attributes:
        engines: Open now.
        engines_in_all: That there are.
        weight_bytes: Of the open engines, each by itself. An engine set maps weights from its
            file: what engines share, or have not run with yet, takes no memory.
        budget_bytes: What ``weight_bytes`` is kept under, or None.
        evictions: Engines that were let go for the budget, since the start.
        workspace_bytes: Buffers of the runs under way and of those before.
        resident_bytes: Of the whole process, or None where the system does not tell.
    """

    engines: int
    engines_in_all: int
    weight_bytes: int
    budget_bytes: int | None
    evictions: int
    workspace_bytes: int
    resident_bytes: int | None


def resident_bytes() -> int | None:
    """Resident memory of this process; None where there is no ``/proc``."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


def available_bytes() -> int:
    """Memory that a process could still take, by ``/proc/meminfo``; 4 GiB where there is none."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")) * 1024
    except (OSError, ValueError, StopIteration):
        return 4 * 2**30
