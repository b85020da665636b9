"""What a network loses in a lower precision, as export measured it."""

from __future__ import annotations

from rnp_deploy.bundle.fields import Count, Finite, Frozen

__all__ = ["AtPenalty", "PrecisionReport"]


class AtPenalty(Frozen):
    """At one price: the share of decisions as in fp32, and both accuracies, 0..1; None without labels."""

    penalty: Finite
    decisions_equal: Finite
    accuracy_fp32: Finite | None = None
    accuracy: Finite | None = None


class PrecisionReport(Frozen):
    """A bundle held against its network in fp32, the agent deciding in both.

    Margin: the best Q-value less the second best, in fp32. Drift: the largest change of a Q-value of the same
    decision, both networks having taken the options that fp32 chose; or of an output, ÷ the largest of fp32's.

    Attributes:
        data: Name of the data set whose held-out images these are; None: random numbers.
        images: How many.
        penalties: Prices they were run at, each image at each.
        decisions: How many that makes.
        decisions_equal: Of these, those that fp32 takes too; every network went its own way.
        margin_median, margin_p5: Median and 5th percentile of the margins.
        drift_median, drift_p99: Median and 99th percentile of the drifts of Q-values.
        at_risk: Share of the decisions whose drift exceeds half their margin.
        output_drift_max, output_drift_mean: At equal options.
        accuracy_fp32, accuracy: 0..1, over all prices; None without labels.
        by_penalty: The same of each price, in the order of ``penalties``; empty in bundles of before.
    """

    data: str | None
    images: Count
    penalties: tuple[Finite, ...]
    decisions: Count
    decisions_equal: Count
    margin_median: Finite
    margin_p5: Finite
    drift_median: Finite
    drift_p99: Finite
    at_risk: Finite
    output_drift_max: Finite
    output_drift_mean: Finite
    accuracy_fp32: Finite | None = None
    accuracy: Finite | None = None
    by_penalty: tuple[AtPenalty, ...] = ()

    def lines(self) -> tuple[str, ...]:
        """The report in words."""
        images = "random images" if self.data is None else f"held-out images of {self.data}"
        decided = (
            f"{self.decisions_equal} of {self.decisions} decisions as in fp32 "
            f"({100 * self.decisions_equal / max(self.decisions, 1):.2f} %), on {self.images} {images} at penalty "
            + ", ".join(f"{penalty:.3g}" for penalty in self.penalties)
        )
        if self.by_penalty:
            worst = min(self.by_penalty, key=lambda at: at.decisions_equal)
            decided += f"; fewest at {worst.penalty:.3g}, {100 * worst.decisions_equal:.2f} %"
        values = (
            f"Q-values: margin median {self.margin_median:.2g}, 5th percentile {self.margin_p5:.2g}; drift median "
            f"{self.drift_median:.2g}, 99th percentile {self.drift_p99:.2g}; drift above half the margin at "
            f"{100 * self.at_risk:.2f} % of the decisions"
        )
        outputs = (
            f"outputs at equal options: drift {self.output_drift_max:.2g} at most, {self.output_drift_mean:.2g} on average, "
            "of the largest"
        )
        lines = [decided, values, outputs]
        if self.accuracy is not None and self.accuracy_fp32 is not None:
            change = 100 * (self.accuracy - self.accuracy_fp32)
            lines.append(
                f"accuracy {100 * self.accuracy:.2f} %, in fp32 {100 * self.accuracy_fp32:.2f} % ({change:+.2f} points)"
            )
            fallen = [(100 * (a.accuracy - a.accuracy_fp32), a.penalty) for a in self.by_penalty
                      if a.accuracy is not None and a.accuracy_fp32 is not None]  # fmt: skip
            if fallen:
                lines[-1] += "; {:+.2f} points at worst, at {:.3g}".format(*min(fallen))
        return tuple(lines)
