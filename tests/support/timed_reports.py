"""Reports of rnp-bench made from latencies, for what reads and compares them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rnp_deploy.benchmarking.measures import Energy
from rnp_deploy.benchmarking.report import (
    BenchReport,
    ContenderReport,
    DataReport,
    DecisionReport,
    Expected,
    Settings,
    Subject,
)
from rnp_deploy.benchmarking.statistics import latency_report

__all__ = ["timed_report"]


def timed_report(
    latencies_ms: Mapping[str, NDArray[np.float64]],
    *,
    subject: Mapping[str, Any] | None = None,
    data: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    environment: Mapping[str, Any] | None = None,
    contenders: Mapping[str, Any] | None = None,
) -> BenchReport:
    """Contenders by name, ``"controller"`` and ``"dense"`` of that kind, others static; the rest changes values."""
    kinds = {"controller": "controller", "dense": "dense"}
    return BenchReport(
        created="2025-01-02T03:04:05+00:00",
        command=None,
        subject=Subject(
            **{
                "path": "bundle", "kind": "bundle", "manifest_sha256": "ab" * 32, "backend": "onnxruntime",
                "device": "cpu", "precision": "fp32", "macs": 1000, "agent_macs": 10, "agent_trained": True,
                "convs": ("conv",), "widths": ((4, 8),),
            }
            | dict(subject or {})
        ),
        data=DataReport(
            **{"name": "digits", "images": 9, "sha256": "cd" * 32, "labelled": True} | dict(data or {})
        ),
        settings=Settings(
            **{
                "batch": 1, "penalty": 0.1, "threads": 1, "duration_s": 3.0, "min_runs": 100, "seed": 0,
                "scenario": "single-stream", "warm_up_s": 0.2,
            }
            | dict(settings or {})
        ),
        environment=dict(environment or {}),
        contenders=tuple(
            ContenderReport(
                **{
                    "name": name, "kind": kinds.get(name, "static"), "latency": latency_report(np.asarray(ms)),
                    "images_per_s": 1000 / float(np.mean(ms)), "energy": Energy(reason="none here"),
                }
                | dict(contenders or {})
            )
            for name, ms in latencies_ms.items()
        ),
        decisions=DecisionReport(
            counts=((4, 5),), entropy_bits=(0.99,), distinct_paths=2, path_entropy_bits=0.99, paths=()
        ),
        expected=Expected(reason="not asked for"),
    )  # fmt: skip
