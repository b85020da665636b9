"""A network timed from without and from within, beside its rivals, in one run."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rnp_deploy.benchmarking.agent_nodes import agent_call_ms
from rnp_deploy.benchmarking.balance import balance_of
from rnp_deploy.benchmarking.baselines import baseline_rival
from rnp_deploy.benchmarking.batch_sweep import sweep_batches
from rnp_deploy.benchmarking.cautions import warnings_of
from rnp_deploy.benchmarking.contenders import (
    CONTROLLER,
    Entry,
    accuracy_of,
    contender_reports,
    dense_entry,
    entries_of,
    is_right,
    outputs_of,
    run_records,
)
from rnp_deploy.benchmarking.decisions import decision_report
from rnp_deploy.benchmarking.energy import measure_energy, open_energy_meter
from rnp_deploy.benchmarking.environment import environment
from rnp_deploy.benchmarking.inputs import Inputs
from rnp_deploy.benchmarking.load import measure_load
from rnp_deploy.benchmarking.measures import Energy
from rnp_deploy.benchmarking.penalty_sweep import deciding, sweep_penalties
from rnp_deploy.benchmarking.pieces import expected_latency, time_pieces
from rnp_deploy.benchmarking.report import (
    Balance,
    BatchSweep,
    BenchReport,
    Expected,
    LoadReport,
    PieceReport,
    RequestRecord,
    Settings,
    Split,
)
from rnp_deploy.benchmarking.rivals import Rival, nearest_path, open_rivals, rival_bundle, static_contender
from rnp_deploy.benchmarking.settings import BenchSettings, check_settings
from rnp_deploy.benchmarking.split import MeasuredController, open_measured, split_report
from rnp_deploy.benchmarking.subject import subject_of
from rnp_deploy.benchmarking.thumbnails import image_reports
from rnp_deploy.benchmarking.timing import (
    Contender,
    Images,
    Measurement,
    Timed,
    timed_in_turns,
    whole_batches,
)
from rnp_deploy.bundle.reading import Bundle
from rnp_deploy.controller import Controller
from rnp_deploy.engines.backends import Opened, open_backend
from rnp_deploy.latency_calibration import default_penalties
from rnp_deploy.progress import Progress, no_progress

__all__ = ["benchmark"]

_MOST_PARTS = 64  # distinct batches that are timed in turn
_PIECE_BATCHES = 16  # of which branches are timed


class _Decided(NamedTuple):
    """What the controller did with every image: outputs ``[N, ...]``, options ``[N, T]``, MACs ``[N]``."""

    outputs: NDArray[np.float32]
    options: NDArray[np.int64]
    macs: NDArray[np.int64]


def benchmark(
    path: str | Path,
    inputs: Inputs,
    settings: BenchSettings | None = None,
    *,
    command: str | None = None,
    progress: Progress = no_progress,
) -> BenchReport:
    """Time a bundle or engine set, its rivals, and what it spends its time on.

    Contenders take turns in one measurement; energy, loads, and the times of branches follow one after
    another, since they need the machine to themselves.

    Args:
        path: A bundle or engine set.
        inputs: At least ``settings.batch`` images.
        settings: None is the default of each.
        command: For the report.
        progress: Told of all that takes long.

    Raises:
        InputError: Inputs or settings that do not fit each other or the network.
        BundleError, EngineError: As :meth:`rnp_deploy.Controller.load`.
    """
    settings = settings or BenchSettings()
    check_settings(settings, len(inputs.images))
    opened = open_backend(path, settings.backend, settings.device, settings.threads, "")
    with (
        Controller.over(opened) as controller,
        open_measured(path, settings.backend, settings.device, settings.threads) as measured,
    ):
        bundle = rival_bundle(opened, settings.bundle)
        baselines = [
            baseline_rival(
                file, opened, batch=settings.batch, threads=settings.threads, penalty=settings.penalty
            )
            for file in settings.baselines
        ]
        bench = _Bench(
            Path(path), inputs, settings, opened, controller, measured, bundle, baselines, progress
        )
        return bench.report(command)


@dataclass(frozen=True)
class _Bench:
    """What all parts of a benchmark share."""

    path: Path
    inputs: Inputs
    settings: BenchSettings
    opened: Opened
    controller: Controller
    measured: MeasuredController
    bundle: Bundle | None
    baselines: Sequence[Rival]
    progress: Progress

    def report(self, command: str | None) -> BenchReport:
        """Measure all that was asked for."""
        settings, manifest = self.settings, self.controller.manifest
        created, machine = (
            datetime.now(timezone.utc),
            environment(settings.threads, device=self.opened.device),
        )
        decided = self._decide()
        parts = self._parts()
        timed_images = slice(len(parts) * settings.batch)
        rivals = self._rivals(decided.options[timed_images], decided.macs[timed_images])
        entries = entries_of(
            self.controller, rivals, decided.options, batch=settings.batch, penalty=settings.penalty,
            timed_images=timed_images,
        )  # fmt: skip
        dense, labels = dense_entry(entries), self.inputs.labels
        correct = None if labels is None else is_right(decided.outputs, labels)
        load, requests = self._load(dense)  # first, since it fails where no rate keeps the limit
        measurement = self._timed({entry.name: entry.run for entry in entries}, parts)
        timed = measurement.timed
        split = self._split(parts)
        contenders = contender_reports(
            entries, timed, self._accuracies(entries, decided), self._energies(entries, parts), settings.batch
        )
        pieces, expected = self._pieces(parts, decided)
        cheapest, dearest = image_reports(
            self.inputs.images, self.inputs.labels, decided.options, decided.macs, decided.outputs, manifest
        )
        return BenchReport(
            created=created.isoformat(timespec="seconds"),
            command=command,
            subject=subject_of(self.path, self.opened),
            data=self.inputs.described(),
            settings=self._settings(measurement),
            environment=machine,
            warnings=warnings_of(
                contenders, split, measurement, random=self.inputs.random, trained=manifest.agent_trained
            ),
            contenders=contenders,
            split=split,
            decisions=decision_report(
                decided.options, decided.macs, manifest, self._path_ms(timed, decided), correct
            ),
            pieces=pieces,
            expected=expected,
            load=load,
            batches=self._batches(dense),
            balance=self._balance(dense),
            cheapest=cheapest,
            dearest=dearest,
            records=(*run_records(entries, timed, decided.options, settings.batch), *requests)
            if settings.records
            else (),
        )  # fmt: skip

    def _decide(self) -> _Decided:
        """Run every image once, in batches; a last short one is run as it is."""
        images, batch = self.inputs.images, self.settings.batch
        results = []
        for start in range(0, len(images), batch):
            results.append(self.controller.run(images[start : start + batch], penalty=self.settings.penalty))
            self.progress("deciding, images", min(start + batch, len(images)), len(images))
        return _Decided(
            *(np.concatenate([getattr(result, name) for result in results]) for name in _Decided._fields)
        )

    def _rivals(self, options: NDArray[np.int64], macs: NDArray[np.int64]) -> list[Rival]:
        if self.bundle is None:
            return list(self.baselines)
        nearest = nearest_path(options, macs, self.bundle.manifest)
        batch, threads = self.settings.batch, self.settings.threads
        return [
            *open_rivals(self.bundle, self.opened, batch=batch, threads=threads, nearest=nearest),
            *self.baselines,
        ]

    def _parts(self) -> list[Images]:
        """Whole batches, which are timed in turn; so few that each is run twice, to see what is noise."""
        most = min(_MOST_PARTS, self.settings.min_runs // 2)
        return whole_batches(self.inputs.images, self.settings.batch, most)

    def _timed(self, contenders: Mapping[str, Contender], parts: Sequence[Images]) -> Measurement[str]:
        settings, memory = self.settings, self.opened.memory
        return timed_in_turns(
            contenders,
            parts,
            duration_s=settings.duration_s,
            min_runs=settings.min_runs,
            warm_up_s=settings.warm_up_s,
            seed=settings.seed,
            device_timer=None if memory.on_host else memory.timer,  # type: ignore[attr-defined]  # a device's
            progress=self.progress,
        )

    def _split(self, parts: Sequence[Images]) -> Split:
        """Of turns of their own, in which what the two controllers find in the caches is alike."""
        settings = self.settings

        def measured(_: int, part: Images) -> None:
            self.measured.run(part, penalty=settings.penalty)

        plain = deciding(self.controller, settings.penalty)
        whole = self._timed({"plain": plain, "measured": measured}, parts).timed["plain"]
        runs = self.measured.take()[-len(whole.batch_of) :]  # those before warmed up
        within = agent_call_ms(
            self.path, settings.backend, settings.device, settings.threads, parts[:_PIECE_BATCHES],
            penalty=settings.penalty,
        )  # fmt: skip
        return split_report(runs, whole.latencies_ms, whole.batch_of, within)

    def _pieces(self, parts: Sequence[Images], decided: _Decided) -> tuple[tuple[PieceReport, ...], Expected]:
        """Every branch, and what the plain controller takes meanwhile, beside what its branches let expect."""
        settings = self.settings
        if not settings.pieces:
            return (), Expected(reason="branches were not timed")
        beside = parts[:_PIECE_BATCHES]
        turns = itertools.cycle(beside)
        timed = time_pieces(
            self.measured,
            self.inputs.images,
            beside=lambda: self.controller.run(next(turns), penalty=settings.penalty),
            penalty=settings.penalty,
            batch=settings.batch,
            min_runs=2 * _PIECE_BATCHES,
            duration_s=settings.duration_s,
            seed=settings.seed,
            progress=self.progress,
        )
        expected = expected_latency(
            timed.pieces,
            decided.options[: len(beside)],
            self.controller.plan,
            timed.beside_ms or 0.0,
            settings.batch,
        )
        return timed.pieces, expected

    def _accuracies(self, entries: Sequence[Entry], decided: _Decided) -> dict[str, float | None]:
        """By name; paths that several take are computed once."""
        images, labels = self.inputs.images, self.inputs.labels
        if labels is None:
            return {}
        found: dict[Any, float | None] = {"decided": accuracy_of(decided.outputs, labels)}
        accuracies = {}
        for done, entry in enumerate(entries):
            key = "decided" if entry.kind in ("controller", "given") else entry.options or entry.name
            if key not in found:
                outputs = outputs_of(entry.run, images, self.settings.batch)
                fits = outputs.size == len(images) * decided.outputs[0].size
                found[key] = accuracy_of(outputs, labels) if fits else None
            accuracies[entry.name] = found[key]
            self.progress("accuracy, contenders", done + 1, len(entries))
        return accuracies

    def _energies(self, entries: Sequence[Entry], parts: Sequence[Images]) -> dict[str, Energy]:
        meter = open_energy_meter(self.opened.device)
        return {
            entry.name: measure_energy(meter, entry.run, parts, batch=self.settings.batch)
            for entry in entries
        }

    def _path_ms(self, timed: Mapping[str, Timed], decided: _Decided) -> dict[tuple[int, ...], float]:
        """Median latency of batches whose images all took one path, by that path."""
        runs, batch, by_path = timed[CONTROLLER], self.settings.batch, dict[tuple[int, ...], list[float]]()
        for i in np.unique(runs.batch_of).tolist():
            paths = np.unique(decided.options[i * batch : (i + 1) * batch], axis=0)
            if len(paths) == 1:
                by_path.setdefault(tuple(paths[0].tolist()), []).extend(runs.latencies_ms[runs.batch_of == i])
        return {path: float(np.median(latencies)) for path, latencies in by_path.items()}

    def _load(self, dense: Entry) -> tuple[LoadReport | None, tuple[RequestRecord, ...]]:
        settings = self.settings
        if settings.scenario == "single-stream":
            return None, ()
        runs: dict[str, Any] = {
            CONTROLLER: lambda images: self.controller.run(images, penalty=settings.penalty)
        }
        if dense.kind == "dense":
            runs[dense.name] = partial(self._dense_for(settings.most_batch, dense), 0)
        return measure_load(
            runs,
            self.inputs.images,
            scenario=settings.scenario,
            qps=settings.qps,
            slo_ms=settings.slo_ms,
            seconds=settings.duration_s,
            most_batch=settings.most_batch,
            seed=settings.seed,
            progress=self.progress,
        )

    def _batches(self, dense: Entry) -> BatchSweep | None:
        settings = self.settings
        if not settings.batches:
            return None
        return sweep_batches(
            self.controller,
            self.inputs.images,
            batches=settings.batches,
            penalty=settings.penalty,
            dense=partial(self._dense_for, dense=dense) if dense.kind == "dense" else None,
            duration_s=settings.duration_s,
            min_runs=settings.min_runs,
            seed=settings.seed,
            progress=self.progress,
        )

    def _balance(self, dense: Entry) -> Balance | None:
        settings = self.settings
        if not settings.balance:
            return None
        sweep = sweep_penalties(
            self.controller,
            self.inputs.images,
            default_penalties(self.controller.manifest),
            batch=settings.batch,
            duration_s=settings.duration_s,
            min_runs=settings.min_runs,
            dense=dense.run if dense.kind == "dense" else None,
            seed=settings.seed,
            progress=self.progress,
        )
        meter = open_energy_meter(self.opened.device)
        energy = partial(measure_energy, meter, batch=settings.batch)
        return balance_of(sweep, self.inputs.labels, energy=energy, seed=settings.seed)

    def _dense_for(self, batch: int, dense: Entry) -> Contender:
        """The dense network's one graph, for other batches too: TensorRT builds it for one size."""
        if self.opened.backend != "tensorrt" or batch == self.settings.batch or self.bundle is None:
            return dense.run
        full = self.controller.manifest.option_counts
        return static_contender(self.bundle, self.opened, full, batch=batch, threads=self.settings.threads)

    def _settings(self, measurement: Measurement[str]) -> Settings:
        settings = self.settings
        return Settings(
            batch=settings.batch,
            penalty=settings.penalty,
            threads=settings.threads,
            duration_s=float(settings.duration_s),
            min_runs=settings.min_runs,
            seed=settings.seed,
            scenario=settings.scenario,
            warm_up_s=measurement.warm_up_s,
        )
