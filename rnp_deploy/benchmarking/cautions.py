"""What a reader of a report has to know before believing its numbers."""

from __future__ import annotations

from collections.abc import Sequence

from rnp_deploy.benchmarking.report import RANDOM_STAMP, ContenderReport, Split
from rnp_deploy.benchmarking.timing import Measurement

__all__ = ["warnings_of"]

#: Coefficient of variation, as trtexec warns of; share of the controller's time that is the host's loop.
_NOISY, _HOST_LIMITED = 0.025, 0.25


def warnings_of(
    contenders: Sequence[ContenderReport],
    split: Split,
    measurement: Measurement[str],
    *,
    random: bool,
    trained: bool,
) -> tuple[str, ...]:
    """Warnings in words; ``random`` inputs, and whether the agent was ``trained``, are said too."""
    said = [RANDOM_STAMP] if random else []
    if not trained:
        said.append("the agent is untrained: it takes all groups everywhere; rnp-train trains one")
    if not measurement.stable:
        said.append(
            f"times were not stable after {measurement.warm_up_s:.1f} s of warm-up; leave the machine alone"
        )
    if not any(report.kind == "dense" for report in contenders):
        said.append(
            "the dense network was not timed: speed-ups are over the controller at its last option, which is slower; "
            "pass the bundle that the engine set was built from (--bundle)"
        )
    noisy = [(report.latency.cv, report.name) for report in contenders if (report.latency.cv or 0) > _NOISY]
    if noisy:
        worst, name = max(noisy)
        said.append(
            f"the coefficient of variation passes {_NOISY:.1%} for {len(noisy)} of {len(contenders)} contenders, "
            f"at most {worst:.1%} ({name}): close other programs, fix the clocks, or measure longer"
        )
    if split.host_share > _HOST_LIMITED:
        said.append(
            f"the host is the limit: {split.host_share:.0%} of the controller's time is its loop between pieces, "
            "not the network; larger batches or networks show what the device can do"
        )
    return tuple(said)
