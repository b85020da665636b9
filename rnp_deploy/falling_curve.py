"""Curves that fall as the penalty rises: made to fall where noise bent them, and read backwards."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

__all__ = ["isotonic_fall", "penalty_at_most"]


def isotonic_fall(values: Sequence[float]) -> list[float]:
    """The never-rising sequence nearest to ``values`` by least squares (pool adjacent violators).

    Neighbours that rise are replaced by their mean, so a single lucky or unlucky measurement
    counts as much as those beside it. A running minimum would believe the lucky one.
    """
    blocks: list[tuple[float, int]] = []  # mean, how many
    for value in values:
        mean, count = value, 1
        while blocks and blocks[-1][0] < mean:
            before, weight = blocks.pop()
            mean, count = (before * weight + mean * count) / (weight + count), weight + count
        blocks.append((mean, count))
    return [mean for mean, count in blocks for _ in range(count)]


def penalty_at_most(curve: Sequence[tuple[float, float]], target: float) -> float | None:
    """The lowest penalty at which a curve is at most ``target``, linear between its points.

    Args:
        curve: (penalty, value) pairs, at least one; penalties rise, values never do.
        target: In the unit of the values.

    Returns:
        A penalty between the first and the last, or None where even the last is above the target.
    """
    if curve[0][1] <= target:
        return curve[0][0]
    for (penalty, above), (next_penalty, below) in itertools.pairwise(curve):
        if below <= target:
            return penalty + (above - target) / (above - below) * (next_penalty - penalty)
    return None
