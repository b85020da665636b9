"""Timing of networks whose work depends on their input."""

from __future__ import annotations

__all__: list[str] = []
