"""What the agent decided: options by decision, paths, and how evenly they are spread."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from rnp_deploy.benchmarking.report import DecisionReport, PathReport
from rnp_deploy.benchmarking.statistics import entropy_bits
from rnp_deploy.bundle.manifest import Manifest

__all__ = ["decision_report"]


def decision_report(
    options: NDArray[np.int64],
    macs: NDArray[np.int64],
    manifest: Manifest,
    path_latencies: Mapping[tuple[int, ...], float],
    correct: NDArray[np.bool_] | None = None,
    most: int = 20,
) -> DecisionReport:
    """Count options and paths.

    Args:
        options: ``[N, T]``, in 1..k, N ≥ 1.
        macs: ``[N]``, of the backbone.
        manifest: That they are of.
        path_latencies: Path → p50 in ms, where it was timed.
        correct: ``[N]``, whether the network was right; None: nobody knows.
        most: Paths to list; of equally frequent ones the narrower first.
    """
    counts = tuple(
        tuple(np.bincount(column, minlength=k + 1)[1:].tolist())
        for column, k in zip(options.T, manifest.option_counts, strict=True)
    )
    paths, first, path_of, images = np.unique(
        options, axis=0, return_index=True, return_inverse=True, return_counts=True
    )
    path_of = path_of.reshape(-1)
    frequent = np.argsort(-images, kind="stable")[:most]
    return DecisionReport(
        counts=counts,
        entropy_bits=tuple(entropy_bits(row) for row in counts),
        distinct_paths=len(paths),
        path_entropy_bits=entropy_bits(images),
        paths=tuple(
            PathReport(
                options=tuple(paths[i].tolist()),
                images=int(images[i]),
                share=float(images[i] / len(options)),
                macs_share=float(macs[first[i]] / manifest.macs),
                p50_ms=path_latencies.get(tuple(paths[i].tolist())),
                accuracy=None if correct is None else float(correct[path_of == i].mean()),
            )
            for i in frequent
        ),
    )
