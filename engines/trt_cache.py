"""Plans that were built already, by what they were built from; and TensorRT's timing caches."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path

from rnp_deploy.bundle.fields import Count, Frozen
from rnp_deploy.bundle.manifest import FileManifest, Sha256
from rnp_deploy.bundle.writing import describe_file
from rnp_deploy.canonical_json import canonical_sha256, dump_json, parse_json, read_json_bytes
from rnp_deploy.engines.sources import CACHE_VARIABLE
from rnp_deploy.engines.trt_graph import PieceGraph
from rnp_deploy.errors import OutputError

__all__ = ["PlanCache", "cache_folder", "plan_key"]

logger = logging.getLogger(__name__)

#: Goes up when plans are built in another way, so that those in caches are not taken.
_GENERATION = 2


class _Entry(Frozen):
    """The sidecar of a plan."""

    sha256: Sha256
    bytes: Count


def cache_folder() -> Path:
    """Where plans lie if nothing else is said: ``$RNP_CACHE_DIR``, or this user's cache directory."""
    named = os.environ.get(CACHE_VARIABLE)
    if named:
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "rnp-deploy"


def plan_key(graph: PieceGraph, settings: Mapping[str, object]) -> str:
    """The sha256 of all that decides a plan.

    Args:
        graph: With its weights.
        settings: Builder options, TensorRT, system and device: JSON values.
    """
    edges = [
        [[e.name, list(e.shape), e.dtype, e.channels_last] for e in es]
        for es in (graph.inputs, graph.outputs)
    ]
    parts = {
        **settings,
        "edges": edges,
        "graph": hashlib.sha256(graph.onnx).hexdigest(),
        "generation": _GENERATION,
    }
    return canonical_sha256(parts, without="")


class PlanCache:
    """Plans by key in a folder: ``plans/ab/abcd….engine``, and its size and hash beside it in ``.json``.

    Several processes may use one at a time; of what two time at once, the last written stays.

    Args:
        folder: Made where it is missing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def holds(self, key: str) -> bool:
        """Whether a plan is there, by its size; :meth:`copy_to` looks at every byte."""
        try:
            return self._file(key, ".engine").stat().st_size == self._entry(key).bytes
        except (OSError, ValueError):
            return False

    def store(self, key: str, plan: bytes) -> None:
        """Keep a plan; raises OutputError where the disk is full or the folder cannot be written."""
        entry = _Entry(sha256=hashlib.sha256(plan).hexdigest(), bytes=len(plan))
        self._write(self._file(key, ".engine"), plan)
        self._write(self._file(key, ".json"), dump_json(entry.model_dump()).encode())

    def copy_to(self, key: str, file: Path, path: str) -> FileManifest | None:
        """Copy a plan that is there.

        Args:
            key: Of the plan.
            file: To write.
            path: What it is called in the set.

        Returns:
            What was written, hashed; None where it is damaged, and has to be built again.

        Raises:
            OSError: It cannot be read or written.
        """
        file.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self._file(key, ".engine"), file)
        copied = describe_file(file, path)
        if (copied.bytes, copied.sha256) == (self._entry(key).bytes, self._entry(key).sha256):
            return copied
        logger.warning("%s is damaged; it is built again", self._file(key, ".engine"))
        return None

    def size(self, key: str) -> int:
        """Bytes of a plan that is there."""
        return self._file(key, ".engine").stat().st_size

    def timings(self, device_key: str) -> bytes:
        """The timing cache of a device and version; empty where there is none yet."""
        try:
            return self.timing_file(device_key).read_bytes()
        except OSError:
            return b""

    def timing_file(self, device_key: str) -> Path:
        """Where it lies."""
        return self.folder / f"timing-{device_key[:24]}.cache"

    def store_timings(self, device_key: str, timing: bytes) -> None:
        """Replace it; raises OutputError."""
        self._write(self.timing_file(device_key), timing)

    def _entry(self, key: str) -> _Entry:
        return _Entry.model_validate(parse_json(read_json_bytes(self._file(key, ".json"))))

    def _file(self, key: str, suffix: str) -> Path:
        return self.folder / "plans" / key[:2] / f"{key}{suffix}"

    def _write(self, file: Path, data: bytes) -> None:
        partial = file.parent / f".{file.name}.partial-{secrets.token_hex(4)}"
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            partial.write_bytes(data)
            partial.replace(file)
        except OSError as err:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            raise OutputError(
                f"the cache {self.folder} cannot take a file of {len(data) / 1e6:.1f} MB: {err}; free some space, or "
                "pass --cache-dir with another folder that can be written, or '' for none"
            ) from err
