"""A directory or file appears whole or not at all, and never at the cost of somebody else's."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from rnp_deploy.atomic import atomic_directory, atomic_file, check_output
from rnp_deploy.errors import InputError, OutputError, OutputExistsError, RnpError

MARKER = "mine.json"


def write(target, text="new", *, overwrite=False):
    with atomic_directory(target, overwrite=overwrite, marker=MARKER) as folder:
        (folder / MARKER).write_text(text)


@pytest.fixture
def earlier(tmp_path):
    write(tmp_path / "out", "earlier")
    (tmp_path / "out/more").mkdir()
    return tmp_path / "out"


def test_it_appears_when_the_block_ends_and_not_before(tmp_path):
    target = tmp_path / "out"
    with atomic_directory(target, overwrite=False, marker=MARKER) as folder:
        (folder / "inner").mkdir()
        (folder / "inner/file").write_text("content")
        assert not target.exists()
        assert folder.parent == tmp_path, "a rename from another file system would not be atomic"
    assert (target / "inner/file").read_text() == "content"
    assert os.listdir(tmp_path) == ["out"]


def test_its_mode_is_that_of_any_new_directory(tmp_path):
    write(tmp_path / "out")
    (tmp_path / "plain").mkdir()
    assert (tmp_path / "out").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_exception_leaves_nothing(tmp_path, error):
    with pytest.raises(error), atomic_directory(tmp_path / "out", overwrite=False, marker=MARKER) as folder:
        (folder / MARKER).write_text("half")
        raise error
    assert os.listdir(tmp_path) == []


def test_an_exception_leaves_the_earlier_output(earlier):
    with pytest.raises(ValueError), atomic_directory(earlier, overwrite=True, marker=MARKER) as folder:
        (folder / MARKER).write_text("half")
        raise ValueError
    assert (earlier / MARKER).read_text() == "earlier"
    assert os.listdir(earlier.parent) == ["out"]


def test_an_output_that_cannot_be_renamed_leaves_the_earlier_one(earlier, monkeypatch):
    rename = type(earlier).rename

    def fail(self, target):
        if ".partial-" in self.name:
            raise OSError("the disk went away")
        return rename(self, target)

    monkeypatch.setattr(type(earlier), "rename", fail)
    with pytest.raises(OutputError, match=r"out cannot be written: the disk went away"):
        write(earlier, overwrite=True)
    assert (earlier / MARKER).read_text() == "earlier"
    assert os.listdir(earlier.parent) == ["out"]


@pytest.mark.parametrize("before", ["nothing", "earlier"])
def test_a_killed_process_leaves_nothing_new_under_the_final_name(tmp_path, before):
    target = tmp_path / "out"
    if before == "earlier":
        write(target, "earlier")
    code = (
        "import pathlib, sys, time\n"
        "from rnp_deploy.atomic import atomic_directory\n"
        "with atomic_directory(pathlib.Path(sys.argv[1]), overwrite=True, marker='mine.json') as folder:\n"
        "    (folder / 'mine.json').write_text('half')\n"
        "    print('written', flush=True)\n"
        "    time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(target)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "written\n"
        process.send_signal(signal.SIGKILL)
    assert all(name.startswith(".out.partial-") for name in os.listdir(tmp_path) if name != "out")
    assert target.exists() == (before == "earlier")
    if before == "earlier":
        assert (target / MARKER).read_text() == "earlier"
    write(target, overwrite=True)
    assert (target / MARKER).read_text() == "new"


def foreign(path):
    path.mkdir()
    (path / "thesis.txt").write_text("irreplaceable")


def a_file(path):
    path.write_text("irreplaceable")


def link_to_ours(path):
    write(path.parent / "real")
    path.symlink_to(path.parent / "real")


def dangling_link(path):
    path.symlink_to(path.parent / "nowhere")


def marker_is_a_folder(path):
    (path / MARKER).mkdir(parents=True)


@pytest.mark.parametrize("make", [foreign, a_file, link_to_ours, dangling_link, marker_is_a_folder])
@pytest.mark.parametrize(
    ("overwrite", "words"), [(False, "exists; pass --overwrite"), (True, "not ours to overwrite")]
)
def test_what_is_not_ours_is_never_replaced(tmp_path, make, overwrite, words):
    target = tmp_path / "out"
    make(target)
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(OutputExistsError, match=words) as caught:
        write(target, overwrite=overwrite)
    assert str(target) in str(caught.value)
    assert sorted(os.listdir(tmp_path)) == before
    assert target.is_symlink() or not (target / MARKER).is_file()


def test_an_earlier_output_is_replaced_only_when_asked(earlier):
    with pytest.raises(OutputExistsError, match="--overwrite"):
        write(earlier)
    assert (earlier / MARKER).read_text() == "earlier"
    write(earlier, overwrite=True)
    assert (earlier / MARKER).read_text() == "new"
    assert os.listdir(earlier) == [MARKER], "files of the earlier output stayed"
    assert os.listdir(earlier.parent) == ["out"]


def test_an_empty_directory_is_replaced_when_asked(tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputExistsError):
        write(tmp_path / "out")
    write(tmp_path / "out", overwrite=True)
    assert (tmp_path / "out" / MARKER).read_text() == "new"


def test_what_appears_while_writing_is_not_replaced(tmp_path):
    target = tmp_path / "out"
    with (
        pytest.raises(OutputExistsError),
        atomic_directory(target, overwrite=False, marker=MARKER) as folder,
    ):
        (folder / MARKER).write_text("late")
        foreign(target)
    assert os.listdir(target) == ["thesis.txt"]
    assert os.listdir(tmp_path) == ["out"]


def test_the_current_directory_is_replaced_or_refused(earlier, monkeypatch):
    """``-o .`` has no name to rename."""
    monkeypatch.chdir(earlier)
    try:
        write(type(earlier)("."), overwrite=True)
    except RnpError:
        assert (earlier / MARKER).read_text() == "earlier"
    else:
        assert (earlier / MARKER).read_text() == "new"
    assert os.listdir(earlier.parent) == ["out"]


@pytest.mark.parametrize("parent", ["missing", "missing/deeper", "file"])
def test_a_missing_parent_is_named(tmp_path, parent):
    (tmp_path / "file").write_text("")
    for call in (write, lambda target: check_output(target, overwrite=False, marker=MARKER)):
        with pytest.raises(InputError, match=f"{parent} does not exist; create it"):
            call(tmp_path / parent / "out")
    assert os.listdir(tmp_path) == ["file"]


def test_a_relative_path_is_written_where_the_process_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(type(tmp_path)("out"))
    assert (tmp_path / "out" / MARKER).is_file()


def write_file(target, text="new: mine", *, overwrite=False):
    with atomic_file(target, overwrite=overwrite, marker=b"mine") as partial:
        assert partial.parent == target.parent, "a rename from another file system would not be atomic"
        partial.write_text(text)
        assert not target.exists() or target.read_text() != text


def test_a_file_appears_when_the_block_ends_and_replaces_its_like(tmp_path):
    write_file(tmp_path / "out", "earlier: mine")
    with pytest.raises(OutputExistsError, match="pass --overwrite"):
        write_file(tmp_path / "out")
    write_file(tmp_path / "out", overwrite=True)
    assert (tmp_path / "out").read_text() == "new: mine"
    (tmp_path / "empty").touch()
    write_file(tmp_path / "empty", overwrite=True)
    assert sorted(os.listdir(tmp_path)) == ["empty", "out"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, OSError])
@pytest.mark.parametrize("written", [True, False])
def test_an_exception_leaves_the_earlier_file(tmp_path, error, written):
    write_file(tmp_path / "out", "earlier: mine")
    raised = OutputError if error is OSError else error
    with pytest.raises(raised), atomic_file(tmp_path / "out", overwrite=True, marker=b"mine") as partial:
        if written:
            partial.write_text("half")
        raise error
    assert (tmp_path / "out").read_text() == "earlier: mine"
    assert os.listdir(tmp_path) == ["out"]


def test_a_file_of_somebody_elses_that_appeared_meanwhile_stays(tmp_path):
    with (
        pytest.raises(OutputExistsError),
        atomic_file(tmp_path / "out", overwrite=False, marker=b"mine") as partial,
    ):
        partial.write_text("new: mine")
        (tmp_path / "out").write_text("theirs")
    assert (tmp_path / "out").read_text() == "theirs"
    assert os.listdir(tmp_path) == ["out"]
