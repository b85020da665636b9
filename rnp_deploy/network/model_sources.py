"""Backbones by name, and their weights from the files people have."""

from __future__ import annotations

import fnmatch
import importlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rnp_deploy.bundle.manifest import Preprocessing
from rnp_deploy.errors import CheckpointError, InputError, MissingRuntimeError

__all__ = ["LoadedWeights", "SourcedModel", "build_model", "is_library_model", "load_weights"]

_LIBRARY_MODEL = re.compile(r"(torchvision|timm):[A-Za-z0-9_.]+")
_AVERAGED_SECTIONS = ("state_dict_ema", "model_ema", "ema_state_dict", "ema")
_SECTIONS = ("state_dict", "model_state_dict", "model_state", "model", "net", "params")
_PREFIXES = ("module.", "_orig_mod.", "model.")
_LISTED_KEYS = 8


@dataclass(frozen=True)
class SourcedModel:
    """A backbone and how its images were prepared, where its library says so."""

    module: nn.Module
    preprocessing: Preprocessing | None = None


@dataclass(frozen=True)
class LoadedWeights:
    """What :func:`load_weights` did: the section it read, None for the whole file, and keys passed over."""

    section: str | None
    ignored: tuple[str, ...]


def is_library_model(source: str) -> bool:
    """Whether a name can only lead to code of torchvision or timm."""
    return _LIBRARY_MODEL.fullmatch(source) is not None


def build_model(source: str, arguments: Mapping[str, Any] | None = None) -> SourcedModel:
    """Build a backbone with random weights; nothing is downloaded.

    Args:
        source: ``torchvision:NAME``, ``timm:NAME`` or ``package.module:factory``, a callable
            that is imported and called: name only code that you trust.
        arguments: Passed to it by keyword, such as ``num_classes``.

    Raises:
        InputError: There is no such model, or it does not take the arguments.
        MissingRuntimeError: torchvision or timm is not installed, or does not fit torch.
    """
    library, _, name = source.partition(":")
    if not library or not name:
        raise InputError(f"model {source!r}: use torchvision:NAME, timm:NAME or package.module:factory")
    build = {"torchvision": _torchvision_model, "timm": _timm_model}.get(library)
    if build is not None and not is_library_model(source):
        raise InputError(f"model {source!r}: {name!r} is no name of a {library} model")
    try:
        if build is not None:
            return build(name, dict(arguments or {}))
        module = getattr(importlib.import_module(library), name)(**(arguments or {}))
    except (InputError, MissingRuntimeError):
        raise
    except ModuleNotFoundError as err:
        raise InputError(f"model {source!r}: {err}; install it, or put its folder on PYTHONPATH") from err
    except Exception as err:
        raise InputError(f"model {source!r} cannot be built: {type(err).__name__}: {err}") from err
    if not isinstance(module, nn.Module):
        raise InputError(f"model {source!r} gives a {type(module).__name__}, not a torch module")
    return SourcedModel(module)


def _torchvision_model(name: str, arguments: dict[str, Any]) -> SourcedModel:
    advice = f"install the torchvision made for this torch ({torch.__version__})"
    models = _imported("torchvision", advice).models
    if name not in models.list_models(module=models):
        close = models.list_models(module=models, include=f"*{name[:4]}*")
        raise _unknown("torchvision has no classification model", name, close)
    if name in ("googlenet", "inception_v3"):
        arguments = {"init_weights": False, **arguments}  # slow, and the weights come from elsewhere
    module = models.get_model(name, weights=None, **arguments)
    preset = models.get_model_weights(name).DEFAULT.transforms()
    side = int(preset.crop_size[0])
    shorter_side = max(int(preset.resize_size[0]), side)
    return SourcedModel(module, _preprocessing((side, side), shorter_side, preset.mean, preset.std))


def _timm_model(name: str, arguments: dict[str, Any]) -> SourcedModel:
    timm = _imported("timm", "pip install timm")
    if not timm.is_model(name.partition(".")[0]):
        raise _unknown("timm has no model", name, timm.list_models(f"*{name[:4]}*"))
    module = timm.create_model(name, pretrained=False, **arguments)
    cfg: Mapping[str, Any] = module.pretrained_cfg
    channels, height, width = (int(size) for size in cfg["input_size"])
    if channels != 3:
        return SourcedModel(module)
    shorter_side = int(min(height, width) / float(cfg.get("crop_pct") or 1.0))
    return SourcedModel(module, _preprocessing((height, width), shorter_side, cfg["mean"], cfg["std"]))


def _imported(library: str, advice: str) -> Any:
    try:
        return importlib.import_module(library)
    except (ImportError, RuntimeError) as err:
        raise MissingRuntimeError(f"{library} cannot be imported ({err}); {advice}") from err


