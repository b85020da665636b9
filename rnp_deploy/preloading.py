"""Which pieces are used most, by the calibration."""

from __future__ import annotations

import math

from rnp_deploy.bundle.manifest import Manifest
from rnp_deploy.errors import InputError
from rnp_deploy.plan import Plan

__all__ = ["common_files", "files_by_use"]

#: A piece that fewer images than this take is not common.
_COMMON_SHARE = 0.01


def files_by_use(plan: Plan, manifest: Manifest) -> dict[str, float]:
    """File → the share of images that take it, 0..1, the most used first.

    From the options counted at the calibration point whose penalty is nearest to the agent's,
    each decision taken to be independent of the others; every option of a decision is as
    likely as another where there is no calibration.
    """
    shares = [[1 / k] * k for k in manifest.option_counts]
    if manifest.calibration is not None:
        counts = manifest.calibration.at(manifest.agent.penalty).option_counts
        if [len(row) for row in counts] == [len(row) for row in shares]:
            shares = [[count / max(sum(row), 1) for count in row] for row in counts]
    uses: dict[str, float] = {}
    for step in plan.steps:
        for piece in step.pieces:
            decided = zip(step.option_decisions, piece.options, strict=True)
            share = math.prod(shares[t][option - 1] for t, option in decided)
            uses[piece.file] = max(uses.get(piece.file, 0.0), share)
    return dict(sorted(uses.items(), key=lambda item: -item[1]))


def common_files(plan: Plan, manifest: Manifest) -> list[str]:
    """The files that at least one image in a hundred takes, the most used first.

    Raises:
        InputError: The manifest has no calibration to tell.
    """
    if manifest.calibration is None:
        raise InputError(
            "preload='common' needs a calibration, which this bundle lacks: rnp-train makes one; "
            "use 'none' or 'all'"
        )
    return [file for file, share in files_by_use(plan, manifest).items() if share >= _COMMON_SHARE]
