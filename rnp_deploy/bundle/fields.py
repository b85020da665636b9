"""What all parts of a manifest are made of: frozen models and checked numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["Count", "Finite", "Frozen", "Size", "check_values_per_sample"]

Count = Annotated[int, Field(ge=0, lt=2**63)]
Size = Annotated[int, Field(ge=1, lt=2**31)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class Frozen(BaseModel):
    """A value that is checked strictly when made, knows all its keys, and does not change."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


def check_values_per_sample(name: str, shape: Sequence[int], axis: int, sizes: Sequence[int]) -> None:
    """Refuse a tensor of 2**31 or more values a sample, at full width or its largest size; raises ValueError."""
    largest = list(shape)
    if sizes and axis <= len(shape):
        largest[axis - 1] = max(sizes)
    for sides in (shape, largest):
        values = 1
        for side in sides:
            values *= side
            if values >= 2**31:  # before it grows any further
                raise ValueError(f"tensor {name!r} has 2**31 values a sample or more")
