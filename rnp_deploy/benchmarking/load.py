"""MLPerf-style load: Poisson arrivals at a rate (``server``), or all images at once (``offline``).

The scenarios are those of MLPerf's load generator (https://github.com/mlcommons/inference, ``loadgen``) in
short: runs last seconds, not minutes, and nothing here is an MLPerf result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rnp_deploy.benchmarking.clock import WALL, Clock
from rnp_deploy.benchmarking.report import LoadReport, LoadRun, RequestRecord
from rnp_deploy.benchmarking.statistics import latency_report
from rnp_deploy.benchmarking.timing import Images, old_objects_left_alone
from rnp_deploy.errors import InputError
from rnp_deploy.progress import Progress, no_progress

__all__ = [
    "LoadResult",
    "check_scenario",
    "highest_qps",
    "measure_load",
    "poisson_arrivals",
    "run_offline",
    "run_server",
    "warm_up",
]

Run = Callable[[Images], Any]

#: As many requests as a p99 needs; a run at a low rate lasts longer for them.
_LEAST_REQUESTS = 100
_MOST_REQUESTS = 10**7
_MOST_WARM = 16  # batch sizes that are run before; of more, so many, spread
#: Without an SLO a run ends when a request has taken this long: the queue is growing.
_MOST_WAIT_NS = 10 * 10**9
_MOST_TRIES = 12
#: The search ends where what failed is this close to what held.
_PRECISION = 1.05
_LONE_RUNS = 20


class LoadResult(NamedTuple):
    """A run, and a record of each request that was answered; offline of each batch."""

    run: LoadRun
    records: tuple[RequestRecord, ...]


class _Batch(NamedTuple):
    """Requests ``first`` to ``end``, run between two moments in ns from the start; ``options`` ``[N, T]`` or None."""

    first: int
    end: int
    began: int
    ended: int
    options: Any


def poisson_arrivals(qps: float, seconds: float, seed: int, at_least: int = 1) -> NDArray[np.int64]:
    """When requests are due: ``[requests]`` nanoseconds from the start, rising, all above 0.

    The gaps are exponential, the first one before the first request. A seed draws the same gaps at every
    rate, scaled. The schedule goes on past ``seconds`` until it holds ``at_least`` requests.

    Raises:
        InputError: Rate or seconds are not above 0, or make more than ten million requests.
    """
    _check_positive(qps=qps, seconds=seconds)
    if qps * seconds > _MOST_REQUESTS:
        raise InputError(f"{qps:g} images/s for {seconds:g} s are more than ten million requests; lower one")
    count = max(at_least, 1024)
    while (due := np.cumsum(np.random.default_rng(seed).standard_exponential(count)))[-1] < qps * seconds:
        count *= 2
    requests = max(at_least, int(np.searchsorted(due, qps * seconds)))
    return np.ceil(due[:requests] * (1e9 / qps)).astype(np.int64)


def warm_up(run: Run, images: Images, sizes: Iterable[int]) -> None:
    """Run every batch size that may occur twice, so that none is met first while the clock runs."""
    first = 0
    for size in sizes:
        for _ in range(2):
            run(images[np.arange(first, first + size) % len(images)])
            first += size


def run_server(
    run: Run,
    images: Images,
    *,
    contender: str,
    qps: float,
    seconds: float,
    most_batch: int,
    slo_ms: float | None = None,
    seed: int,
    clock: Clock = WALL,
) -> LoadResult:
    """Answer Poisson arrivals with one worker: whenever it is free it takes what is due, the oldest first.

    A latency counts from when the request was due, not from when it was sent, so that what a stall makes
    others wait is in it. The worker never waits for a batch to fill.

    With an SLO the run stops once more than 1 % of the planned requests have missed it, answered or still
    waiting: its p99 cannot hold any more. Without one it stops once a request has taken 10 s, or waited as long,
    since above capacity the queue grows as long as requests arrive.

    Args:
        run: ``[N, C, H, W]`` → a result, done when it returns; its ``options`` ``[N, T]`` are recorded where it
            has them. To be warmed up before: see :func:`warm_up`.
        images: Request i takes the i-th in an order that the seed draws, which begins again at its end.
        contender: Its name in the report.
        qps: Images per second, on average.
        seconds: How long requests arrive; longer where these were fewer than 100.
        most_batch: Images that are run together at most.
        slo_ms: What p99 is held against.
        seed: Of the arrivals and of the order.
        clock: Another in tests.

    Raises:
        InputError: An argument is out of range.
    """
    _check_positive(most_batch=most_batch, slo_ms=slo_ms)
    due = poisson_arrivals(qps, seconds, seed, _LEAST_REQUESTS)
    rows = _order(len(images), seed)[np.arange(len(due)) % len(images)]
    wait_ns = _MOST_WAIT_NS if slo_ms is None else round(slo_ms * 1e6)
    allowed = 0 if slo_ms is None else len(due) // 100
    batches: list[_Batch] = []
    answered = late = 0
    start = clock.now_ns()
    while answered < len(due):
        clock.wait_until_ns(start + int(due[answered]))
        began = clock.now_ns() - start
        overdue = max(int(np.searchsorted(due, began - wait_ns)) - answered, 0)
        if late + overdue > allowed:
            break
        end = min(int(np.searchsorted(due, began, side="right")), answered + most_batch)
        result = run(images[rows[answered:end]])
        ended = clock.now_ns() - start
        batches.append(_Batch(answered, end, began, ended, getattr(result, "options", None)))
        late += int((ended - due[answered:end] > wait_ns).sum())
        answered = end
    latencies_ms = np.array([(b.ended - due[i]) / 1e6 for b in batches for i in range(b.first, b.end)])
    busy_s = (batches[-1].ended - int(due[0])) / 1e9 if batches else 0.0
    report = LoadRun(
        contender=contender,
        offered_qps=float(qps),
        completed_qps=answered / busy_s if busy_s else 0.0,
        planned=len(due),
        completed=answered,
        seconds=busy_s,
        latency=latency_report(latencies_ms) if answered else None,
        mean_batch=answered / max(len(batches), 1),
        slo_ms=slo_ms,
        within_slo=None if slo_ms is None else (answered - late) / len(due),
        held=None if slo_ms is None else late <= allowed and answered == len(due),
        stopped_early=answered < len(due),
    )
    records = tuple(
        RequestRecord(
            contender=contender,
            first_image=int(rows[i]),
            batch=batch.end - batch.first,
            started_ms=batch.began / 1e6,
            latency_ms=float(latencies_ms[i]),
            scheduled_ms=int(due[i]) / 1e6,
            options=None if batch.options is None else tuple(map(int, batch.options[i - batch.first])),
        )
        for batch in batches
        for i in range(batch.first, batch.end)
    )
    return LoadResult(report, records)


def highest_qps(measure: Callable[[float], LoadRun], start_qps: float) -> tuple[list[LoadRun], float | None]:
    """Search the highest rate that holds its SLO: doubled or halved from a start, then bisected to 5 %.

    At most 12 rates are tried, down to an eighth of the start; one that fails is tried again, since the machine may
    have paused. Near the limit it is a matter of chance whether a rate holds, and no rate below one that held is
    tried: what is found is the highest that was seen to hold.

    Args:
        measure: Runs the load at a rate; the run says whether it ``held``.
        start_qps: What one image at a time allows; at an eighth of that, hardly any waits for another.

    Returns:
        All runs in order, and that rate; None where none held.
    """
    runs: list[LoadRun] = []
    held, failed, qps, rates = 0.0, math.inf, start_qps, 0
    while rates < _MOST_TRIES and failed > _PRECISION * held and qps >= start_qps / 8:
        rates += 1
        runs.append(measure(qps))
        if not runs[-1].held:
            runs.append(measure(qps))
        held, failed = (qps, failed) if runs[-1].held else (held, qps)
        qps = 2 * held if math.isinf(failed) else (held + failed) / 2
    return runs, held or None


def run_offline(
    run: Run, images: Images, *, contender: str, batch: int, seconds: float, seed: int, clock: Clock = WALL
) -> LoadResult:
    """Run whole batches one after another: all images are there from the start.

    Args:
        run: As for :func:`run_server`.
        images: In an order that the seed draws, which begins again at its end.
        contender: Its name in the report.
        batch: Images per run.
        seconds: At least; the batch under way then is the last.
        seed: Of the order.
        clock: Another in tests.

    Raises:
        InputError: An argument is out of range.
    """
    _check_positive(batch=batch, seconds=seconds)
    order = _order(len(images), seed)
    records: list[RequestRecord] = []
    start = clock.now_ns()
    began = ended = 0
    while ended < seconds * 1e9:
        first = len(records) * batch
        rows = order[np.arange(first, first + batch) % len(order)]
        run(images[rows])
        began, ended = ended, clock.now_ns() - start
        records.append(
            RequestRecord(
                contender=contender,
                first_image=int(rows[0]),
                batch=batch,
                started_ms=began / 1e6,
                latency_ms=(ended - began) / 1e6,
            )
        )
    images_run = batch * len(records)
    report = LoadRun(
        contender=contender,
        offered_qps=None,
        completed_qps=images_run / (ended / 1e9),
        planned=images_run,
        completed=images_run,
        seconds=ended / 1e9,
        latency=latency_report(np.array([record.latency_ms for record in records])),
        mean_batch=float(batch),
    )
    return LoadResult(report, tuple(records))


def measure_load(
    runs: Mapping[str, Run],
    images: Images,
    *,
    scenario: Literal["server", "offline"],
    qps: float | None = None,
    slo_ms: float | None = None,
    seconds: float = 10.0,
    most_batch: int = 8,
    seed: int = 0,
    clock: Clock = WALL,
    progress: Progress = no_progress,
) -> tuple[LoadReport, tuple[RequestRecord, ...]]:
    """Put every contender, warmed up, under the same load, one after another.

    Args:
        runs: Name → what runs a batch; see :func:`run_server`.
        images: float32 ``[N, C, H, W]``, N ≥ 1.
        scenario: ``"server"``, or ``"offline"``: batches of ``most_batch``.
        qps: Of the server; None searches the highest that keeps ``slo_ms``, from what one image at a time allows.
        slo_ms: See :func:`run_server`.
        seconds: Of each run.
        most_batch: Images that are run together at most.
        seed: All contenders meet the same arrivals and images; at another rate the same ones, scaled.
        clock: Another in tests.
        progress: Told of runs; of searches, as many as they may take.

    Returns:
        The report, and the records of the requests: after a search, of the runs at the rates found.

    Raises:
        InputError: An argument is out of range or does not fit the scenario, or no contender is within the SLO
            with one image alone.
    """
    check_scenario(scenario, qps, slo_ms)
    _check_positive(qps=qps, slo_ms=slo_ms, seconds=seconds, most_batch=most_batch)
    if not len(images):
        raise InputError("there are no images to run")
    for run in runs.values():
        warm_up(run, images, [1, most_batch] if scenario == "offline" else _sizes(most_batch))
    lone_ms = {name: _lone_ms(run, images, clock) for name, run in runs.items()}
    _check_reachable(slo_ms, lone_ms)
    done: list[LoadRun] = []
    records: list[RequestRecord] = []
    highest: dict[str, float | None] = {}
    same: dict[str, Any] = {"seconds": seconds, "seed": seed, "clock": clock}
    most_runs = 1 if scenario == "offline" or qps is not None else 2 * _MOST_TRIES

    def tell(index: int, ran: int) -> None:
        progress("load, runs at most", most_runs * index + ran, most_runs * len(runs))

    with old_objects_left_alone():
        for index, (name, run) in enumerate(runs.items()):
            tell(index, 0)
            if scenario == "offline":
                result = run_offline(run, images, contender=name, batch=most_batch, **same)
                tried, kept = [result.run], result.records
            else:
                serve = partial(
                    run_server, run, images, contender=name, most_batch=most_batch, slo_ms=slo_ms, **same
                )
                tried, kept, found = _served(serve, qps, lone_ms[name], partial(tell, index))
                highest.update({} if qps is not None else {name: found})
            done += tried
            records += kept
    tell(len(runs), 0)
    report = LoadReport(
        scenario=scenario,
        most_batch=most_batch,
        seed=seed,
        slo_ms=slo_ms,
        runs=tuple(done),
        highest_qps=highest,
    )
    return report, tuple(records)


def _served(
    serve: Callable[..., LoadResult], qps: float | None, lone_ms: float, tell: Callable[[int], None]
) -> tuple[list[LoadRun], tuple[RequestRecord, ...], float | None]:
    """Runs at the rate given, or of a search; the records of one, or of the highest rate that held; that rate."""
    results: dict[float | None, LoadResult] = {}

    def measure(rate: float) -> LoadRun:
        results[rate] = serve(qps=rate)
        tell(len(results))
        return results[rate].run

    if qps is not None:
        return [measure(qps)], results[qps].records, None
    runs, highest = highest_qps(measure, 1000 / max(lone_ms, 1e-3))
    return runs, () if highest is None else results[highest].records, highest


def _sizes(most_batch: int) -> list[int]:
    """Batch sizes to warm up: every one, or of many some."""
    if most_batch <= _MOST_WARM:
        return list(range(1, most_batch + 1))
    spread = np.geomspace(1, most_batch, _MOST_WARM).round().astype(int)
    return sorted(set(map(int, spread)))


def _order(count: int, seed: int) -> NDArray[np.int64]:
    """The images' rows in the order of a seed, which is not that of the arrivals."""
    return np.random.default_rng([seed, 1]).permutation(count)


