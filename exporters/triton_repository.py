"""From a bundle or an engine set to a model of a Triton repository; imports no torch."""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from rnp_deploy.atomic import atomic_directory, check_output
from rnp_deploy.bundle.engine_set import (
    ENGINES_FILE,
    LATENCY_FILE,
    EngineSetManifest,
    is_engine_set,
    open_engine_set,
)
from rnp_deploy.bundle.files import confined
from rnp_deploy.bundle.manifest import Manifest
from rnp_deploy.bundle.reading import MANIFEST_FILE, open_bundle
from rnp_deploy.canonical_json import read_json_bytes
from rnp_deploy.errors import BundleError, InputError, IntegrityError
from rnp_deploy.latency import read_latency_curve
from rnp_deploy.plain_file import FileIsLinkError, NotPlainFileError

__all__ = ["SETTING_CHOICES", "TritonModel", "TritonSettings", "check_model_folder", "write_triton_model"]

logger = logging.getLogger(__name__)

LABELS_FILE = "labels.txt"
_VERSION = "1"
_MARKER = f"{_VERSION}/bundle/{MANIFEST_FILE}"
_MODEL = Path(__file__).with_name("triton_model.py")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_RESERVED = ("penalty", "target_macs", "options", "macs")
_MAX_BATCH = 8
_MAX_DELAY_MS = 3_600_000.0
#: What there is to choose from, by setting.
SETTING_CHOICES = {
    "backend": ("auto", "onnxruntime", "tensorrt", "torch"),
    "device": ("auto", "cpu", "cuda"),
    "preload": ("none", "common", "all"),
    "policy": ("regroup", "serial", "round-up"),
}


@dataclass(frozen=True)
class TritonSettings:
    """How Triton is to run the model.

    Attributes:
        max_batch: Images in a batch, at most; None: 8, or what an engine set takes where that is less.
        max_delay_ms: How long a request may wait for others to share its batch, in ms.
        preferred_batches: Sizes at which a batch goes without waiting longer; none: ``max_batch`` alone.
        instances: Processes that run the model, each with engines of its own.
        backend, device, threads, preload, memory_budget_bytes: As for
            :meth:`rnp_deploy.Controller.load`; device ``"auto"``: the GPU for TensorRT engines, else the CPU.
        policy: As for :meth:`rnp_deploy.Controller.run`.

    Raises:
        InputError: A number is out of range, or a word none of ``SETTING_CHOICES``.
    """

    max_batch: int | None = None
    max_delay_ms: float = 2.0
    preferred_batches: tuple[int, ...] = ()
    instances: int = 1
    backend: str = "auto"
    device: str = "auto"
    threads: int | None = None
    preload: str = "none"
    policy: str = "regroup"
    memory_budget_bytes: int | None = None

    def __post_init__(self) -> None:
        counts = {
            "max_batch": self.max_batch,
            "instances": self.instances,
            "threads": self.threads,
            "memory_budget_bytes": self.memory_budget_bytes,
        }
        for name, value in (
            *counts.items(),
            *(("preferred_batches", size) for size in self.preferred_batches),
        ):
            if value is not None and value < 1:
                raise InputError(f"{name} is {value}; pass at least 1")
        if not 0 <= self.max_delay_ms <= _MAX_DELAY_MS:
            raise InputError(
                f"max_delay_ms is {self.max_delay_ms}; pass milliseconds, 0 to {_MAX_DELAY_MS:.0f}"
            )
        for name, choices in SETTING_CHOICES.items():
            value = getattr(self, name)
            if value not in choices:
                raise InputError(f"{name} is {value!r}; use one of {', '.join(map(repr, choices))}")


@dataclass(frozen=True)
class TritonModel:
    """What was written.

    Attributes:
        path: The model's folder, in the repository.
        files: Below it, sorted, but for those of the bundle or engine set.
        kind: What was copied, ``"bundle"`` or ``"engine set"``.
        bytes: Of all that was copied.
        max_batch: Images in a batch, at most.
        device: ``"cpu"`` or ``"cuda"``.
    """

    path: Path
    files: tuple[str, ...]
    kind: str
    bytes: int
    max_batch: int
    device: str


