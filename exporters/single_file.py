"""From a runtime-pruned network to one ONNX model that any ONNX Runtime runs."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rnp_deploy.atomic import atomic_file, check_output_file
from rnp_deploy.bundle.calibration import Calibration
from rnp_deploy.bundle.manifest import Manifest, Preprocessing
from rnp_deploy.bundle.reading import open_bundle
from rnp_deploy.engines.single_file import MOST_BYTES, PRODUCER, single_file_from_bundle
from rnp_deploy.errors import ExportError
from rnp_deploy.exporters.bundle_export import export_bundle, on_cpu_in_eval_mode
from rnp_deploy.exporters.single_file_verification import verify_single_file
from rnp_deploy.network.runtime_pruned import RuntimePrunedNetwork
from rnp_deploy.progress import Progress, no_progress

__all__ = ["FORMAT", "SINGLE_FILE_MARKER", "SingleFile", "export_single_file"]

FORMAT = "rnp-deploy single file 1.0"
#: By which an earlier export is known, among its first bytes.
SINGLE_FILE_MARKER = PRODUCER.encode()


@dataclass(frozen=True)
class SingleFile:
    """What was written.

    Attributes:
        path: The file.
        bytes: Its size.
        manifest: Of the bundle it was joined from; ``verification`` has the bundle's branches and the
            file's own paths and decisions.
    """

    path: Path
    bytes: int
    manifest: Manifest


def export_single_file(
    network: RuntimePrunedNetwork,
    path: str | Path,
    overwrite: bool = False,
    *,
    branches: str | Mapping[str, str] = "pairs",
    verify: int = 2,
    calibration: Calibration | None = None,
    preprocessing: Preprocessing | None = None,
    classes: tuple[str, ...] | None = None,
    progress: Progress = no_progress,
) -> SingleFile:
    """Write one ONNX model: the agent, and every branch behind an ``If``; for batches of one.

    Inputs: ``images`` float32 ``[1, C, H, W]``, and ``penalty`` float32 ``[1]``, which may be left out.
    Outputs: the network's, ``options`` int64 ``[1, T]`` in 1..k, and ``macs`` int64 ``[1]``. Every weight lies
    in it once. The file appears whole under ``path`` or not at all.

    Args:
        network: Left as it was.
        path: The file to write.
        overwrite: Whether an earlier export at ``path`` may be replaced.
        branches: As for :func:`rnp_deploy.exporters.export_bundle`.
        verify: Random inputs with which every branch is compared with the masked torch reference, and then
            the file, at several penalties and through every branch; 0 switches verification off.
        calibration: Held-out results, kept in the model's metadata.
        preprocessing: How image files become inputs, kept there.
        classes: Class names, kept there.
        progress: Told of stages exported, branches and paths verified.

    Raises:
        OutputExistsError: ``path`` exists and may not be replaced.
        InputError: An option that is not supported, or a network that is not float32.
        ExportError: A stage cannot be exported, or the model would pass 2 GB.
        VerificationError: A branch or path differs by more than the tolerance, or a decision
            is not the one of largest value.
    """
    path = Path(path)
    check_output_file(path, overwrite=overwrite, marker=SINGLE_FILE_MARKER)
    with tempfile.TemporaryDirectory(prefix="rnp-export-") as folder:
        manifest = export_bundle(
            network,
            Path(folder) / "bundle",
            branches=branches,
            verify=verify,
            calibration=calibration,
            preprocessing=preprocessing,
            classes=classes,
            progress=progress,
        )
        bundle = open_bundle(Path(folder) / "bundle")
        model = single_file_from_bundle(bundle)
        if verify:
            fed = _serialised(single_file_from_bundle(bundle, agent=False))
            with on_cpu_in_eval_mode(network), torch.no_grad():
                verification = verify_single_file(
                    network, manifest, _serialised(model), fed, verify, progress
                )
            manifest = manifest.model_copy(update={"verification": verification})
    for key, value in _metadata(manifest).items():
        model.metadata_props.add(key=key, value=value)
    data = _serialised(model)
    with atomic_file(path, overwrite=overwrite, marker=SINGLE_FILE_MARKER) as partial:
        partial.write_bytes(data)
    return SingleFile(path, len(data), manifest)


def _serialised(model: Any) -> bytes:
    if model.ByteSize() > MOST_BYTES:
        raise ExportError("the model passes the 2 GB that an ONNX file can hold; export a bundle")
    return bytes(model.SerializeToString(deterministic=True))


def _metadata(manifest: Manifest) -> dict[str, str]:
    """Strings for the model's ``metadata_props``: the format, the producer, and JSON."""
    values = manifest.model_dump(
        mode="json",
        include={
            "macs",
            "agent_trained",
            "decisions",
            "verification",
            "calibration",
            "preprocessing",
            "classes",
        },
    )
    values["penalty_range"] = manifest.agent.penalty_range
    described = {key: json.dumps(value) for key, value in values.items() if value is not None}
    return {"format": FORMAT, "producer": manifest.producer, **described}