def _lone_ms(run: Run, images: Images, clock: Clock) -> float:
    """Median latency of single images."""
    times = [clock.now_ns()]
    for i in range(_LONE_RUNS):
        row = i % len(images)
        run(images[row : row + 1])
        times.append(clock.now_ns())
    return float(np.median(np.diff(times)) / 1e6)


def check_scenario(scenario: str, qps: float | None, slo_ms: float | None) -> None:
    """Raises InputError where there is no such scenario, or rate and SLO do not fit it."""
    if scenario not in ("single-stream", "server", "offline"):
        raise InputError(f"the scenario is {scenario!r}; use 'single-stream', 'server' or 'offline'")
    if scenario != "server" and (qps is not None or slo_ms is not None):
        raise InputError(
            f"a rate and an SLO are a server's, and the scenario is {scenario!r}; leave them out"
        )
    if scenario == "server" and qps is None and slo_ms is None:
        raise InputError(
            "the server scenario needs a rate, qps, or an SLO, slo_ms, to search the highest rate for"
        )


def _check_reachable(slo_ms: float | None, lone_ms: Mapping[str, float]) -> None:
    name, fastest_ms = min(lone_ms.items(), key=lambda item: item[1])
    if slo_ms is not None and fastest_ms > slo_ms:
        raise InputError(
            f"no rate keeps an SLO of {slo_ms:g} ms: one image alone takes {fastest_ms:.3g} ms at p50 ({name}, "
            "the fastest there is); allow more"
        )


def _check_positive(**values: float | None) -> None:
    for name, value in values.items():
        if value is not None and not 0 < value < math.inf:
            raise InputError(f"{name} is {value}; pass a number above 0")
