"""Checkpoints: a folder of ``checkpoint.json`` and ``model.safetensors``, and no code."""

from __future__ import annotations

import dataclasses
import hashlib
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import nn

from rnp_deploy.atomic import atomic_directory
from rnp_deploy.bundle.calibration import Calibration
from rnp_deploy.bundle.manifest import Preprocessing
from rnp_deploy.canonical_json import dump_json, parse_json, read_json_bytes
from rnp_deploy.errors import CheckpointError, InputError, RnpError
from rnp_deploy.network.model_sources import build_model, is_library_model
from rnp_deploy.network.runtime_pruned import RuntimePrunedNetwork
from rnp_deploy.pruning_settings import PruningSettings

__all__ = ["Architecture", "Checkpoint", "load_checkpoint", "save_checkpoint"]

CONFIG_FILE = "checkpoint.json"
WEIGHTS_FILE = "model.safetensors"


_Size = Annotated[int, Field(ge=1, le=2**14)]


class Architecture(BaseModel):
    """A backbone by name, and its arguments: one that ships with the package, or a ``--model``."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: str
    arguments: dict[str, int | float | str | bool]


class _Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    format_version: Literal["1.0"]
    kind: Literal["rnp-deploy checkpoint"]
    architecture: Architecture | None
    input_shape: tuple[_Size, _Size, _Size]
    pruning: PruningSettings
    agent_trained: bool
    penalty: float
    penalty_range: tuple[float, float] | None = None
    state_size: _Size
    orders: dict[str, tuple[int, ...]]
    weights_sha256: str
    preprocessing: Preprocessing | None = None
    classes: tuple[str, ...] | None = None
    calibration: Calibration | None = None


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A network and what belongs to it.

    ``architecture`` is None where the backbone is the caller's own, who must then pass it
    again to :func:`load_checkpoint`.
    """

    network: RuntimePrunedNetwork
    architecture: Architecture | None = None
    preprocessing: Preprocessing | None = None
    classes: tuple[str, ...] | None = None
    calibration: Calibration | None = None


def save_checkpoint(
    checkpoint: Checkpoint,
    path: str | Path,
    *,
    overwrite: bool = False,
    attachments: Mapping[str, bytes] | None = None,
) -> None:
    """Write a checkpoint folder atomically.

    Args:
        checkpoint: What to write.
        path: The folder.
        overwrite: Whether an earlier checkpoint at ``path`` may be replaced.
        attachments: File name → content of files to lie beside, for people: plots, tables.

    Raises:
        OutputExistsError: ``path`` exists and ``overwrite`` is False, or it is no checkpoint.
    """
    from safetensors.torch import save

    network = checkpoint.network
    with atomic_directory(Path(path), overwrite=overwrite, marker=CONFIG_FILE) as folder:
        for name, content in (attachments or {}).items():
            (folder / name).write_bytes(content)
        tensors = {
            name: tensor.detach().cpu().contiguous().clone() for name, tensor in network.state_dict().items()
        }
        # A file that safetensors writes itself is for its owner's eyes alone.
        (folder / WEIGHTS_FILE).write_bytes(save(tensors))
        channels, height, width = network.input_shape
        config = _Config(
            format_version="1.0",
            kind="rnp-deploy checkpoint",
            architecture=checkpoint.architecture,
            input_shape=(channels, height, width),
            pruning=network.settings,
            agent_trained=network.agent.trained,
            penalty=network.agent.penalty,
            penalty_range=network.agent.penalty_range,
            state_size=network.agent.state_size,
            orders=network.orders,
            weights_sha256=hashlib.sha256((folder / WEIGHTS_FILE).read_bytes()).hexdigest(),
            preprocessing=checkpoint.preprocessing,
            classes=checkpoint.classes,
            calibration=checkpoint.calibration,
        )
        (folder / CONFIG_FILE).write_text(dump_json(config.model_dump(mode="json")), encoding="utf-8")


