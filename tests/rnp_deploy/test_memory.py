"""What a controller says it holds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bundles import small_manifest
from rnp_deploy import Controller
from rnp_deploy.memory import resident_bytes
from rnp_deploy.plan import plan_of_bundle
from rnp_deploy.workspace import MemoryLayout
from small_network import AGENT, BRANCHES, Network, images_of

needs_proc = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the system has no /proc")


@pytest.fixture
def controller():
    with Controller(small_manifest(), Network().open) as controller:
        yield controller


def test_nothing_is_held_before_the_first_run(controller):
    memory = controller.memory()
    assert memory.engines_in_all == len(AGENT + BRANCHES)
    assert (memory.engines, memory.weight_bytes, memory.workspace_bytes, memory.evictions) == (0, 0, 0, 0)
    assert memory.budget_bytes is None


def test_engines_weights_and_workspaces_are_counted(controller):
    layout = MemoryLayout(plan_of_bundle(small_manifest()), 2, ["outputs"])
    controller.run(images_of([0]))
    memory = controller.memory()
    assert (memory.engines, memory.weight_bytes) == (5, 32 + 8 + 4)
    assert memory.workspace_bytes == sum(layout.slot_bytes)
    controller.run(images_of([0, 1, 2]))
    memory = controller.memory()
    assert (memory.engines, memory.weight_bytes) == (8, 44 + 16 + 8 + 8)
    assert memory.workspace_bytes == 4 * sum(layout.slot_bytes)


def test_nothing_is_held_after_close(controller):
    controller.run(images_of([0, 1]))
    controller.close()
    memory = controller.memory()
    assert (memory.engines, memory.weight_bytes, memory.workspace_bytes) == (0, 0, 0)


def test_the_budget_and_what_was_let_go_for_it():
    with Controller(small_manifest(), Network().open, memory_budget_bytes=44) as controller:
        controller.run(images_of([0]))
        assert (controller.memory().budget_bytes, controller.memory().evictions) == (44, 0)
        controller.run(images_of([2]))
        assert controller.memory().evictions == 2
        assert controller.memory().weight_bytes <= 44


@needs_proc
def test_resident_memory_grows_by_what_is_written_to():
    """In a process of its own, where nothing that was freed before is used again."""
    script = (
        "import numpy\nfrom rnp_deploy.memory import resident_bytes\n"
        "before = resident_bytes()\nheld = numpy.ones(32 * 2**20, numpy.uint8)\n"
        "print(resident_bytes() - before)"
    )
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert 24 * 2**20 < int(done.stdout) < 48 * 2**20


@pytest.mark.parametrize("text", ["", "12", "12 many", None], ids=["empty", "short", "no number", "missing"])
def test_where_the_system_does_not_tell_it_is_none(monkeypatch, text):
    def read_text(self, **_):
        if text is None:
            raise FileNotFoundError(self)
        return text

    monkeypatch.setattr(Path, "read_text", read_text)
    assert resident_bytes() is None
