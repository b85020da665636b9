"""Reports of rnp-bench as examples: full, of random inputs, with next to nothing, and large and hostile."""

from __future__ import annotations

import base64
import io
import math

import numpy as np
from PIL import Image

from rnp_deploy.benchmarking.measures import Energy, Latency, Percentile
from rnp_deploy.benchmarking.report import (
    RANDOM_STAMP,
    Balance,
    BalancePoint,
    BatchPoint,
    BatchSweep,
    BenchReport,
    ContenderReport,
    DataReport,
    DecisionReport,
    Expected,
    ImageReport,
    LoadReport,
    LoadRun,
    PathReport,
    PaysFrom,
    PieceReport,
    RequestRecord,
    Settings,
    Split,
    Subject,
)

__all__ = ["hostile_report", "labelled_report", "minimal_report", "random_inputs_report"]

CLASSES = ("aeroplane", "bird", "cat", "dog", "frog", "horse")
NOT_MEASURED = Energy(reason="RAPL counters cannot be read: permission denied")


def labelled_report(
    decisions: int = 12, pieces: int = 120, convs: tuple[str, ...] = (), classes: tuple[str, ...] = CLASSES
) -> BenchReport:
    """Everything that a report can hold, of images with labels."""
    convs = convs or tuple(f"features.{3 * t}" for t in range(decisions))
    return BenchReport(
        created="2025-03-14T15:09:26+00:00",
        command="rnp-bench vgg16-set --data folder:photos --scenario server --slo-ms 12 --html report.html",
        subject=_subject(convs),
        data=DataReport(name="folder:photos", images=1000, sha256="5e" * 32, labelled=True),
        settings=_settings(),
        environment={
            "cpu": {"model": "AMD EPYC 7B13", "cores": 2, "governor": None},
            "gpu": None,
            "versions": {"numpy": "2.4.6", "onnxruntime": "1.32.0", "rnp-deploy": "0.1.0"},
            "git": {"revision": "74ea7d8", "changed": False},
            "threads": [1, 2],
        },
        warnings=("static 25 %: the coefficient of variation is 4.1 %, more than 2.5 %: another program ran",),
        contenders=_contenders(decisions),
        split=Split(
            whole_ms=3.21, sum_ms=3.28, agent_ms=0.31, pieces_ms=2.55, read_back_ms=0.12, regrouping_ms=0.05,
            dispatch_ms=0.25, agent_source="nodes within pieces, by the runtime's profiler", host_share=0.113,
            runs=412,
        ),
        decisions=_decisions(decisions),
        pieces=_pieces(decisions, pieces),
        expected=Expected(expected_ms=3.11, measured_ms=3.21, ratio=3.11 / 3.21),
        load=_load(),
        batches=_batches(),
        balance=_balance(labelled=True),
        cheapest=tuple(_image(i, 0.31 + 0.01 * i, decisions, classes) for i in range(8)),
        dearest=tuple(_image(20 + i, 0.92 - 0.01 * i, decisions, classes) for i in range(8)),
        records=(
            RequestRecord(contender="controller", first_image=0, batch=1, started_ms=0.1, latency_ms=3.2),
        ),
    )  # fmt: skip


def random_inputs_report() -> BenchReport:
    """The same of random inputs, so without labels."""
    report = labelled_report()
    assert report.balance is not None
    return report.model_copy(
        update={
            "data": DataReport(
                name="random", images=64, sha256="5e" * 32, labelled=False, stamp=RANDOM_STAMP
            ),
            "contenders": tuple(one.model_copy(update={"accuracy": None}) for one in report.contenders),
            "balance": _balance(labelled=False),
            "cheapest": tuple(one.model_copy(update={"label": None}) for one in report.cheapest),
            "dearest": tuple(one.model_copy(update={"label": None}) for one in report.dearest),
        }
    )


def minimal_report() -> BenchReport:
    """One contender, one decision, one run, and nothing that may be absent."""
    latency = Latency(runs=1, mean_ms=2.5, typical_ms=2.5)
    return BenchReport(
        created="2025-03-14T15:09:26+00:00",
        command=None,
        subject=_subject(("conv",)),
        data=DataReport(name="images.npy", images=1, sha256="5e" * 32, labelled=False),
        settings=_settings().model_copy(update={"penalty": None, "threads": None}),
        environment={},
        contenders=(
            ContenderReport(
                name="controller", kind="controller", latency=latency, images_per_s=400.0, energy=Energy()
            ),
        ),
        decisions=DecisionReport(
            counts=((1, 0),), entropy_bits=(0.0,), distinct_paths=1, path_entropy_bits=0.0, paths=()
        ),
        expected=Expected(reason="measured for one image a run only"),
    )


