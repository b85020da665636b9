"""Which TensorRT is found, and what is said where none is."""

from __future__ import annotations

import builtins
import logging
import sys

import pytest

from fake_tensorrt_builder import fake_tensorrt_builder
from rnp_deploy.engines.trt_library import load_tensorrt, said_by, tensorrt_logger
from rnp_deploy.errors import MissingRuntimeError

NAMES = ("tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings")


@pytest.fixture
def installed(monkeypatch):
    """Names → stand-ins that can be imported; all others are absent."""

    def install(**modules):
        for name in NAMES:
            monkeypatch.setitem(sys.modules, name, modules.get(name))

    return install


@pytest.mark.parametrize(
    ("there", "flavor", "found"),
    [
        (["tensorrt", "tensorrt_rtx"], "auto", "tensorrt"),
        (["tensorrt_rtx"], "auto", "rtx"),
        (["tensorrt_rtx_bindings"], "auto", "rtx"),
        (["tensorrt", "tensorrt_rtx"], "rtx", "rtx"),
    ],
)
def test_which_is_taken(installed, there, flavor, found):
    installed(**{name: fake_tensorrt_builder("10.3.0", []) for name in there})
    library = load_tensorrt(flavor)
    assert (library.flavor, library.version) == (found, "10.3.0")
    assert library.name == ("TensorRT-RTX 10.3.0" if found == "rtx" else "TensorRT 10.3.0")


@pytest.mark.parametrize(("version", "typed"), [("8.5.3.1", False), ("10.3.0", True), ("11.4.0", True)])
def test_what_is_strongly_typed(installed, version, typed):
    installed(tensorrt=fake_tensorrt_builder(version, []))
    assert load_tensorrt("tensorrt").strongly_typed == typed


@pytest.mark.parametrize(
    ("flavor", "words", "not_words"),
    [
        ("auto", ["[tensorrt]", "[rtx]"], []),
        ("tensorrt", ["JetPack"], ["[rtx]"]),
        ("rtx", ["[rtx]"], ["JetPack"]),
    ],
)
def test_none_is_installed(installed, flavor, words, not_words):
    installed()
    with pytest.raises(MissingRuntimeError) as caught:
        load_tensorrt(flavor)
    assert all(word in str(caught.value) for word in words)
    assert not any(word in str(caught.value) for word in not_words)


@pytest.mark.parametrize("error", [OSError, ImportError])
def test_an_installation_that_is_broken_is_told_apart(installed, monkeypatch, error):
    installed()
    monkeypatch.delitem(sys.modules, "tensorrt")
    ordinary = builtins.__import__

    def broken(name, *rest, **more):
        if name == "tensorrt":
            raise error("libnvinfer.so.10: cannot open shared object file")
        return ordinary(name, *rest, **more)

    monkeypatch.setattr("rnp_deploy.engines.trt_library.importlib.import_module", broken)
    with pytest.raises(MissingRuntimeError, match="tensorrt is installed but cannot be imported: libnvinfer"):
        load_tensorrt("tensorrt")


def test_the_latest_errors_are_kept_and_nothing_is_printed(installed, caplog, capfd):
    installed(tensorrt=fake_tensorrt_builder("10.3.0", []))
    library = load_tensorrt("tensorrt")
    log = tensorrt_logger(library)
    assert tensorrt_logger(library) is log
    assert said_by(library) == "it does not say why"
    with caplog.at_level(logging.DEBUG):
        for i in range(20):
            message = f"error\n{i}"
            log.log(library.module.ILogger.ERROR, message)
        log.log(library.module.ILogger.WARNING, "a warning")
    assert said_by(library) == "error 18 error 19"
    assert "TensorRT 10.3.0: a warning" in caplog.text
    assert capfd.readouterr() == ("", "")