def load_checkpoint(path: str | Path, backbone: nn.Module | None = None) -> Checkpoint:
    """Read a checkpoint folder; nothing in it is executed.

    Args:
        path: The folder.
        backbone: The architecture, for checkpoints of a caller's own backbone; its weights
            do not matter.

    Raises:
        CheckpointError: The folder is missing, foreign, changed, or does not fit the backbone.
    """
    path = Path(path)
    if path.is_file():
        try:
            raise CheckpointError(_explain_file(path))
        except OSError as err:
            raise CheckpointError(f"{path} cannot be read: {err}") from err
    if not (path / CONFIG_FILE).is_file():
        raise CheckpointError(f"{path} is not a checkpoint: there is no {CONFIG_FILE}; rnp-train writes one")
    config = _read_config(path / CONFIG_FILE)
    if backbone is None:
        backbone = _known_backbone(config.architecture, path)
    state = _read_weights(path / WEIGHTS_FILE, config.weights_sha256)
    try:
        network = RuntimePrunedNetwork.from_settings(
            backbone,
            torch.zeros(1, *config.input_shape),
            config.pruning,
            penalty=config.penalty,
            penalty_range=config.penalty_range,
            state_size=config.state_size,
        )
    except RnpError as err:
        raise CheckpointError(f"{path}: its backbone cannot be rebuilt: {err}") from err
    try:
        network.load_ordered(state, config.orders)
    except InputError as err:
        raise CheckpointError(f"{path}: {err}") from err
    network.agent.trained = config.agent_trained
    return Checkpoint(
        network=network,
        architecture=config.architecture,
        preprocessing=config.preprocessing,
        classes=config.classes,
        calibration=config.calibration,
    )


def _read_config(path: Path) -> _Config:
    try:
        return _Config.model_validate_json(dump_json(parse_json(read_json_bytes(path))))
    except ValidationError as err:
        first = err.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise CheckpointError(f"{path} is not a checkpoint of ours: {where}: {first['msg']}") from err
    except (OSError, ValueError) as err:
        raise CheckpointError(f"{path} cannot be read: {err}") from err


def _read_weights(path: Path, sha256: str) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() != sha256:
            raise CheckpointError(f"{path} is not the file {CONFIG_FILE} was written with; copy it anew")
        return load(data)
    except (OSError, SafetensorError) as err:
        raise CheckpointError(f"{path} cannot be read: {err}") from err


def _known_backbone(architecture: Architecture | None, path: Path) -> nn.Module:
    from rnp_deploy.training.backbones import BACKBONES

    if architecture is None:
        raise CheckpointError(
            f"{path} was made from a backbone of your own; load it in Python with "
            "load_checkpoint(path, backbone=...) and call export_bundle"
        )
    if is_library_model(architecture.name):
        try:
            return build_model(architecture.name, architecture.arguments).module
        except InputError as err:
            raise CheckpointError(f"{path}: its backbone cannot be built: {err}") from err
    if ":" in architecture.name:
        raise CheckpointError(
            f"{path} was made from {architecture.name!r}; a checkpoint alone imports no code: "
            f"name it again, --model {architecture.name}"
        )
    if architecture.name not in BACKBONES:
        raise CheckpointError(f"{path} names the backbone {architecture.name!r}; known: {sorted(BACKBONES)}")
    try:
        return BACKBONES[architecture.name](**architecture.arguments)
    except (TypeError, ValueError, RuntimeError) as err:
        raise CheckpointError(f"{path}: its backbone cannot be built: {err}") from err


def _explain_file(path: Path) -> str:
    """Say why a single file is no checkpoint, without running anything in it."""
    advice = f"name it: --model torchvision:NAME --weights {path}, or build it in Python (RuntimePrunedNetwork.from_backbone)"
    with path.open("rb") as stream:
        pickled = stream.read(1) == b"\x80"
    if not pickled and not zipfile.is_zipfile(path):
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "pt"):
                return f"{path} holds tensors but not their architecture; {advice}"
        except SafetensorError:
            return f"{path} is not a checkpoint folder, nor a file of tensors"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.load(path, weights_only=True, map_location="cpu")
    except Exception:  # noqa: BLE001 - a malformed pickle may raise anything
        return (
            f"{path} is damaged or holds pickled code, which could do anything when read; it was not read. "
            "Save the state dict alone, or as safetensors"
        )
    return f"{path} holds tensors but not their architecture; {advice}"
