"""The state of an unfinished run: whole or not there, of this run, and no code."""

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from rnp_deploy.errors import InputError, OutputError, OutputExistsError
from rnp_deploy.training.run_state import STATE_FILE, begin_run, end_run, read_state, write_state

IDENTITY = {"seed": 0, "penalty_range": [-0.02, 0.5], "data": "digits", "pruning": {"groups": 2}}


def test_what_is_written_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "out.run"
    assert read_state(folder, IDENTITY) is None
    for step in (1, 2):
        content: dict[str, Any] = {
            "step": step, "loss_sum": 0.1 * step, "orders": {"3": (1, 0)}, "module": {"w": torch.ones(2)}
        }  # fmt: skip
        write_state(folder, IDENTITY, content)
        read = read_state(folder, IDENTITY)
        assert read is not None
        assert torch.equal(read["module"].pop("w"), content["module"].pop("w"))
        assert {name: read[name] for name in content} == content
    assert [path.name for path in folder.iterdir()] == [STATE_FILE]


def test_a_write_that_fails_leaves_the_state_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_state(tmp_path, IDENTITY, {"step": 1})

    def full(content: Any, stream: Any) -> None:
        stream.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OutputError, match=r"state\.pt cannot be written: .*No space left"):
        write_state(tmp_path, IDENTITY, {"step": 2})
    read = read_state(tmp_path, IDENTITY)
    assert read is not None
    assert read["step"] == 1


def test_the_state_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = []
    sync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda file: (events.append("sync"), sync(file)))
    monkeypatch.setattr(Path, "replace", lambda one, two: (events.append("replace"), replace(one, two)))
    write_state(tmp_path, IDENTITY, {"step": 1})
    assert events == ["sync", "replace"]


class Payload:
    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.victim}",)


def malicious(path: Path) -> None:
    torch.save({"format": 1, "identity": IDENTITY, "step": Payload(path.with_name("ran"))}, path)


def malicious_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps(Payload(path.with_name("ran")), protocol=2))


def cut_short(path: Path) -> None:
    write_state(path.parent, IDENTITY, {"step": 1, "module": torch.ones(100)})
    path.write_bytes(path.read_bytes()[:-200])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: path.write_bytes(b""), "cannot be read"),
        (lambda path: path.write_bytes(b"not a state"), "cannot be read"),
        (cut_short, "cannot be read"),
        (malicious, "cannot be read"),
        (malicious_pickle, "cannot be read"),
        (lambda path: torch.save([1, 2], path), "cannot be read"),
        (lambda path: torch.save({"weights": torch.ones(1)}, path), "cannot be read"),
        (lambda path: torch.save({"format": 99, "identity": IDENTITY}, path), "another version"),
    ],
)
def test_what_is_no_state_of_ours_is_refused_and_not_run(make: Any, words: str, tmp_path: Path) -> None:
    make(tmp_path / STATE_FILE)
    with pytest.raises(InputError, match=words) as caught:
        read_state(tmp_path, IDENTITY)
    assert f"remove {tmp_path} to begin anew" in str(caught.value)
    assert not (tmp_path / "ran").exists()


def test_another_configuration_is_refused_naming_what_differs(tmp_path: Path) -> None:
    write_state(tmp_path, {**IDENTITY, "old": 1}, {"step": 1})
    with pytest.raises(InputError) as caught:
        read_state(tmp_path, {**IDENTITY, "seed": 3, "pruning": {"groups": 4}})
    message = str(caught.value)
    assert "old was 1, is None; pruning was {'groups': 2}, is {'groups': 4}; seed was 0, is 3;" in message
    assert "data was" not in message
    assert "--overwrite without --resume to begin anew" in message


@pytest.mark.parametrize(
    ("unfinished", "resume", "overwrite", "kept"),
    [
        (False, False, False, False),
        (False, True, False, False),
        (False, False, True, False),
        (True, False, False, None),
        (True, True, False, True),
        (True, False, True, False),
        (True, True, True, True),
    ],
)
def test_an_unfinished_run_is_gone_on_with_or_given_up_as_asked(
    unfinished: bool, resume: bool, overwrite: bool, kept: bool | None, tmp_path: Path
) -> None:
    folder = tmp_path / "out.run"
    if unfinished:
        write_state(folder, IDENTITY, {"step": 1})
    if kept is None:
        with pytest.raises(
            OutputExistsError, match=r"out\.run holds an unfinished run.*--resume.*--overwrite"
        ):
            begin_run(folder, resume=resume, overwrite=overwrite)
        assert read_state(folder, IDENTITY)
    else:
        begin_run(folder, resume=resume, overwrite=overwrite)
        assert (read_state(folder, IDENTITY) is not None) == kept
    end_run(folder)
    assert not folder.exists()


def test_what_else_lies_in_the_folder_of_a_run_is_not_ours_to_remove(tmp_path: Path) -> None:
    write_state(tmp_path, IDENTITY, {})
    (tmp_path / "mine.txt").write_text("keep")
    end_run(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
