"""Files of a Debian package that is not installed, of whatever release has it."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rnp_deploy.errors import MissingRuntimeError

__all__ = ["DEFAULT_SUITE", "SYSTEM_SOURCES", "sources_of_suite", "unpacked_package"]

DEFAULT_SUITE = "trixie"
#: Files, and folders of files, that say where apt takes packages from.
SYSTEM_SOURCES = (Path("/etc/apt/sources.list.d"), Path("/etc/apt/sources.list"))
_STATUS = Path("/var/lib/dpkg/status")
_ONE_LINE = re.compile(
    r"deb\s+(?:\[(?P<options>[^]]*)\]\s+)?(?P<uri>\S+)\s+(?P<suite>\S+)\s+(?P<components>.+)"
)
_SECONDS = 150.0  #: All of it, downloads included.
# Commands that the system's settings have apt run would be run for a folder that is none of theirs.
_APT_CONFIG = """\
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear DPkg::Pre-Invoke;
#clear DPkg::Pre-Install-Pkgs;
#clear DPkg::Post-Invoke;
"""


@contextmanager
def unpacked_package(name: str, suite: str, sources: tuple[Path, ...] = SYSTEM_SOURCES) -> Iterator[Path]:
    """Download a package and yield the folder it is unpacked in, for as long as the block lasts.

    apt gets the system's own sources with another suite, and state and caches of its own: nothing of the system is
    changed, and no rights are needed.

    Raises:
        MissingRuntimeError: No Debian, or the package cannot be had from there.
    """
    missing = [tool for tool in ("apt-get", "dpkg-deb") if shutil.which(tool) is None]
    if missing:
        raise MissingRuntimeError(
            f"{' and '.join(missing)} are not here, so no package of Debian can be unpacked"
        )
    text = sources_of_suite(sources, suite)
    with tempfile.TemporaryDirectory(prefix="rnp-apt-") as temporary:
        private = Path(temporary)
        (private / "rnp.sources").write_text(text, encoding="utf-8")
        (private / "apt.conf").write_text(_APT_CONFIG, encoding="ascii")
        end = time.monotonic() + _SECONDS
        for folder in ("state/lists/partial", "cache/archives/partial", "parts", "unpacked"):
            (private / folder).mkdir(parents=True)
        settings = _settings(private)
        _run(["apt-get", *settings, "update"], private, end)
        _run(["apt-get", *settings, "download", name], private, end)
        archive = next(private.glob("*.deb"), None)
        if archive is None:
            raise MissingRuntimeError(f"apt downloaded nothing for {name} of {suite}")
        _run(["dpkg-deb", "-x", str(archive), str(private / "unpacked")], private, end)
        yield private / "unpacked"


def sources_of_suite(sources: tuple[Path, ...], suite: str) -> str:
    """The first of the system's sources that is a release, as a deb822 stanza for another suite.

    Raises:
        MissingRuntimeError: There is none, or a file of them cannot be read.
    """
    for file in _source_files(sources):
        try:
            text = file.read_text(encoding="utf-8", errors="replace")
        except OSError as err:
            raise MissingRuntimeError(
                f"{file}, which apt takes packages from, cannot be read: {err}"
            ) from err
        stanzas = _stanzas(text) if file.suffix == ".sources" else _one_line_stanzas(text)
        for fields in stanzas:
            suites = fields.get("suites", "").split()
            # Updates and security fixes have suites of their own, such as bookworm-security.
            if "deb" in fields.get("types", "").split() and suites and "-" not in suites[0]:
                fields |= {"types": "deb", "suites": suite}
                return "".join(f"{name.title()}: {value}\n" for name, value in fields.items())
    looked = ", ".join(map(str, sources))
    raise MissingRuntimeError(f"{looked} name no release that apt takes packages from")


def _source_files(sources: tuple[Path, ...]) -> Iterator[Path]:
    for source in sources:
        try:
            inside = sorted(source.iterdir()) if source.is_dir() else []
            is_file = source.is_file()
        except OSError as err:
            raise MissingRuntimeError(
                f"{source}, which apt takes packages from, cannot be read: {err}"
            ) from err
        yield from (path for path in inside if path.suffix in (".sources", ".list"))
        if is_file:
            yield source


def _stanzas(text: str) -> Iterator[dict[str, str]]:
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    for stanza in re.split(r"\n\s*\n", "\n".join(lines)):
        fields: dict[str, str] = {}
        last = ""
        for line in stanza.splitlines():
            if line[:1].isspace() and last:  # a value may go on, as keys do
                fields[last] += f"\n{line}"
            elif ":" in line:
                last, _, value = line.partition(":")
                last = last.strip().lower()
                fields[last] = value.strip()
        if fields.get("enabled", "yes").lower() not in ("no", "false", "0"):
            yield fields


def _one_line_stanzas(text: str) -> Iterator[dict[str, str]]:
    for line in text.splitlines():
        found = _ONE_LINE.fullmatch(line.partition("#")[0].strip())
        if found is None:
            continue
        fields = {"types": "deb", "uris": found["uri"], "suites": found["suite"]}
        fields["components"] = found["components"]
        for option in (found["options"] or "").split():
            key, _, value = option.partition("=")
            fields[{"arch": "architectures"}.get(key, key)] = value.replace(",", " ")
        yield fields


def _settings(private: Path) -> list[str]:
    options = {
        "Dir::State": private / "state",
        "Dir::State::status": _STATUS,
        "Dir::Cache": private / "cache",
        "Dir::Etc::sourcelist": private / "rnp.sources",
        "Dir::Etc::sourceparts": private / "parts",
        "APT::Sandbox::User": "root",  # the private folder is closed to apt's own user
        "APT::Get::List-Cleanup": "0",
        "Acquire::Languages": "none",
        "Acquire::Retries": "1",
        "Acquire::http::Timeout": "20",
        "Acquire::https::Timeout": "20",
    }
    # The file is read after the system's settings, which it takes the commands out of; one in APT_CONFIG would be before.
    return [
        "-qq",
        "-c",
        str(private / "apt.conf"),
        *(part for name, value in options.items() for part in ("-o", f"{name}={value}")),
    ]


def _run(command: list[str], folder: Path, end: float) -> None:
    """Run a command, until ``end`` by the monotonic clock at most."""
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=max(end - time.monotonic(), 0.1),
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as err:
        raise MissingRuntimeError(f"{command[0]} failed: {err}") from err
    if done.returncode != 0:
        said = [line for line in done.stderr.splitlines() if line.startswith("E:")] or [done.stderr.strip()]
        raise MissingRuntimeError(f"{command[0]} {command[-1]} failed: {' '.join(said)}")