def hostile_report() -> BenchReport:
    """50 decisions, 350 pieces, names of 200 characters, and names that are mark-up, maths or controls."""
    nasty = "<script>alert(1)</script>"
    convs = tuple(f'{nasty}$\\frac[{t}]$ id="figure_1" 名前 &amp; ' + "blocks.conv." * 14 for t in range(50))
    report = labelled_report(50, 350, tuple(name[:200] for name in convs), (nasty, "</svg>", "[red]\x1b[2J"))
    first, *others = report.contenders
    return report.model_copy(
        update={
            "warnings": (nasty, "x" * 200),
            "command": f"rnp-bench '{nasty}' " + "a" * 200,
            "environment": {nasty: {"[/red]": nasty, "long": "y" * 200}},
            "contenders": (first.model_copy(update={"name": convs[0][:200]}), *others),
        }
    )


def _subject(convs: tuple[str, ...]) -> Subject:
    return Subject(
        path="vgg16-set", kind="engine set", manifest_sha256="ab" * 32, backend="ort", device="cpu",
        precision="fp32", macs=15_346_630_656, agent_macs=1_200_000, agent_trained=True, convs=convs,
        widths=tuple((16, 32, 48, 64) for _ in convs),
    )  # fmt: skip


def _settings() -> Settings:
    return Settings(
        batch=1,
        penalty=0.01,
        threads=2,
        duration_s=3.0,
        min_runs=100,
        seed=0,
        scenario="server",
        warm_up_s=0.2,
    )


def latency(p50: float, runs: int = 412, spread: float = 0.03) -> Latency:
    """As of a right-skewed measurement; p99 needs a hundred runs, p99.9 a thousand."""

    def at_share(q: float) -> float:
        return p50 * (
            1 + spread * (math.exp(2.5 * (q - 0.5)) - 1 + 0.15 * (math.tan(1.55 * q) - math.tan(0.775)))
        )

    at = {q: at_share(q) for q in (0.5, 0.9, 0.95, 0.99, 0.999)}
    p = {q: Percentile(ms=ms, low_ms=0.99 * ms, high_ms=1.015 * ms) for q, ms in at.items()}
    return Latency(
        runs=runs, mean_ms=1.004 * p50, typical_ms=p50, cv=0.012, p50=p[0.5], p90=p[0.9], p95=p[0.95],
        p99=p[0.99] if runs >= 100 else None, p99_9=p[0.999] if runs >= 1000 else None,
        quantiles_ms=tuple(at_share(q / 100) for q in range(101)),
        block_p50_ms=(0.99 * p50, p50, 1.01 * p50),
    )  # fmt: skip


def _contenders(decisions: int) -> tuple[ContenderReport, ...]:
    dense, macs = 5.6, 0.43
    cases = [
        ("controller", "controller", 3.21, macs, 0.972, None),
        ("dense network", "dense", dense, 1.0, 0.978, (4,) * decisions),
        *((f"static {25 * j} %", "static", 1.9 + 1.2 * j, (j / 4) ** 1.8, 0.7 + 0.08 * j, (j,) * decisions)
          for j in (1, 2, 3)),
        ("static nearest in MACs", "nearest", 2.9, 0.44, 0.941, (2,) * decisions),
        ("single-file model", "single-file", 5.9, macs, 0.972, None),
        ("given decisions", "given", 3.0, macs, None, None),
        ("option 1 held", "held", 1.8, 0.09, None, (1,) * decisions),
        ("mine.onnx", "baseline", 11.0, None, 0.95, None),
    ]  # fmt: skip
    return tuple(
        ContenderReport(
            name=name, kind=kind, options=options, latency=latency(p50, 80 if kind == "baseline" else 1412, 0.25 if kind in ("controller", "given") else 0.03),
            macs_share=share, speedup=dense / p50, efficiency=None if share is None else share * dense / p50,
            accuracy=accuracy, images_per_s=1000 / p50,
            energy=Energy(joules_per_image=0.011 * p50, mean_watts=11.0, source="RAPL package-0")
            if kind in ("controller", "dense") else NOT_MEASURED,
        )
        for name, kind, p50, share, accuracy, options in cases
    )  # fmt: skip


def _decisions(decisions: int) -> DecisionReport:
    random = np.random.default_rng(0)
    counts = [tuple(random.multinomial(1000, random.dirichlet([1.5] * 4)).tolist()) for _ in range(decisions)]
    entropies = [-sum(c / 1000 * math.log2(c / 1000) for c in row if c) for row in counts]
    paths = tuple(
        PathReport(
            options=tuple(random.integers(1, 5, decisions).tolist()), images=90 - 7 * i,
            share=0.09 - 0.007 * i, macs_share=0.4 + 0.02 * i, p50_ms=3.0 + 0.1 * i if i < 8 else None,
            accuracy=0.95 - 0.01 * i if i < 9 else None,
        )
        for i in range(10)
    )  # fmt: skip
    return DecisionReport(
        counts=tuple(counts), entropy_bits=tuple(entropies), distinct_paths=231, path_entropy_bits=6.91,
        paths=paths,
    )  # fmt: skip