def check_model_folder(path: Path, *, overwrite: bool) -> None:
    """Refuse a place for a model before any work is done for it; arguments and errors as :func:`write_triton_model`."""
    if not _NAME.fullmatch(path.name):
        raise InputError(
            f"{path.name!r} cannot be the name of a model: use letters, digits, '.', '_' and '-', at most 128, "
            "beginning with a letter or digit"
        )
    check_output(path, overwrite=overwrite, marker=_MARKER)


def write_triton_model(
    source: str | Path,
    path: str | Path,
    overwrite: bool = False,
    *,
    settings: TritonSettings | None = None,
) -> TritonModel:
    """Write a model of Triton's Python backend: its configuration, ``model.py`` and a verified copy of ``source``.

    The folder appears whole or not at all.

    Args:
        source: A bundle or an engine set; also one built for another machine, which is not opened here.
        path: The folder ``REPOSITORY/NAME``; the repository has to exist.
        overwrite: Whether an earlier model of this kind at ``path`` may be replaced.
        settings: None: the defaults.

    Raises:
        BundleError: As :func:`open_bundle` and :func:`open_engine_set`.
        InputError: The name, a setting or a tensor's name that Triton cannot take, or no repository.
        OutputExistsError: ``path`` exists and may not be replaced.
        OutputError: The file system refused.
    """
    source, path, settings = Path(source), Path(path), settings or TritonSettings()
    check_model_folder(path, overwrite=overwrite)
    manifest, engines = _verified(source)
    chosen = _device(settings, engines)
    max_batch = _max_batch(settings, engines)
    config = config_text(path.name, manifest, settings, max_batch=max_batch, device=chosen)
    with atomic_directory(
        path, overwrite=overwrite, marker=_MARKER, within=_outside(path.absolute().parent)
    ) as folder:
        version = folder / _VERSION
        version.mkdir()
        size = _copy(source, version / "bundle", manifest, engines)
        if _verified(version / "bundle") != (manifest, engines):
            raise IntegrityError(f"{source} was replaced while it was copied; try again", code="changed")
        shutil.copyfile(_MODEL, version / "model.py")
        if manifest.classes is not None:
            (folder / LABELS_FILE).write_text(_labels(manifest.classes), encoding="utf-8")
        (folder / "config.pbtxt").write_text(config, encoding="ascii")
        own = [
            file for file in folder.rglob("*") if file.is_file() and version / "bundle" not in file.parents
        ]
        files = tuple(sorted(file.relative_to(folder).as_posix() for file in own))
    kind = "bundle" if engines is None else "engine set"
    return TritonModel(path, files, kind, size, max_batch, chosen)


def config_text(
    name: str, manifest: Manifest, settings: TritonSettings, *, max_batch: int, device: str
) -> str:
    """``config.pbtxt``, in protobuf's text form, ASCII.

    Raises:
        InputError: The network's input or output has the name of another tensor of the model, or a preferred batch
            is larger than the largest.
    """
    (image,), (output,) = manifest.inputs, manifest.outputs
    for tensor in (image.name, output.name):
        if tensor in _RESERVED:
            raise InputError(
                f"the network has a tensor {tensor!r}, which the Triton model needs for itself; rename it"
            )
    too_large = [size for size in settings.preferred_batches if size > max_batch]
    if too_large:
        raise InputError(f"a preferred batch of {too_large[0]} is above the largest, {max_batch}")
    labels = "" if manifest.classes is None else f" label_filename: {quoted(LABELS_FILE)}"
    inputs = [
        _tensor(image.name, "TYPE_FP32", image.shape),
        _tensor("penalty", "TYPE_FP32", (1,), " optional: true"),
        _tensor("target_macs", "TYPE_FP32", (1,), " optional: true"),
    ]
    outputs = [
        _tensor(output.name, "TYPE_FP32", output.shape or (1,), labels),
        _tensor("options", "TYPE_INT64", (len(manifest.decisions),)),
        _tensor("macs", "TYPE_INT64", (1,)),
    ]
    parameters = {
        "backend": settings.backend,
        "device": device,
        "policy": settings.policy,
        "preload": settings.preload,
        "threads": settings.threads,
        "memory_budget_bytes": settings.memory_budget_bytes,
    }
    preferred = (
        f" preferred_batch_size: {_list(settings.preferred_batches)}" if settings.preferred_batches else ""
    )
    kind = "KIND_GPU gpus: [ 0 ]" if device == "cuda" else "KIND_CPU"
    lines = [
        f"name: {quoted(name)}",
        'backend: "python"',
        f"max_batch_size: {max_batch}",
        *_block("input", inputs),
        *_block("output", outputs),
        f"dynamic_batching {{ max_queue_delay_microseconds: {round(settings.max_delay_ms * 1000)}{preferred} }}",
        f"instance_group [ {{ kind: {kind} count: {settings.instances} }} ]",
        *(
            f"parameters {{ key: {quoted(key)} value {{ string_value: {quoted(str(value))} }} }}"
            for key, value in parameters.items()
            if value is not None
        ),
    ]
    return "\n".join(lines) + "\n"


