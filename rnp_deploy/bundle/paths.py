"""Paths of options through a network, to be run for comparison."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from rnp_deploy.bundle.manifest import Manifest

__all__ = ["paths_through_every_branch"]


def paths_through_every_branch(manifest: Manifest) -> Iterator[Sequence[int]]:
    """Options ``[T]``: the least, the most, and random ones on which every branch lies."""
    yield manifest.uniform_options(1)
    yield manifest.uniform_options(manifest.groups)
    random = np.random.default_rng(0)
    left = [{branch.options for branch in stage.branches} for stage in manifest.stages]
    while any(left):
        s = max(range(len(left)), key=lambda s: len(left[s]))
        path = dict(zip(manifest.stages[s].option_decisions, min(left[s], default=()), strict=True))
        for stage, branches in zip(manifest.stages, left, strict=True):
            if stage.decision is not None and stage.decision not in path:
                inputs = tuple(path[t] for t in stage.input_decisions)
                new = [keys[-1] for keys in sorted(branches) if keys[:-1] == inputs]
                drawn = int(random.integers(1, manifest.option_counts[stage.decision] + 1))
                path[stage.decision] = new[0] if new else drawn
            branches.discard(tuple(path[t] for t in stage.option_decisions))
        yield [path[t] for t in range(len(manifest.decisions))]
