"""The scale of prices, for what runs without torch."""

from __future__ import annotations

import math

from rnp_deploy.errors import InputError

__all__ = ["PriceScale"]


class PriceScale:
    """Prices low..high on a scale from 0 to 1: linear near zero, logarithmic above.

    What an image costs is about proportional to the logarithm of the price, so equal steps of
    the scale are about equal steps of cost.

    Attributes:
        low, high: Its ends.
        unit, start, length: position = (asinh(price / unit) - start) / length.

    Raises:
        InputError: The range is none.
    """

    def __init__(self, low: float, high: float) -> None:
        if not (math.isfinite(low) and math.isfinite(high) and low < high and high > 0):
            raise InputError(f"penalty range {low}..{high}: pass two rising numbers, the second above 0")
        self.low, self.high = low, high
        self.unit = high / 200
        self.start = math.asinh(low / self.unit)
        self.length = math.asinh(high / self.unit) - self.start

    def position(self, penalty: float) -> float:
        """Price → 0..1; one beyond the range counts as its end."""
        inside = min(max(penalty, self.low), self.high)
        return min(max((math.asinh(inside / self.unit) - self.start) / self.length, 0.0), 1.0)

    def penalty(self, position: float) -> float:
        """The inverse: 0..1 → price; exactly ``low`` and ``high`` at, and beyond, the ends."""
        if position <= 0:
            return self.low
        if position >= 1:
            return self.high
        return min(max(self.unit * math.sinh(self.start + self.length * position), self.low), self.high)
