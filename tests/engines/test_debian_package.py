"""A package is unpacked from the system's own sources under another suite, with stand-ins for apt and dpkg."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from rnp_deploy.engines import debian_package
from rnp_deploy.engines.debian_package import sources_of_suite, unpacked_package
from rnp_deploy.errors import MissingRuntimeError

DEB822 = """\
# made by a machine
Types: deb deb-src
URIs: http://mirror.example/debian
Suites: old old-updates
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 abc

Types: deb
URIs: http://mirror.example/security
Suites: old-security
Components: main
"""
APT = """\
#!/bin/sh
echo "$@" >> "$RECORD/apt"
cp rnp.sources "$RECORD/sources"
[ "$2" = -c ] && cp "$3" "$RECORD/config"
[ -z "$SLEEPS" ] || exec sleep 30
for last; do :; done
case "$*" in
  *" update") [ -z "$UPDATE_FAILS" ] || { echo "W: slow" >&2; echo "E: no $UPDATE_FAILS" >&2; exit 100; } ;;
  *" download "*) [ -n "$GIVES_NOTHING" ] || : > "${last}_1_amd64.deb" ;;
esac
"""
DPKG = """\
#!/bin/sh
mkdir -p "$3/usr/include" && echo "$2" > "$3/usr/include/from"
"""


@pytest.fixture
def record(tmp_path, monkeypatch):
    """Stand-ins come first in PATH; what they were told lies in the folder."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in (("apt-get", APT), ("dpkg-deb", DPKG)):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("RECORD", str(tmp_path))
    return tmp_path


def source(folder: Path, text: str = DEB822, name: str = "debian.sources") -> Path:
    file = folder / name
    file.write_text(text)
    return file


def test_the_first_release_is_taken_with_its_keys_and_another_suite(tmp_path):
    assert sources_of_suite((source(tmp_path),), "new") == (
        "Types: deb\nUris: http://mirror.example/debian\nSuites: new\nComponents: main\n"
        "Signed-By: \n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n abc\n"
    )


def test_folders_are_looked_through_and_what_is_switched_off_is_not_taken(tmp_path):
    folder = tmp_path / "sources.list.d"
    folder.mkdir()
    source(folder, "Enabled: no\n" + DEB822.partition("\n\n")[0].partition("\n")[2], "a.sources")
    source(folder, "not for apt", "b.txt")
    source(folder, DEB822.replace("mirror", "second"), "c.sources")
    assert "second.example/debian" in sources_of_suite((tmp_path / "none", folder), "new")


def test_old_lists_of_one_line_each(tmp_path):
    text = "# deb http://a.example x main\ndeb-src http://b.example x main\n"
    text += "deb http://s.example x-security main\n"
    text += "deb [arch=amd64,i386 signed-by=/k.gpg] http://c.example/debian x main contrib # ours\n"
    assert sources_of_suite((source(tmp_path, text, "sources.list"),), "new") == (
        "Types: deb\nUris: http://c.example/debian\nSuites: new\nComponents: main contrib\n"
        "Architectures: amd64 i386\nSigned-By: /k.gpg\n"
    )


def test_no_release_among_the_sources(tmp_path):
    with pytest.raises(MissingRuntimeError, match=r"debian\.sources name no release"):
        sources_of_suite((source(tmp_path, DEB822.partition("\n\n")[2]),), "new")


def test_a_package_is_downloaded_and_unpacked_with_nothing_of_the_system_changed(record):
    with unpacked_package("libthing-dev", "new", (source(record),)) as unpacked:
        deb = Path((unpacked / "usr/include/from").read_text().strip())
        assert deb.name == "libthing-dev_1_amd64.deb"
        private = unpacked.parent
    assert not private.exists()
    update, download = (record / "apt").read_text().splitlines()
    assert update.endswith(" update")
    assert download.endswith(" download libthing-dev")
    for line in (update, download):
        for setting in ("Dir::State", "Dir::Cache", "Dir::Etc::sourcelist", "Dir::Etc::sourceparts"):
            assert f"-o {setting}={private}/" in line
        assert "-o Dir::State::status=/var/lib/dpkg/status" in line
    assert "Suites: new" in (record / "sources").read_text()
    config = (record / "config").read_text()
    assert "#clear APT::Update::Post-Invoke;\n" in config
    assert "#clear DPkg::Post-Invoke;\n" in config


@pytest.mark.timeout(20)
def test_all_of_it_has_an_end(record, monkeypatch):
    monkeypatch.setenv("SLEEPS", "1")
    monkeypatch.setattr(debian_package, "_SECONDS", 0.5)
    with (
        pytest.raises(MissingRuntimeError, match=r"apt-get failed: .*timed out"),
        unpacked_package("libthing-dev", "new", (source(record),)),
    ):
        pass


def test_sources_that_cannot_be_read(tmp_path, monkeypatch):
    file = source(tmp_path)

    def refused(path, **_):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_text", refused)
    with pytest.raises(MissingRuntimeError, match=r"debian\.sources, which apt .* cannot be read"):
        sources_of_suite((file,), "new")


@pytest.mark.parametrize(
    ("variable", "words"),
    [
        ("UPDATE_FAILS", "update failed: E: no network$"),
        ("GIVES_NOTHING", "downloaded nothing for libthing-dev of new"),
    ],
)
def test_what_apt_says_is_passed_on(record, monkeypatch, variable, words):
    monkeypatch.setenv(variable, "network")
    with (
        pytest.raises(MissingRuntimeError, match=words),
        unpacked_package("libthing-dev", "new", (source(record),)),
    ):
        pass


def test_no_debian(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with (
        pytest.raises(MissingRuntimeError, match="apt-get and dpkg-deb are not here"),
        unpacked_package("libthing-dev", "new", (source(tmp_path),)),
    ):
        pass