def quoted(text: str) -> str:
    """A string of protobuf's text form: bytes of UTF-8, all but plain ASCII as octal escapes."""
    plain = (
        chr(byte) if 32 <= byte < 127 and byte not in b'"\\' else f"\\{byte:03o}" for byte in text.encode()
    )
    return f'"{"".join(plain)}"'


def _tensor(name: str, kind: str, dims: Iterable[int], rest: str = "") -> str:
    return f"{{ name: {quoted(name)} data_type: {kind} dims: {_list(dims)}{rest} }}"


def _block(name: str, entries: list[str]) -> list[str]:
    return [f"{name} [", ",\n".join(f"  {entry}" for entry in entries), "]"]


def _list(values: Iterable[int]) -> str:
    return f"[ {', '.join(map(str, values))} ]"


def _labels(classes: Iterable[str]) -> str:
    """One name a line, whatever white space is in them."""
    return "".join(" ".join(name.split()) + "\n" for name in classes)


def _device(settings: TritonSettings, engines: EngineSetManifest | None) -> str:
    if engines is not None and settings.backend not in ("auto", engines.backend):
        raise InputError(
            f"backend is {settings.backend!r}, and the engine set is of {engines.backend}; leave it out"
        )
    if settings.device != "auto":
        return settings.device
    return "cuda" if engines is not None and engines.backend == "tensorrt" else "cpu"


def _max_batch(settings: TritonSettings, engines: EngineSetManifest | None) -> int:
    if settings.max_batch is not None:
        return settings.max_batch
    return min(_MAX_BATCH, _MAX_BATCH if engines is None else engines.max_batch or _MAX_BATCH)


def _outside(repository: Path) -> Path:
    """Where to write before the model appears: Triton takes every folder of a repository, also a hidden one, for a model.

    Where the repository is a file system of its own, or what it lies in may not be written to, that cannot be helped.
    """
    parent = repository.parent
    same = parent.stat().st_dev == repository.stat().st_dev
    return parent if same and os.access(parent, os.W_OK | os.X_OK) else repository


def _verified(path: Path) -> tuple[Manifest, EngineSetManifest | None]:
    """What a bundle or engine set says of itself, once every file has its recorded hash."""
    if not is_engine_set(path):
        return open_bundle(path).manifest, None
    engine_set = open_engine_set(path)
    engine_set.check_engines()
    return engine_set.manifest, engine_set.engines


def _copy(source: Path, target: Path, manifest: Manifest, engines: EngineSetManifest | None) -> int:
    """Copy the files that are listed, the manifests and a latency curve, and nothing else that lies there; their bytes."""
    listed = manifest.files if engines is None else engines.files
    paths = [MANIFEST_FILE, *(file.path for file in listed)]
    if engines is not None:
        paths.append(ENGINES_FILE)
    for path in paths:
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(confined(source, path), target / path)
    if engines is not None and _copy_latency(source, target):
        paths.append(LATENCY_FILE)
    return sum((target / path).stat().st_size for path in paths)


def _copy_latency(source: Path, target: Path) -> bool:
    """Copy the latency curve, which is listed nowhere, where there is one; raises IntegrityError for a link."""
    file, copied = confined(source, LATENCY_FILE), target / LATENCY_FILE
    if not file.exists():
        return False
    try:
        copied.write_bytes(read_json_bytes(file, follow=False))
    except (NotPlainFileError, ValueError) as err:
        logger.warning("the latency curve is left out: %s: %s", file, err)
        return False
    except FileIsLinkError as err:
        raise IntegrityError(f"{file} is a link; only plain files are read", code="link") from err
    try:
        read_latency_curve(copied)  # the copy: what is checked is what is served
    except BundleError as err:  # it is an extra, without which all else works
        logger.warning("the latency curve is left out: %s", str(err).replace(str(copied), str(file)))
        copied.unlink()
        return False
    return True
