"""ONNX Runtime's library and headers, laid out for programs in C++.

The library is that of the installed wheel, so that both run the same. Wheels hold no headers: they are taken from where a
user has them, or out of Debian's package, which is downloaded and unpacked, not installed. Headers may be older than the
library, not newer.
"""

from __future__ import annotations

import re
import shutil
from importlib import util
from pathlib import Path

from rnp_deploy.atomic import atomic_directory
from rnp_deploy.engines.debian_package import DEFAULT_SUITE, SYSTEM_SOURCES, unpacked_package
from rnp_deploy.errors import InputError, MissingRuntimeError

__all__ = ["SYSTEM_INCLUDES", "installed_library", "lay_out_sdk"]

#: Where installations of ONNX Runtime put their headers.
SYSTEM_INCLUDES = tuple(
    Path(prefix, "include", *below)
    for prefix in ("/usr/local", "/usr")
    for below in (("onnxruntime",), ("onnxruntime", "core", "session"), ())
)
_HEADER = "onnxruntime_cxx_api.h"
_C_HEADER = "onnxruntime_c_api.h"
_MARKER = ".rnp-onnxruntime-sdk"
_PACKAGE = "libonnxruntime-dev"
_ELSEWHERE = (
    "pass --include DIR with those of ONNX Runtime's source (include/onnxruntime/core/session) or of an unpacked release "
    "archive"
)


def lay_out_sdk(
    target: Path,
    *,
    include: Path | None = None,
    suite: str = DEFAULT_SUITE,
    sources: tuple[Path, ...] = SYSTEM_SOURCES,
    system_includes: tuple[Path, ...] = SYSTEM_INCLUDES,
) -> bool:
    """Write ``lib/`` and ``include/`` below a directory, for ``-DONNXRUNTIME_ROOT``.

    Args:
        target: Where; one that this wrote earlier is replaced, unless it has the installed library already.
        include: A folder of headers, or None: those of the system, or of Debian's package.
        suite: The release of Debian that the package is taken from.
        sources: Of apt: where packages come from.
        system_includes: Where headers are looked for.

    Returns:
        Whether anything was written.

    Raises:
        MissingRuntimeError: onnxruntime is not installed, has no library to link to, or headers are nowhere.
        InputError: ``include`` has no headers, or newer ones than the library.
        OutputError: ``target`` cannot be written, or holds something else.
    """
    library = installed_library()
    written = library.name if include is None else f"{library.name} {include.absolute()}"
    if include is None and _text(target / _MARKER) == written and (target / "lib" / library.name).is_file():
        return False
    with atomic_directory(target, overwrite=True, marker=_MARKER) as folder:
        _copy_library(library, folder / "lib")
        _copy_headers(folder, include, suite, sources, system_includes)
        _check_headers(folder / "include", library)
        (folder / _MARKER).write_text(written, encoding="utf-8")
    return True


def installed_library() -> Path:
    """The library of the installed wheel; raises MissingRuntimeError."""
    spec = util.find_spec("onnxruntime")
    if spec is None or not spec.submodule_search_locations:
        raise MissingRuntimeError("onnxruntime is not installed; pip install 'rnp-deploy[cpu]'")
    folder = Path(spec.submodule_search_locations[0]) / "capi"
    found = sorted(folder.glob("libonnxruntime.so.*.*"))
    if not found:
        raise MissingRuntimeError(
            f"{folder} has no libonnxruntime.so: the wheel of this system or version holds none; take an archive of "
            "ONNX Runtime's releases instead, which has headers too"
        )
    return found[-1]


def _copy_library(library: Path, folder: Path) -> None:
    folder.mkdir()
    shutil.copyfile(library, folder / library.name)
    for provider in library.parent.glob("libonnxruntime_providers_*.so"):
        shutil.copyfile(provider, folder / provider.name)
    for link in ("libonnxruntime.so.1", "libonnxruntime.so"):
        (folder / link).symlink_to(library.name)


def _copy_headers(
    folder: Path,
    include: Path | None,
    suite: str,
    sources: tuple[Path, ...],
    system_includes: tuple[Path, ...],
) -> None:
    if include is not None:
        if not (include / _HEADER).is_file():
            raise InputError(f"{include} has no {_HEADER}; {_ELSEWHERE}")
        shutil.copytree(include, folder / "include")
        return
    there = next((path for path in system_includes if (path / _HEADER).is_file()), None)
    if there is not None:
        _copy_flat(there, folder / "include")
        return
    try:
        with unpacked_package(_PACKAGE, suite, sources) as unpacked:
            found = [header.parent for header in unpacked.rglob(_HEADER)]
            if found:
                _copy_flat(found[0], folder / "include")
    except MissingRuntimeError as err:
        raise MissingRuntimeError(f"headers of ONNX Runtime: {err}; {_ELSEWHERE}") from err
    if not found:
        raise MissingRuntimeError(f"{_PACKAGE} of {suite} holds no {_HEADER}; {_ELSEWHERE}")


def _copy_flat(include: Path, folder: Path) -> None:
    """Only ONNX Runtime's own: the folder may be the system's."""
    folder.mkdir()
    for pattern in ("onnxruntime_*.h", "*provider*.h"):
        for header in include.glob(pattern):
            shutil.copyfile(header, folder / header.name)


def _check_headers(include: Path, library: Path) -> None:
    found = re.search(r"#define ORT_API_VERSION (\d+)", _text(include / _C_HEADER))
    version = library.name.partition(".so.")[2]
    if found is None or int(found[1]) > int(version.split(".")[1]):
        headers = f"of 1.{found[1]}" if found else "of no known version"
        raise InputError(
            f"the headers are {headers}, the library is {version}; {_ELSEWHERE} of {version} or older"
        )


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8") if file.is_file() else ""
