"""Two reports held against each other: what became slower, faster, or cannot be told."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np

from rnp_deploy.benchmarking.measures import Latency, Percentile
from rnp_deploy.benchmarking.report import BenchReport, ContenderReport
from rnp_deploy.bundle.fields import Finite, Frozen
from rnp_deploy.errors import InputError

__all__ = ["Change", "Comparison", "ContenderChange", "compare_reports"]

Verdict = Literal["slower", "faster", "same", "undecided"]

#: Blocks of fewer cannot say how much they vary.
_LEAST_BLOCKS = 5
_DRAWS = 2000
#: Of the environment, what changes from one minute to the next.
_PASSING = {
    "load_1m",
    "gpu_sm_clock_mhz",
    "gpu_memory_clock_mhz",
    "gpu_temperature_c",
    "gpu_throttle_reasons",
}


class Change(Frozen):
    """One percentile in both reports, in ms, or relative to the dense network's in the same report.

    Attributes:
        ratio: b ÷ a.
        low, high: The 95 % interval of the ratio; None where there are too few runs for one.
        verdict: By the whole interval, with the tolerance; ``"undecided"`` where it holds both sides of a limit.
    """

    a: Finite
    b: Finite
    ratio: Finite
    low: Finite | None
    high: Finite | None
    verdict: Verdict


class ContenderChange(Frozen):
    """What became of a contender that is in both; ``accuracy`` and ``macs_share`` are b - a.

    A percentile is None where one of the runs it is made from does not have it.
    """

    name: str
    kind: str
    p50: Change | None = None
    p99: Change | None = None
    accuracy: Finite | None = None
    macs_share: Finite | None = None


class Comparison(Frozen):
    """What :func:`compare_reports` found.

    ``stamp`` is that of random inputs; ``differences`` says what else differs between the reports, in words.
    """

    tolerance: Finite
    relative_to_dense: bool
    stamp: str | None
    differences: tuple[str, ...]
    contenders: tuple[ContenderChange, ...]
    only_in_a: tuple[str, ...]
    only_in_b: tuple[str, ...]


def compare_reports(
    a: BenchReport, b: BenchReport, *, tolerance: float = 0.1, relative_to_dense: bool = False
) -> Comparison:
    """Compare contenders of the same name.

    How it was measured has to agree: batch, threads, data and whether these are random. What was measured may
    differ, since that is what is compared: network, precision, backend, device, penalty, machine; it is named.

    The interval of p50 is a bootstrap over blocks, consecutive parts of the measurement, since latencies of one
    run are no independent draws. That of p99 combines the two reports' own intervals, which take them to be, so it
    is too narrow where the machine had bad moments.

    Args:
        a: The older, or what is compared with.
        b: The newer.
        tolerance: 0.1 takes what is within 10 % for the same.
        relative_to_dense: Compare latencies ÷ the dense network's in the same report, block by block: a machine
            that is slower now is slower for both.

    Raises:
        InputError: The reports answer different questions, share no contender, or have no dense network where
            it is needed; or the tolerance is out of range.
    """
    if not 0 <= tolerance < math.inf:
        raise InputError(f"the tolerance is {tolerance}; pass a share of 0 or more, such as 0.1")
    _check_alike(a, b)
    in_a, in_b = ({one.name: one for one in report.contenders} for report in (a, b))
    dense = (_dense(a, "A"), _dense(b, "B")) if relative_to_dense else ()
    for name in [name for name, one in in_a.items() if name in in_b and one.options != in_b[name].options]:
        del (
            in_a[name],
            in_b[name],
        )  # the nearest graph of each, which is another: no news, and nothing to compare
    names = [name for name, one in in_a.items() if name in in_b and not (dense and one.kind == "dense")]
    if not names:
        raise InputError(
            f"no contender is in both reports: {', '.join(in_a)}; and {', '.join(in_b)}; measure the same ones"
        )
    return Comparison(
        tolerance=tolerance,
        relative_to_dense=relative_to_dense,
        stamp=b.data.stamp,
        differences=tuple(_differences(a, b)),
        contenders=tuple(_contender_change(in_a[name], in_b[name], dense, tolerance) for name in names),
        only_in_a=tuple(name for name in in_a if name not in in_b),
        only_in_b=tuple(name for name in in_b if name not in in_a),
    )


def _check_alike(a: BenchReport, b: BenchReport) -> None:
    for what, in_a, in_b in (
        ("batch", a.settings.batch, b.settings.batch),
        ("threads", a.settings.threads, b.settings.threads),
        ("the stamp", a.data.stamp, b.data.stamp),
        ("the data", f"{a.data.name} ({a.data.sha256[:12]})", f"{b.data.name} ({b.data.sha256[:12]})"),
    ):
        alike = a.data.sha256 == b.data.sha256 if what == "the data" else in_a == in_b
        if not alike:
            raise InputError(
                f"the reports cannot be compared: {what} is {in_a} in A and {in_b} in B; measure both alike"
            )


def _dense(report: BenchReport, of: str) -> ContenderReport:
    for one in report.contenders:
        if one.kind == "dense":
            return one
    raise InputError(
        f"report {of} has no dense network, which latencies are to be relative to; "
        "compare them as they are, or measure it too"
    )


def _differences(a: BenchReport, b: BenchReport) -> Iterator[str]:
    """What is not the same, but may be."""
    facts_a, facts_b = _facts(a), _facts(b)
    for key in dict.fromkeys([*facts_a, *facts_b]):
        if facts_a.get(key) != facts_b.get(key):
            yield f"{key}: {facts_a.get(key, 'absent')} in A, {facts_b.get(key, 'absent')} in B"


def _facts(report: BenchReport) -> dict[str, Any]:
    subject = report.subject
    facts = {
        "manifest": subject.manifest_sha256[:12],
        "backend": subject.backend,
        "device": subject.device,
        "precision": subject.precision,
        "penalty": report.settings.penalty,
    }
    return facts | {key: value for key, value in report.environment.items() if key not in _PASSING}


def _contender_change(
    a: ContenderReport, b: ContenderReport, dense: tuple[ContenderReport, ...], tolerance: float
) -> ContenderChange:
    """``dense`` is empty, or of a and of b."""
    latencies = [one.latency for one in (a, b, *dense)]
    return ContenderChange(
        name=b.name,
        kind=b.kind,
        p50=_change([each.p50 for each in latencies], _bootstrapped(latencies), tolerance),
        p99=_change([each.p99 for each in latencies], _combined([each.p99 for each in latencies]), tolerance),
        accuracy=None if a.accuracy is None or b.accuracy is None else b.accuracy - a.accuracy,
        macs_share=None if a.macs_share is None or b.macs_share is None else b.macs_share - a.macs_share,
    )


def _change(
    percentiles: list[Percentile | None], interval: tuple[float, float] | None, tolerance: float
) -> Change | None:
    """Of a and b, and of what they are relative to where that follows."""
    ms = [each.ms for each in percentiles if each is not None]
    if len(ms) < len(percentiles) or min(ms) <= 0:
        return None
    over = ms[2:] or [1.0, 1.0]
    a, b = ms[0] / over[0], ms[1] / over[1]
    low, high = (None, None) if interval is None else (min(interval[0], b / a), max(interval[1], b / a))
    return Change(a=a, b=b, ratio=b / a, low=low, high=high, verdict=_verdict(low, high, tolerance))


def _verdict(low: float | None, high: float | None, tolerance: float) -> Verdict:
    if low is None or high is None:
        return "undecided"
    if low > 1 + tolerance:
        return "slower"
    if high < 1 - tolerance:
        return "faster"
    return "same" if low >= 1 - tolerance and high <= 1 + tolerance else "undecided"


def _bootstrapped(latencies: list[Latency]) -> tuple[float, float] | None:
    """The interval of b ÷ a by medians of blocks drawn with replacement; see :func:`compare_reports`."""
    blocks = [np.asarray(each.block_p50_ms) for each in latencies]
    if min(map(len, blocks)) < _LEAST_BLOCKS or min(each.min() for each in blocks) <= 0:
        return None
    if len(blocks) == 4:
        if any(len(each) != len(over) for each, over in zip(blocks[:2], blocks[2:], strict=True)):
            return None
        blocks = [each / over for each, over in zip(blocks[:2], blocks[2:], strict=True)]
    rng = np.random.default_rng(0)
    a, b = (np.median(rng.choice(each, (_DRAWS, len(each))), axis=1) for each in blocks)
    low, high = np.percentile(b / a, [2.5, 97.5])
    return float(low), float(high)


def _combined(percentiles: list[Percentile | None]) -> tuple[float, float] | None:
    """The interval of a ratio from those of its parts, as logarithms.

    MOVER: Zou and Donner, Statistics in Medicine 27 (2008), 1693, for independent parts.
    """
    if any(each is None or each.low_ms <= 0 for each in percentiles):
        return None
    logs = np.log([[each.low_ms, each.ms, each.high_ms] for each in percentiles if each is not None])
    low, middle, high = logs.T
    signs = np.array([-1, 1, 1, -1])[: len(logs)]
    ratio = float(signs @ middle)
    down = np.where(signs > 0, middle - low, high - middle)
    up = np.where(signs > 0, high - middle, middle - low)
    return math.exp(ratio - float(np.hypot.reduce(down))), math.exp(ratio + float(np.hypot.reduce(up)))
