"""The curve of a trained network: from the price of computing to accuracy and cost."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from rnp_deploy.bundle.fields import Count, Finite, Frozen
from rnp_deploy.errors import InputError
from rnp_deploy.falling_curve import penalty_at_most

__all__ = ["Calibration", "CalibrationPoint"]


class CalibrationPoint(Frozen):
    """Held-out results at one penalty; shares and accuracies are 0..1.

    ``macs_share`` is mean backbone MACs ÷ the full network's. ``option_counts[t][j-1]``
    is how many samples took option j at decision t.
    """

    penalty: Finite
    accuracy: Finite
    macs_share: Finite
    option_counts: tuple[tuple[Count, ...], ...]


class Calibration(Frozen):
    """What the masked torch reference did on held-out data; ``points`` at rising penalties."""

    data: str
    samples: Count
    backbone_accuracy: Finite
    full_accuracy: Finite
    points: Annotated[tuple[CalibrationPoint, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _penalties_rise(self) -> Calibration:
        penalties = [point.penalty for point in self.points]
        if penalties != sorted(set(penalties)):
            raise ValueError(f"calibration penalties {penalties} do not rise")
        return self

    def at(self, penalty: float) -> CalibrationPoint:
        """The point whose penalty is nearest."""
        return min(self.points, key=lambda point: abs(point.penalty - penalty))

    def penalty_for(self, target_macs: float) -> float:
        """The lowest penalty at which an image costs, on average, ``target_macs`` of the full network.

        Between two points the share is taken to be linear; a point that costs more than one
        at a lower penalty is passed over.

        Args:
            target_macs: Mean MACs ÷ the full network's, above 0, at most 1.

        Raises:
            InputError: Out of this range, or below what the cheapest point costs.
        """
        if not 0 < target_macs <= 1:
            raise InputError(f"target_macs is {target_macs}; pass a share above 0, at most 1")
        curve: list[CalibrationPoint] = []
        for point in self.points:
            if not curve or point.macs_share < curve[-1].macs_share:
                curve.append(point)
        penalty = penalty_at_most([(point.penalty, point.macs_share) for point in curve], target_macs)
        if penalty is not None:
            return penalty
        raise InputError(
            f"target_macs is {target_macs:.4g}: the cheapest calibrated point takes {curve[-1].macs_share:.4g} "
            f"of the full network's MACs, at penalty {curve[-1].penalty:.4g}"
        )
