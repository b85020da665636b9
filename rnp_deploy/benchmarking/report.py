"""What ``rnp-bench`` reports: the names and units of every field, which stay within a major version.

Latencies are of a whole batch, in ms; shares, accuracies and probabilities are 0..1. What could not
be measured is None (``null``), and where that needs a reason, a field beside it gives one.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from rnp_deploy.benchmarking.measures import Energy, Latency, Milliseconds, Percentile, Share
from rnp_deploy.bundle.fields import Count, Finite, Frozen, Size

__all__ = [
    "RANDOM_STAMP",
    "SCHEMA_VERSION",
    "Balance",
    "BalancePoint",
    "BatchPoint",
    "BatchSweep",
    "BenchReport",
    "ContenderReport",
    "DataReport",
    "DecisionReport",
    "Expected",
    "ImageReport",
    "LoadReport",
    "LoadRun",
    "PathReport",
    "PaysFrom",
    "PieceReport",
    "RequestRecord",
    "Settings",
    "Split",
    "Subject",
]

SCHEMA_VERSION = "1.0"
RANDOM_STAMP = "random inputs: the decisions mean nothing"

Options = tuple[Size, ...]


class Subject(Frozen):
    """What was timed.

    ``kind`` is ``"bundle"`` or ``"engine set"``; ``manifest_sha256`` the hash of its ``manifest.json``, one decision
    per entry of ``convs`` and ``widths``; ``macs`` the full network's, per image; ``agent_macs`` those of all steps.
    """

    path: str
    kind: Literal["bundle", "engine set"]
    manifest_sha256: str
    backend: str
    device: str
    precision: str
    macs: Count
    agent_macs: Count
    agent_trained: bool
    convs: tuple[str, ...]
    widths: tuple[tuple[Size, ...], ...]


class DataReport(Frozen):
    """The inputs; ``stamp`` is :data:`RANDOM_STAMP` where they are random, ``sha256`` of all images and labels."""

    name: str
    images: Count
    sha256: str
    labelled: bool
    stamp: str | None = None


class Settings(Frozen):
    """How it was measured; ``penalty`` None is the agent's own, ``threads`` None one per core."""

    batch: Size
    penalty: float | None
    threads: Size | None
    duration_s: Finite
    min_runs: Size
    seed: Count
    scenario: Literal["single-stream", "server", "offline"]
    warm_up_s: Finite


class ContenderReport(Frozen):
    """One of those that took turns.

    Attributes:
        name: Unique within a report.
        kind: ``dense`` and ``static`` are single graphs of one width, ``nearest`` the single graph of the path
            nearest in MACs to the controller's mean; ``given`` is the controller with its own decisions given to it,
            ``held`` with one option everywhere.
        options: One per decision; None where they are chosen, or not ours.
        macs_share: Mean MACs ÷ the full network's, the agent's included where it ran; None for a baseline.
        speedup: The dense network's ``typical_ms`` ÷ this one's: like the MACs, a mean over images.
        efficiency: ``speedup`` times ``macs_share``: actual ÷ theoretical speed-up.
        accuracy: None without labels, or where it was not looked at.
        nearest: Whether no other path's single graph is nearer in MACs to the controller's mean.
        images_per_s: Batch ÷ mean latency.
    """

    name: str
    kind: Literal["dense", "static", "nearest", "single-file", "baseline", "controller", "given", "held"]
    options: Options | None = None
    latency: Latency
    macs_share: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    speedup: Finite | None = None
    efficiency: Finite | None = None
    accuracy: Share | None = None
    nearest: bool = False
    images_per_s: Finite
    energy: Energy


class Split(Frozen):
    """Where the controller's time goes, as means of runs of the whole batch; the five parts add up to ``sum_ms``.

    The slowest 2 % of the runs are left out of both: the machine paused in them.

    Attributes:
        whole_ms: A run that nothing is measured in.
        agent_ms, pieces_ms: Inside the agent's steps, and inside the branches.
        read_back_ms: From the end of what decides until the next piece is called: the host reads the option, and
            finds the piece.
        regrouping_ms: Samples that part: sorted by option, copied together, put back.
        dispatch_ms: All else: checks, inputs in, the loop, outputs out.
        agent_source: How the agent's part was told apart.
        host_share: (read-back + dispatch) ÷ sum.
        runs: Of each of the two.
    """

    whole_ms: Milliseconds
    sum_ms: Milliseconds
    agent_ms: Milliseconds
    pieces_ms: Milliseconds
    read_back_ms: Milliseconds
    regrouping_ms: Milliseconds
    dispatch_ms: Milliseconds
    agent_source: Literal[
        "steps of its own", "nodes within pieces, by the runtime's profiler", "not told apart"
    ]
    host_share: Share
    runs: Count


class PieceReport(Frozen):
    """One branch or agent step, timed within whole runs, where caches are as cold as in use.

    Attributes:
        step: Of the plan; ``decisions`` are those whose options name the piece, ``options`` these.
        agent: Whether it is an agent step and nothing else.
        macs: Of one image.
        bytes_moved: Weights once, inputs and outputs of a batch: what leaves or enters the piece at least.
        gmacs_per_s: By its median latency; None without MACs.
        intensity: MACs of the batch ÷ ``bytes_moved``.
        not_faster_than: The options of the next wider piece that is as fast or faster; None where narrower pays.
    """

    step: Count
    file: str
    agent: bool
    decisions: tuple[Count, ...]
    options: Options
    macs: Count
    bytes_moved: Count
    runs: Count
    p50_ms: Milliseconds
    mean_ms: Milliseconds
    gmacs_per_s: Finite | None
    intensity: Finite | None
    not_faster_than: Options | None = None


