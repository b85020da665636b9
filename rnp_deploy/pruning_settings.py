"""What is to be pruned and how finely, and the widths that follow."""

from __future__ import annotations

import fnmatch
import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rnp_deploy.errors import InputError

__all__ = ["PENALTY_RANGE", "PruningSettings", "option_widths"]

#: Prices a penalty-conditioned agent is trained for where nothing else is said. One just below
#: zero pays for computing, so that the full network lies on the curve.
PENALTY_RANGE = (-0.02, 1.0)

_Groups = Annotated[int, Field(ge=2, le=2**14)]


class PruningSettings(BaseModel):
    """What is pruned, and how finely. Patterns are those of ``fnmatch``, over module paths.

    Attributes:
        groups: k, the number of options of a convolution.
        overrides: Pattern → groups, for the convolutions it matches; the first match counts.
        skip: Patterns of convolutions to leave whole.
        align: Widths are rounded up to a multiple of this many channels where a group is at
            least that wide: runtimes compute channels in blocks of 8 or 16. 1 rounds nothing.
        granularity: ``"conv"``, one decision for each prunable convolution, or ``"block"``,
            one for all of a block: those between two additions or concatenations, at one
            resolution.
        min_macs_share: A convolution is left whole where its option would change less than
            this share, 0..1, of the network's multiply-accumulates; its own, its followers'
            and its readers' count.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    groups: _Groups = 4
    overrides: dict[str, _Groups] = {}
    skip: tuple[str, ...] = ()
    align: Annotated[int, Field(ge=1, le=2**14)] = 8
    granularity: Literal["conv", "block"] = "conv"
    min_macs_share: Annotated[float, Field(ge=0, lt=1)] = 0.01

    @classmethod
    def checked(cls, **values: Any) -> PruningSettings:
        """Make settings; raises InputError, which names the value that is out of range."""
        try:
            return cls(**values)
        except ValidationError as err:
            first = err.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise InputError(f"{where} is {first['input']!r}: {first['msg']}") from err

    def groups_of(self, conv: str) -> int:
        """The number of options of a convolution."""
        for pattern, groups in self.overrides.items():
            if fnmatch.fnmatchcase(conv, pattern):
                return groups
        return self.groups


def option_widths(channels: int, groups: int, unit: int = 1, align: int = 8) -> tuple[int, ...] | None:
    """The channels of options 1..groups, or None where ``channels`` do not divide.

    Args:
        channels: Of the whole convolution.
        groups: k.
        unit: Channels that only stay or go together.
        align: See :class:`PruningSettings`.
    """
    if channels % groups:
        return None
    for step in (math.lcm(unit, align), unit):
        if channels // groups >= step:
            return tuple(
                min(channels, math.ceil(channels * j / groups / step) * step) for j in range(1, groups + 1)
            )
    return None