def _unknown(complaint: str, name: str, close: Sequence[str]) -> InputError:
    return InputError(f"{complaint} {name!r}; similar: {', '.join(close[:_LISTED_KEYS]) or 'none'}")


def _preprocessing(
    size: tuple[int, int], shorter_side: int, mean: Iterable[float], std: Iterable[float]
) -> Preprocessing:
    mean, std = tuple(map(float, mean)), tuple(map(float, std))
    return Preprocessing(colour="RGB", size=size, shorter_side=shorter_side, mean=mean, std=std)


def load_weights(
    module: nn.Module, path: str | Path, section: str | None = None, ignore: Sequence[str] = ()
) -> LoadedWeights:
    """Fill a module from a file of tensors; nothing in the file is executed.

    Understood are safetensors and ``.pt`` files read with ``weights_only=True``; wrappers such
    as ``{"state_dict": …}``, of which averaged weights (EMA) come first; and the prefixes that
    DataParallel and torch.compile leave.

    Args:
        module: Filled in place, wholly or not at all.
        path: The file.
        section: Key of the wrapper to read, where not the first that is known.
        ignore: ``fnmatch`` patterns of keys that may be missing or too many; those of
            ``num_batches_tracked``, which nothing reads, always may.

    Raises:
        CheckpointError: The file cannot be read without running code in it, or its tensors
            do not fit; keys are listed.
    """
    path = Path(path)
    state, section = _section(_read_tensors(path), section, path)
    expected = module.state_dict()
    state = _without_prefix(state, expected)
    missing, unexpected = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    wrong = [
        f"{name} {tuple(state[name].shape)} for {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in state and state[name].shape != tensor.shape
    ]
    patterns = (*ignore, "*num_batches_tracked", "n_averaged")
    ignored = [key for key in (*missing, *unexpected) if any(fnmatch.fnmatchcase(key, p) for p in patterns)]
    missing = [key for key in missing if key not in ignored]
    unexpected = [key for key in unexpected if key not in ignored]
    complaints = {"missing": missing, "unexpected": unexpected, "of another shape": wrong}
    text = "; ".join(f"{what}: {_listed(keys)}" for what, keys in complaints.items() if keys)
    if text:
        raise CheckpointError(
            f"{path} does not fit {type(module).__name__}: {text}. Keys that do not matter can be ignored "
            "by pattern; another number of classes is an argument of the model"
        )
    module.load_state_dict({**expected, **{k: v for k, v in state.items() if k in expected}})
    return LoadedWeights(section, tuple(ignored))


def _read_tensors(path: Path) -> Mapping[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise CheckpointError(f"{path} is no file of weights")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (OSError, SafetensorError) as err:
            raise CheckpointError(f"{path} cannot be read: {err}") from err
    try:
        loaded = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as err:  # a malformed pickle may raise anything
        raise CheckpointError(
            f"{path} is damaged or holds pickled code, which could do anything when read; it was not read. "
            "Save the state dict alone, or as safetensors"
        ) from err
    if not isinstance(loaded, Mapping):
        raise CheckpointError(f"{path} holds a {type(loaded).__name__}, not tensors by name")
    return loaded


def _section(
    loaded: Mapping[str, Any], wanted: str | None, path: Path
) -> tuple[dict[str, Tensor], str | None]:
    """Unwrap what training scripts wrap around a state dict."""
    if wanted is not None and not isinstance(loaded.get(wanted), Mapping):
        raise CheckpointError(f"{path} has no section {wanted!r}; it has {_listed(list(map(str, loaded)))}")
    known = (*_AVERAGED_SECTIONS, *_SECTIONS)
    found = wanted or next((key for key in known if isinstance(loaded.get(key), Mapping)), None)
    section = found
    while found is not None:
        loaded = loaded[found]
        found = next((key for key in _SECTIONS if isinstance(loaded.get(key), Mapping)), None)
    tensors = {str(key): value for key, value in loaded.items() if isinstance(value, Tensor)}
    if not tensors:
        raise CheckpointError(
            f"{path} holds no tensors, but {_listed(list(map(str, loaded)))}; name the section they are in"
        )
    return tensors, section


def _without_prefix(state: dict[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    for prefix in _PREFIXES:
        named = [key for key in state if key != "n_averaged"]
        own = any(key.startswith(prefix) for key in expected)
        if named and not own and all(key.startswith(prefix) for key in named):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def _listed(keys: Sequence[str]) -> str:
    more = f" and {len(keys) - _LISTED_KEYS} more" if len(keys) > _LISTED_KEYS else ""
    return ", ".join(keys[:_LISTED_KEYS]) + more