def _pieces(decisions: int, pieces: int) -> tuple[PieceReport, ...]:
    """Every seventh takes twice as long as it should."""
    made: dict[tuple[int, int, int], PieceReport] = {}
    for i in range(pieces):
        before, (step, option) = i // (4 * (decisions - 1)) + 1, (i // 4 % (decisions - 1) + 1, i % 4 + 1)
        macs, moved = 900_000 * option * before * (1 + step), 90_000 + 30_000 * option * before
        ms = (0.02 + macs / (40e6 + 5e6 * (step % 5))) * (2 if i % 7 == 6 else 1)
        made[step, before, option] = PieceReport(
            step=step, file=f"stage{step}/o{before}-o{option}.onnx", agent=False, decisions=(step - 1, step),
            options=(before, option), macs=macs, bytes_moved=moved, runs=412, p50_ms=ms, mean_ms=1.01 * ms,
            gmacs_per_s=macs / ms / 1e6, intensity=macs / moved,
        )  # fmt: skip
    for (step, before, option), piece in made.items():
        wider = made.get((step, before, option + 1))
        if wider is not None and wider.p50_ms <= piece.p50_ms:
            made[step, before, option] = piece.model_copy(update={"not_faster_than": wider.options})
    agent = PieceReport(
        step=decisions, file="agent.onnx", agent=True, decisions=(), options=(), macs=100_000, bytes_moved=9_000,
        runs=412, p50_ms=0.03, mean_ms=0.031, gmacs_per_s=3.3, intensity=11.1,
    )  # fmt: skip
    silent = agent.model_copy(update={"file": "copy.onnx", "macs": 0, "gmacs_per_s": None, "intensity": None})
    return (*made.values(), agent, silent)


def _load() -> LoadReport:
    runs = [
        LoadRun(
            contender=name, offered_qps=qps, completed_qps=0.99 * qps, planned=600, completed=600 - 200 * late,
            seconds=600 / qps, latency=latency(p50 * (1 + qps / 400), 600), mean_batch=1 + qps / 300, slo_ms=12.0,
            within_slo=0.6 if late else 0.998, held=not late, stopped_early=bool(late),
        )
        for name, p50 in (("controller", 4.0), ("dense network", 7.0))
        for qps, late in ((50.0, 0), (100.0, 0), (200.0, 0), (400.0, 1))
    ]  # fmt: skip
    highest = {"controller": 200.0, "dense network": None}
    return LoadReport(
        scenario="server", most_batch=8, seed=0, slo_ms=12.0, runs=tuple(runs), highest_qps=highest
    )


def _batches() -> BatchSweep:
    each = {"regroup": (2.6, 0.6), "serial": (3.1, 0.1), "round-up": (2.8, 0.5), "dense": (4.1, 1.5)}
    points = [
        BatchPoint(
            batch=n, policy=policy, p50_ms=n * a + b, ms_per_image=a + b / n, images_per_s=1000 / (a + b / n), runs=90
        )
        for policy, (a, b) in each.items()
        for n in (1, 2, 4, 8, 16)
    ]  # fmt: skip
    pays = (
        PaysFrom(policy="regroup", over="serial", batch=2),
        PaysFrom(policy="round-up", over="regroup", batch=None),
    )
    return BatchSweep(points=tuple(points), pays_from=pays)


def _balance(*, labelled: bool) -> Balance:
    points = []
    for i, penalty in enumerate((0.0, 0.001, 0.003, 0.01, 0.03, 0.1)):
        macs, accuracy = 0.9 / (1 + 0.4 * i), 0.979 - 0.003 * i**1.6 - 0.004 * (i == 2)
        held = latency(1.5 + 3 * macs)
        assert held.p50 is not None
        points.append(
            BalancePoint(
                penalty=penalty, macs_share=macs, macs_share_low=macs - 0.01, macs_share_high=macs + 0.01,
                accuracy=accuracy if labelled else None, accuracy_low=accuracy - 0.006 if labelled else None,
                accuracy_high=accuracy + 0.006 if labelled else None, p50=held.p50, p95_ms=1.1 * held.mean_ms,
                p99=held.p99 if i else None, runs=200, energy=NOT_MEASURED, pareto=i != 2 if labelled else None,
            )
        )  # fmt: skip
    return Balance(points=tuple(points), dense_p50_ms=5.6, dense_accuracy=0.978 if labelled else None)


def _image(index: int, macs_share: float, decisions: int, classes: tuple[str, ...]) -> ImageReport:
    pixels = np.random.default_rng(index).integers(0, 255, (6, 8, 3)).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).resize((96, 72)).save(stream, format="PNG")
    return ImageReport(
        index=index, macs_share=macs_share, options=(1 + index % 4,) * decisions,
        predicted=classes[index % len(classes)], label=classes[index // 2 % len(classes)],
        thumbnail=None if index == 3 else base64.b64encode(stream.getvalue()).decode("ascii"),
    )  # fmt: skip
