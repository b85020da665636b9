"""A controller that writes down what it is given, and waits where a test wants it to."""

from __future__ import annotations

import threading

import numpy as np

from bundles import small_manifest
from rnp_deploy import Controller, Result

__all__ = ["LONG_MS", "PATIENCE_S", "Notebook", "answer", "busy", "check", "image_of"]

PATIENCE_S = 30.0
LONG_MS = 3_600_000.0  # a delay no test lives to see


class Notebook(Controller):
    """``run`` gives (id, price, 0) and, as options, the id's last two bits; an image is filled with its id.

    Attributes:
        batches: The ids of each run, in the order they began.
        made: What the runs gave.
        gate: Runs wait here while it is clear.
        began: Released once for every run that begins.
        errors: Raised by the next runs, one each.
    """

    def __init__(self):
        super().__init__(small_manifest(), open_engine=lambda path: None)
        self.batches: list[list[float]] = []
        self.made: list[Result] = []
        self.errors: list[BaseException] = []
        self.gate, self.began = threading.Event(), threading.Semaphore(0)
        self.gate.set()

    def run(self, images, *, penalty=None, target_macs=None, options=None):
        ids = images[:, 0, 0, 0]
        assert images.flags.c_contiguous
        assert images.dtype == penalty.dtype == np.float32
        self.batches.append(ids.tolist())
        self.began.release()
        assert self.gate.wait(PATIENCE_S)
        if self.errors:
            raise self.errors.pop()
        whole = ids.astype(np.int64)
        outputs = np.stack([ids, penalty, np.zeros_like(ids)], axis=1)
        self.made.append(Result(outputs, np.stack([whole & 1, whole >> 1 & 1], axis=1) + 1, whole * 10))
        return self.made[-1]

    def wait_for_a_run(self):
        assert self.began.acquire(timeout=PATIENCE_S)


def image_of(i):
    """An image of :func:`small_manifest`, filled with its id."""
    return np.full((1, 2, 2), i, np.float32)


def check(result, i, penalty=0.25):
    """The result is that of image ``i`` alone, at this penalty; 0.25 is the agent's own."""
    assert result.outputs.tolist() == [[i, np.float32(penalty), 0]]
    assert result.options.tolist() == [[(i & 1) + 1, (i >> 1 & 1) + 1]]
    assert result.macs.tolist() == [i * 10]
    assert (result.outputs.dtype, result.options.dtype, result.macs.dtype) == (np.float32, np.int64, np.int64)


def answer(future):
    """Its result, or a failure where it hangs."""
    return future.result(PATIENCE_S)


def busy(notebook, batcher, count=1):
    """Hold ``count`` workers at the gate, each with a full batch; the ids are negative."""
    notebook.gate.clear()
    size = batcher._max_batch
    futures = []
    for k in range(count):
        futures += [batcher.submit(image_of(-1 - k)) for _ in range(size)]
        notebook.wait_for_a_run()
    return futures
