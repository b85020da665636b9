"""Only plain files are read, whatever took their place after they were looked at."""

from __future__ import annotations

import os

import pytest

from rnp_deploy.plain_file import FileIsLinkError, NotPlainFileError, open_plain, read_plain


def test_a_file_is_read_up_to_the_limit(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(b"12345")
    assert read_plain(file, 5) == b"12345"
    with pytest.raises(ValueError, match="5 bytes; at most 4 are read"):
        read_plain(file, 4)
    with open_plain(file) as (stream, size):
        assert (stream.read(), size) == (b"12345", 5)


def test_a_link_is_followed_only_where_that_is_asked_for(tmp_path):
    (tmp_path / "file").write_bytes(b"1")
    (tmp_path / "link").symlink_to("file")
    with pytest.raises(FileIsLinkError, match="it is a link"):
        read_plain(tmp_path / "link", 9)
    assert read_plain(tmp_path / "link", 9, follow=True) == b"1"


@pytest.mark.timeout(30)
def test_a_pipe_is_not_waited_for_and_a_folder_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(NotPlainFileError, match="no plain file"):
            read_plain(path, 9)


def test_what_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_plain(tmp_path / "none", 9)
