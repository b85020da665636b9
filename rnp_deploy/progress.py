"""How long work tells how far it is: one callable, given to whatever takes long."""

from __future__ import annotations

from typing import Protocol

__all__ = ["Progress", "no_progress"]


class Progress(Protocol):
    """Called with what is being done, how many steps of it are done, and how many there are."""

    def __call__(self, task: str, done: int, total: int) -> None:
        """Report; must be cheap, it may be called a thousand times."""


def no_progress(task: str, done: int, total: int) -> None:
    """Report nothing."""