class PathReport(Frozen):
    """A choice of options that images took; ``macs_share`` is the backbone's.

    ``p50_ms`` is of batches that took it, None where none was timed; ``accuracy`` of its images, None without labels.
    """

    options: Options
    images: Count
    share: Share
    macs_share: Finite
    p50_ms: Milliseconds | None = None
    accuracy: Share | None = None


class DecisionReport(Frozen):
    """What the agent decided.

    ``counts[t][j-1]`` images took option j at decision t; ``entropy_bits[t]`` of these; ``paths`` are the most
    frequent, first first, of ``distinct_paths``; ``path_entropy_bits`` of all.
    """

    counts: tuple[tuple[Count, ...], ...]
    entropy_bits: tuple[Finite, ...]
    distinct_paths: Count
    path_entropy_bits: Finite
    paths: tuple[PathReport, ...]


class Expected(Frozen):
    """The sum over paths of p(path) times the mean latencies of its pieces, agent steps among them.

    ``measured_ms`` is the mean of the runs that nothing was measured in; ``ratio`` expected ÷ measured. For one
    image a run; else None, with the ``reason``.
    """

    expected_ms: Milliseconds | None = None
    measured_ms: Milliseconds | None = None
    ratio: Finite | None = None
    reason: str | None = None


class LoadRun(Frozen):
    """One run of a scenario.

    Attributes:
        contender: ``"controller"``, or a rival's name.
        offered_qps: Images asked for per second; None offline.
        completed_qps: Answered ÷ the time from the first scheduled arrival to the last answer.
        latency: Of those answered, from the scheduled arrival to the answer, waiting included; offline of whole
            batches.
        mean_batch: Images that were run together.
        within_slo: Share of the planned requests answered in time; those never sent count as late.
        held: Whether all were sent, and at most 1 % were late; None without an SLO.
        stopped_early: It was clear before the end that it would not hold, or, without an SLO, that the queue grew.
    """

    contender: str
    offered_qps: Finite | None
    completed_qps: Finite
    planned: Count
    completed: Count
    seconds: Finite
    latency: Latency | None
    mean_batch: Finite
    slo_ms: Finite | None = None
    within_slo: Share | None = None
    held: bool | None = None
    stopped_early: bool = False


class LoadReport(Frozen):
    """MLPerf-style load: Poisson arrivals (``server``), or all at once (``offline``); not an MLPerf result.

    ``highest_qps`` holds, by contender, the highest rate tried at which p99 was within ``slo_ms``; None where none was.
    """

    scenario: Literal["server", "offline"]
    most_batch: Size
    seed: Count
    slo_ms: Finite | None = None
    runs: tuple[LoadRun, ...]
    highest_qps: dict[str, Finite | None] = Field(default_factory=dict)


class BatchPoint(Frozen):
    """A batch size under one policy, or of the dense network; ``policy`` is ``"dense"`` there."""

    batch: Size
    policy: str
    p50_ms: Milliseconds
    ms_per_image: Milliseconds
    images_per_s: Finite
    runs: Count


class PaysFrom(Frozen):
    """The smallest batch from which on a policy was faster than ``over`` at every size swept; None: never."""

    policy: str
    over: str
    batch: Size | None


class BatchSweep(Frozen):
    """Divergent batches side by side."""

    points: tuple[BatchPoint, ...]
    pays_from: tuple[PaysFrom, ...]


class BalancePoint(Frozen):
    """One penalty; intervals are 95 %, by bootstrap over images. ``pareto``: no other is both faster and as accurate.

    ``macs_share`` is the backbone's mean MACs ÷ the full network's, without the agent's, as in the calibrated curve.
    Without labels ``accuracy`` is None, and ``pareto`` says nothing: it is None too.
    """

    penalty: Finite
    macs_share: Finite
    macs_share_low: Finite
    macs_share_high: Finite
    accuracy: Share | None
    accuracy_low: Share | None
    accuracy_high: Share | None
    p50: Percentile
    p95_ms: Milliseconds | None
    p99: Percentile | None
    runs: Count
    energy: Energy
    pareto: bool | None


class Balance(Frozen):
    """Speed beside accuracy over the penalty; ``points`` at rising penalties, ``dense`` what one graph does."""

    points: tuple[BalancePoint, ...]
    dense_p50_ms: Milliseconds | None
    dense_accuracy: Share | None


class ImageReport(Frozen):
    """One of the cheapest or dearest images; ``thumbnail`` is a PNG in base64, as the network sees it."""

    index: Count
    macs_share: Finite
    options: Options
    predicted: str
    label: str | None
    thumbnail: str | None


class RequestRecord(Frozen):
    """One run of one contender, or one request of a load.

    ``first_image`` is the row of the data that its batch begins with, of a request its own; times count from the
    start of the measurement, ``scheduled_ms`` is when a request was due.
    """

    contender: str
    first_image: Count
    batch: Size
    started_ms: Milliseconds
    latency_ms: Milliseconds
    scheduled_ms: Milliseconds | None = None
    options: Options | None = None
    macs_share: Finite | None = None


class BenchReport(Frozen):
    """All of it; what was not asked for is None or empty."""

    schema_version: str = SCHEMA_VERSION
    created: str
    command: str | None
    subject: Subject
    data: DataReport
    settings: Settings
    environment: dict[str, Any]
    warnings: tuple[str, ...] = ()
    contenders: tuple[ContenderReport, ...]
    split: Split | None = None
    decisions: DecisionReport
    pieces: tuple[PieceReport, ...] = ()
    expected: Expected
    load: LoadReport | None = None
    batches: BatchSweep | None = None
    balance: Balance | None = None
    cheapest: tuple[ImageReport, ...] = ()
    dearest: tuple[ImageReport, ...] = ()
    records: tuple[RequestRecord, ...] = ()
