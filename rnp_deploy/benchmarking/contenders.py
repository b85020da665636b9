"""Who takes turns in a benchmark: the rivals, and the controller in each of its ways."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rnp_deploy.benchmarking.measures import Energy
from rnp_deploy.benchmarking.penalty_sweep import deciding
from rnp_deploy.benchmarking.report import ContenderReport, RequestRecord
from rnp_deploy.benchmarking.rivals import Rival
from rnp_deploy.benchmarking.statistics import classes_of, latency_report
from rnp_deploy.benchmarking.timing import Contender, Images, Timed
from rnp_deploy.controller import Controller, Result

__all__ = [
    "CONTROLLER",
    "Entry",
    "accuracy_of",
    "contender_reports",
    "dense_entry",
    "entries_of",
    "is_right",
    "outputs_of",
    "run_records",
]

CONTROLLER = "controller"
_GIVEN = "controller, its decisions given"


class Entry(NamedTuple):
    """One of them; fields as in :class:`rnp_deploy.benchmarking.report.ContenderReport`.

    ``macs_share`` of the controller is known once the images that were timed are.
    """

    name: str
    kind: Any
    options: tuple[int, ...] | None
    macs_share: float | None
    run: Contender
    nearest: bool = False


def entries_of(
    controller: Controller,
    rivals: Sequence[Rival],
    decided: NDArray[np.int64],
    *,
    batch: int,
    penalty: float | None,
    timed_images: slice,
) -> list[Entry]:
    """The rivals, the controller deciding, with its own decisions given, and with each option held.

    Args:
        controller: Open.
        rivals: Open, on the same bundle.
        decided: ``[N, T]``, the options it takes for every image.
        batch: Images per run; batch i begins with image i times this.
        penalty: That the controller is run with.
        timed_images: Those that will be timed.
    """
    manifest = controller.manifest
    shares = [manifest.path_macs(options) / manifest.macs for options in decided[timed_images].tolist()]
    share, agent = math.fsum(shares) / len(shares), sum(step.macs for step in manifest.agent.steps)

    def held(j: int) -> Entry:
        options = manifest.uniform_options(j)
        run: Contender = lambda _, part: controller.run(part, options=np.tile(options, (len(part), 1)))  # noqa: E731
        return Entry(
            f"controller, option {j} held", "held", options, manifest.path_macs(options) / manifest.macs, run
        )

    def given(i: int, part: Images) -> Result:
        return controller.run(part, options=decided[i * batch : i * batch + len(part)])

    return [
        *(
            Entry(rival.name, rival.kind, rival.options, rival.macs_share, rival.contender, rival.nearest)
            for rival in rivals
        ),
        Entry(CONTROLLER, "controller", None, share + agent / manifest.macs, deciding(controller, penalty)),
        Entry(_GIVEN, "given", None, share, given),
        *(held(j) for j in range(manifest.groups, 0, -1)),
    ]


def dense_entry(entries: Sequence[Entry]) -> Entry:
    """What speed-ups are over: the dense network in one graph, or without one the controller at its last option."""
    return next(entry for entry in entries if entry.kind in ("dense", "held"))


def contender_reports(
    entries: Sequence[Entry],
    timed: Mapping[Any, Timed],
    accuracies: Mapping[str, float | None],
    energies: Mapping[str, Energy],
    batch: int,
) -> tuple[ContenderReport, ...]:
    """What is reported of each, in their order; ``timed``, accuracies and energies are by name."""
    latencies = {
        entry.name: latency_report(runs.latencies_ms, runs.batch_of, device_ms=runs.device_ms)
        for entry, runs in ((entry, timed[entry.name]) for entry in entries)
    }
    dense_ms = latencies[dense_entry(entries).name].typical_ms
    reports = []
    for entry in entries:
        latency = latencies[entry.name]
        speedup = dense_ms / latency.typical_ms
        reports.append(
            ContenderReport(
                name=entry.name,
                kind=entry.kind,
                options=entry.options,
                latency=latency,
                macs_share=entry.macs_share,
                speedup=speedup,
                efficiency=None if entry.macs_share is None else speedup * entry.macs_share,
                accuracy=accuracies.get(entry.name),
                nearest=entry.nearest,
                images_per_s=1e3 * batch / latency.mean_ms,
                energy=energies[entry.name],
            )
        )
    return tuple(reports)


def accuracy_of(outputs: NDArray[Any], labels: NDArray[np.int64]) -> float:
    """Share of ``outputs`` ``[N, ...]`` whose largest value is that of the label."""
    return float(is_right(outputs, labels).mean())


def is_right(outputs: NDArray[Any], labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """``[N]``, whether the largest value of ``outputs`` ``[N, ...]`` is that of the label."""
    right: NDArray[np.bool_] = classes_of(outputs) == labels
    return right


def outputs_of(run: Contender, images: Images, batch: int) -> NDArray[Any]:
    """Outputs ``[N, ...]`` of all images, a last short batch filled up with its first image."""
    made = []
    for i, start in enumerate(range(0, len(images), batch)):
        part = images[start : start + batch]
        short = batch - len(part)
        whole = np.concatenate([part, np.repeat(part[:1], short, axis=0)]) if short else part
        result = run(i, whole)
        made.append(np.array(getattr(result, "outputs", result))[: len(part)])
    return np.concatenate(made)


def run_records(
    entries: Sequence[Entry], timed: Mapping[Any, Timed], decided: NDArray[np.int64], batch: int
) -> tuple[RequestRecord, ...]:
    """Every run of every contender; options of the controller where a batch is one image."""
    records = []
    for entry in entries:
        runs = timed[entry.name]
        for i, started, took in zip(runs.batch_of, runs.started_ms, runs.latencies_ms, strict=True):
            options = entry.options
            if entry.kind in ("controller", "given") and batch == 1:
                options = tuple(decided[i].tolist())
            records.append(
                RequestRecord(
                    contender=entry.name,
                    first_image=int(i) * batch,
                    batch=batch,
                    started_ms=float(started),
                    latency_ms=float(took),
                    options=options,
                )
            )
    return tuple(records)
