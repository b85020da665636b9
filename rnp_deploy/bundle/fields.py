"""What all parts of a manifest are made of: frozen models and checked numbers."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["Count", "Finite", "Frozen", "Size"]

Count = Annotated[int, Field(ge=0, lt=2**63)]
Size = Annotated[int, Field(ge=1, lt=2**31)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class Frozen(BaseModel):
    """A value that is checked strictly when made, knows all its keys, and does not change."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
