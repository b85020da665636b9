"""Batchers over a controller that writes down what it is given."""

from __future__ import annotations

import pytest

from notebook import LONG_MS, Notebook
from rnp_deploy import RequestBatcher


@pytest.fixture
def notebook():
    notebook = Notebook()
    yield notebook
    notebook.gate.set()


@pytest.fixture
def make_batcher(notebook):
    made = []

    def make(**settings):
        made.append(RequestBatcher(notebook, **{"max_delay_ms": LONG_MS, **settings}))
        return made[-1]

    yield make
    notebook.gate.set()
    for batcher in made:
        batcher.close()
        assert not any(worker.is_alive() for worker in batcher._workers)
