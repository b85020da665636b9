"""What a benchmark is of."""

from __future__ import annotations

from pathlib import Path

from rnp_deploy.benchmarking.report import Subject
from rnp_deploy.bundle.engine_set import is_engine_set
from rnp_deploy.bundle.reading import MANIFEST_FILE
from rnp_deploy.engines.backends import Opened
from rnp_deploy.hashing import file_sha256

__all__ = ["subject_of"]


def subject_of(path: Path, opened: Opened) -> Subject:
    """Describe a bundle or engine set, and what runs it."""
    manifest = opened.source.manifest
    return Subject(
        path=str(path),
        kind="engine set" if is_engine_set(path) else "bundle",
        manifest_sha256=file_sha256(path / MANIFEST_FILE),
        backend=opened.backend,
        device=opened.device,
        precision=manifest.precision,
        macs=manifest.macs,
        agent_macs=sum(step.macs for step in manifest.agent.steps),
        agent_trained=manifest.agent_trained,
        convs=tuple(decision.conv for decision in manifest.decisions),
        widths=tuple(decision.widths for decision in manifest.decisions),
    )
