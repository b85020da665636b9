"""How a batcher ends, and who owns what it takes and gives."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import textwrap
import threading
import time
import weakref

import numpy as np
import pytest

from bundles import small_manifest
from notebook import LONG_MS, PATIENCE_S, answer, busy, check, image_of
from rnp_deploy import Controller, RequestBatcher
from rnp_deploy.errors import ControllerClosedError, EngineError


def test_an_error_is_freed_when_its_callers_drop_it(notebook, make_batcher):
    batcher = make_batcher(max_batch=1)
    gc.disable()
    try:
        notebook.errors = [EngineError("s1 failed")]
        error = weakref.ref(batcher.submit(image_of(0)).exception(PATIENCE_S))
        batcher.run(image_of(1))  # so that the worker is past the failed batch
        assert error() is None
    finally:
        gc.enable()


def test_a_controller_closed_under_the_batcher():
    controller = Controller(small_manifest(), open_engine=lambda path: None)
    with RequestBatcher(controller, max_delay_ms=0) as batcher:
        controller.close()
        for _ in range(2):
            with pytest.raises(ControllerClosedError, match="the controller is closed"):
                batcher.run(image_of(0))


@pytest.mark.parametrize("step", [1, 2])
def test_an_image_may_be_overwritten_once_submitted(notebook, make_batcher, step):
    batcher = make_batcher(max_batch=2)
    buffer = np.zeros((1, 2, 2 * step), np.float32)
    futures = []
    for i in (1, 2):
        buffer[:] = i
        futures.append(batcher.submit(buffer[:, :, ::step]))
        buffer[:] = np.nan
    check(answer(futures[0]), 1)
    check(answer(futures[1]), 2)


def test_results_share_no_memory(notebook, make_batcher):
    batcher = make_batcher(max_batch=2)
    results = [answer(future) for future in [batcher.submit(image_of(i)) for i in range(2)]]
    (made,) = notebook.made
    for name in ("outputs", "options", "macs"):
        arrays = [getattr(result, name) for result in results]
        assert all(array.base is None and array.flags.writeable for array in arrays)
        assert not np.shares_memory(*arrays)
        assert not any(np.shares_memory(array, getattr(made, name)) for array in arrays)


@pytest.mark.parametrize("workers", [1, 2])
def test_close_while_busy_finishes_what_was_accepted_and_refuses_the_rest(notebook, make_batcher, workers):
    batcher = make_batcher(max_batch=3, workers=workers)
    running = busy(notebook, batcher, count=workers)
    waiting = [batcher.submit(image_of(i)) for i in range(4)]
    closing = [threading.Thread(target=batcher.close) for _ in range(3)]
    for thread in closing:
        thread.start()
    while not batcher._closed:
        time.sleep(0.001)
    with pytest.raises(ControllerClosedError, match="the batcher is closed"):
        batcher.submit(image_of(9))
    assert all(thread.is_alive() for thread in closing)
    notebook.gate.set()
    for thread in closing:
        thread.join(PATIENCE_S)
        assert not thread.is_alive()
    assert not any(worker.is_alive() for worker in batcher._workers)
    assert all(future.done() for future in running)
    for i, future in enumerate(waiting):
        check(future.result(0), i)


def test_close_sends_a_batch_that_waits_for_company(notebook, make_batcher):
    batcher = make_batcher(workers=2)
    future = batcher.submit(image_of(3))
    batcher.close()
    check(future.result(0), 3)
    batcher.close()
    with pytest.raises(ControllerClosedError, match="the batcher is closed; make a new one"):
        batcher.run(image_of(0))


def test_leaving_the_block_closes_the_batcher_and_not_the_controller(notebook):
    closed = []
    notebook.close = lambda: closed.append(True)
    with (
        pytest.raises(RuntimeError, match="mine"),
        RequestBatcher(notebook, max_delay_ms=LONG_MS) as batcher,
    ):
        future = batcher.submit(image_of(1))
        raise RuntimeError("mine")
    check(future.result(0), 1)
    assert not closed


def test_a_callback_may_close_the_batcher(notebook, make_batcher):
    batcher = make_batcher(max_batch=1, workers=2)
    busy(notebook, batcher)
    future = batcher.submit(image_of(1))
    future.add_done_callback(lambda _: batcher.close())
    notebook.gate.set()
    check(answer(future), 1)
    batcher.close()
    assert not any(worker.is_alive() for worker in batcher._workers)


def test_an_idle_batcher_holds_no_result(notebook, make_batcher):
    batcher = make_batcher(max_batch=1)
    reference = weakref.ref(batcher.run(image_of(1)).outputs)
    give_up_s = time.monotonic() + PATIENCE_S
    while reference() is not None and time.monotonic() < give_up_s:
        time.sleep(0.001)
    assert reference() is None


def test_the_interpreter_ends_with_a_batcher_left_open():
    script = """
        import sys
        import numpy as np
        from bundles import small_manifest
        from rnp_deploy import Controller, RequestBatcher

        controller = Controller(small_manifest(), open_engine=lambda path: 1 / 0)
        batcher = RequestBatcher(controller, max_delay_ms=3_600_000)
        for _ in range(10):
            future = batcher.submit(np.zeros((1, 2, 2), np.float32))
            future.add_done_callback(lambda future: sys.stdout.write(f"{future.exception()}\\n"))
        sys.stdout.write("end\\n")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(done.stdout.splitlines()) == ["division by zero"] * 10 + ["end"]
