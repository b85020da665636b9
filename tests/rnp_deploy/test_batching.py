"""Single images in batches, over a controller that only writes down what it is given."""

from __future__ import annotations

import sys
import threading
from concurrent.futures import CancelledError, wait

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from notebook import LONG_MS, PATIENCE_S, Notebook, answer, busy, check, image_of
from rnp_deploy import Controller, RequestBatcher, Result, batching
from rnp_deploy.errors import EngineError, InputError, OverloadedError


def test_a_full_batch_goes_at_once_in_the_order_of_submission(notebook, make_batcher):
    batcher = make_batcher(max_batch=4)
    futures = [batcher.submit(image_of(i)) for i in range(8)]
    for i, future in enumerate(futures):
        check(answer(future), i)
    assert notebook.batches == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_what_waited_for_a_busy_worker_goes_in_full_batches(notebook, make_batcher):
    batcher = make_batcher(max_batch=3)
    busy(notebook, batcher)
    futures = [batcher.submit(image_of(i)) for i in range(6)]
    notebook.gate.set()
    wait(futures, PATIENCE_S)
    assert notebook.batches[1:] == [[0, 1, 2], [3, 4, 5]]


def test_a_lone_image_waits_for_company_but_no_longer_than_the_delay(notebook, make_batcher):
    patient, hasty = make_batcher(max_batch=2), make_batcher(max_batch=2, max_delay_ms=5)
    first = patient.submit(image_of(1))
    check(hasty.run(image_of(2)), 2)
    assert not first.done()
    check(patient.run(image_of(3)), 3)
    check(answer(first), 1)
    assert notebook.batches == [[2], [1, 3]]


def test_no_delay_sends_what_there_is(notebook, make_batcher):
    batcher = make_batcher(max_delay_ms=0)
    for i in range(5):
        check(batcher.run(image_of(i)), i)
    assert notebook.batches == [[0], [1], [2], [3], [4]]


def test_the_delay_counts_from_the_oldest_request_while_the_workers_are_busy_too(
    notebook, make_batcher, monkeypatch
):
    now_s = 0.0
    monkeypatch.setattr(batching, "monotonic", lambda: now_s)
    batcher = make_batcher(max_batch=4)
    busy(notebook, batcher)
    futures = [batcher.submit(image_of(0))]
    now_s = 0.6 * LONG_MS / 1000
    futures += [batcher.submit(image_of(1))]
    now_s = 1.01 * LONG_MS / 1000
    notebook.gate.set()
    check(answer(futures[0]), 0)
    check(answer(futures[1]), 1)
    assert notebook.batches[1:] == [[0, 1]]


def test_1000_requests_of_32_threads_are_answered_rightly(notebook, make_batcher):
    callers, each = 32, 32
    batcher = make_batcher(max_batch=8, max_delay_ms=1, workers=2)
    barrier = threading.Barrier(callers)
    answers: dict[int, Result] = {}
    failures = []

    def call(caller):
        barrier.wait(PATIENCE_S)
        try:
            for i in range(caller * each, (caller + 1) * each):
                answers[i] = batcher.run(image_of(i), penalty=i / 8)
        except Exception as err:  # noqa: BLE001 - reported by the assertion below
            failures.append(err)

    threads = [threading.Thread(target=call, args=(caller,)) for caller in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * PATIENCE_S)
    assert not failures
    assert sorted(answers) == list(range(callers * each))
    for i, result in answers.items():
        check(result, i, penalty=i / 8)
    assert sorted(i for batch in notebook.batches for i in batch) == list(range(callers * each))
    assert max(map(len, notebook.batches)) <= 8


def test_requests_of_different_penalties_share_a_batch(notebook, make_batcher):
    batcher = make_batcher(max_batch=4)
    penalties = [None, 0.5, -3, np.float64(2)]
    futures = [batcher.submit(image_of(i), penalty=p) for i, p in enumerate(penalties)]
    for i, (future, penalty) in enumerate(zip(futures, penalties, strict=True)):
        check(answer(future), i, penalty=0.25 if penalty is None else penalty)
    assert notebook.batches == [[0, 1, 2, 3]]


def test_two_workers_run_two_batches_at_once_and_one_does_not(notebook, make_batcher):
    two, one = make_batcher(max_batch=2, workers=2), make_batcher(max_batch=2)
    futures = busy(notebook, two, count=2) + busy(notebook, one)
    futures += [one.submit(image_of(i)) for i in range(2)]
    assert len(notebook.batches) == 3
    notebook.gate.set()
    assert not wait(futures, PATIENCE_S).not_done


def test_the_rest_of_a_queue_is_timed_by_another_worker(notebook, make_batcher):
    batcher = make_batcher(max_batch=2, max_delay_ms=1, workers=2)
    futures = busy(notebook, batcher, count=2)
    futures += [batcher.submit(image_of(i)) for i in range(3)]
    notebook.gate.set()
    assert not wait(futures, PATIENCE_S).not_done


def test_too_many_waiting_is_an_error_that_passes(notebook, make_batcher):
    batcher = make_batcher(max_batch=2, max_pending=3)
    busy(notebook, batcher)
    futures = [batcher.submit(image_of(i)) for i in range(3)]
    for _ in range(2):
        with pytest.raises(OverloadedError, match=r"3 requests are waiting.*wait and retry.*max_pending"):
            batcher.submit(image_of(9))
    notebook.gate.set()
    check(answer(futures[1]), 1)
    futures.append(batcher.submit(image_of(3)))
    check(answer(futures[2]), 2)
    check(answer(futures[3]), 3)
    assert 9 not in [i for batch in notebook.batches for i in batch]


def test_cancelled_requests_are_left_out_and_running_ones_cannot_be(notebook, make_batcher):
    batcher = make_batcher(max_batch=3)
    running = busy(notebook, batcher)
    futures = [batcher.submit(image_of(i)) for i in range(6)]
    assert futures[1].cancel()
    assert futures[3].cancel()
    assert not running[0].cancel()
    notebook.gate.set()
    for i in (0, 2, 4):
        check(answer(futures[i]), i)
    assert notebook.batches[1:] == [[0, 2, 4]]
    with pytest.raises(CancelledError):
        answer(futures[1])
    batcher.close()
    assert not wait(futures, PATIENCE_S).not_done
    assert notebook.batches[2:] == [[5]]


def test_cancelled_requests_make_room(notebook, make_batcher):
    batcher = make_batcher(max_batch=2, max_pending=2)
    busy(notebook, batcher)
    cancelled, kept = batcher.submit(image_of(0)), batcher.submit(image_of(1))
    cancelled.cancel()
    added = batcher.submit(image_of(2))
    assert wait([cancelled], PATIENCE_S).done
    with pytest.raises(OverloadedError):
        batcher.submit(image_of(3))
    notebook.gate.set()
    check(answer(kept), 1)
    check(answer(added), 2)


def test_a_batch_of_cancelled_requests_does_not_run(notebook, make_batcher):
    batcher = make_batcher(max_batch=1)
    busy(notebook, batcher)
    for future in [batcher.submit(image_of(i)) for i in range(2)]:
        future.cancel()
    notebook.gate.set()
    check(batcher.run(image_of(5)), 5)
    assert notebook.batches[1:] == [[5]]


@pytest.mark.parametrize("error", [EngineError("s1 failed"), MemoryError(), KeyboardInterrupt()], ids=repr)
def test_an_error_reaches_every_caller_of_its_batch_and_no_other(notebook, make_batcher, error):
    batcher = make_batcher(max_batch=2)
    notebook.errors = [error]
    failed = [batcher.submit(image_of(i)) for i in range(2)]
    assert [future.exception(PATIENCE_S) for future in failed] == [error, error]
    right = [batcher.submit(image_of(i)) for i in range(2)]
    check(answer(right[1]), 1)


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (None, ["NoneType", "numpy array", "float32 [1, 2, 2]"]),
        ([[[0.0, 0.0], [0.0, 0.0]]], ["list", "numpy array"]),
        (image_of(0)[np.newaxis], ["(1, 1, 2, 2)", "one image", "float32 [1, 2, 2]"]),
        (image_of(0)[0], ["(2, 2)", "float32 [1, 2, 2]"]),
        (np.zeros((3, 2, 2), np.float32), ["(3, 2, 2)", "float32 [1, 2, 2]"]),
        (image_of(0).astype(np.float64), ["float64", "float32 [1, 2, 2]"]),
        (image_of(0).astype(">f4"), [">f4", "float32 [1, 2, 2]"]),
        (image_of(np.nan), ["NaN"]),
        (image_of(-np.inf), ["infinity"]),
    ],
)
def test_a_bad_image_fails_its_caller_and_nobody_else(notebook, make_batcher, image, words):
    batcher = make_batcher(max_batch=2)
    first = batcher.submit(image_of(1))
    with pytest.raises(InputError) as caught:
        batcher.submit(image)
    assert all(word in str(caught.value) for word in words)
    second = batcher.submit(image_of(2))
    check(answer(first), 1)
    check(answer(second), 2)
    assert notebook.batches == [[1, 2]]


@pytest.mark.parametrize("penalty", [float("nan"), 1e39, "cheap", [0.1, 0.2], [], 1j, {}], ids=str)
@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
def test_a_bad_penalty_fails_its_caller_and_nobody_else(notebook, make_batcher, penalty):
    batcher = make_batcher(max_batch=1)
    with pytest.raises(InputError, match="penalty is"):
        batcher.submit(image_of(1), penalty=penalty)
    check(batcher.run(image_of(2)), 2)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"max_batch": 0}, "max_batch is 0; pass an integer"),
        ({"max_batch": True}, "max_batch is True"),
        ({"max_pending": 1.5}, "max_pending is 1.5"),
        ({"workers": 0}, "workers is 0"),
        ({"max_delay_ms": -1}, "max_delay_ms is -1; pass milliseconds"),
        ({"max_delay_ms": "2"}, "max_delay_ms is '2'"),
        ({"max_delay_ms": float("nan")}, "max_delay_ms is nan"),
        ({"max_delay_ms": float("inf")}, "max_delay_ms is inf"),
        ({"max_batch": 8, "max_pending": 7}, "max_pending is 7, below max_batch, 8"),
    ],
    ids=str,
)
def test_bad_settings_start_no_thread(notebook, settings, words):
    before = threading.active_count()
    with pytest.raises(InputError, match=words):
        RequestBatcher(notebook, **settings)
    assert threading.active_count() == before


def test_the_longest_delay_there_is(notebook, make_batcher):
    batcher = make_batcher(max_batch=2, max_delay_ms=sys.float_info.max)
    future = batcher.submit(image_of(0))
    check(batcher.run(image_of(1)), 1)
    check(answer(future), 0)


@settings(max_examples=60, deadline=None)
@given(
    cancelled=st.lists(st.booleans(), max_size=20),
    max_batch=st.integers(1, 5),
    workers=st.integers(1, 3),
    max_delay_ms=st.sampled_from([0, 0.1, LONG_MS]),
)
def test_whatever_is_cancelled_the_rest_is_answered_once_and_in_order(
    cancelled, max_batch, workers, max_delay_ms
):
    controller = Notebook()
    with RequestBatcher(
        controller, max_batch=max_batch, max_delay_ms=max_delay_ms, workers=workers
    ) as batcher:
        futures = []
        for i, cancel in enumerate(cancelled):
            futures.append(batcher.submit(image_of(i)))
            if cancel:
                futures[-1].cancel()
    kept = [i for i, future in enumerate(futures) if not future.cancelled()]
    for i in kept:
        check(futures[i].result(0), i)
    ran = [i for batch in controller.batches for i in batch]
    assert (ran if workers == 1 else sorted(ran)) == kept
    assert all(1 <= len(batch) <= max_batch for batch in controller.batches)


def test_a_real_bundle_decides_as_if_it_were_not_batched(exported):
    images = exported("chain").images(40).numpy()
    with Controller.load(exported("chain").path, threads=1) as controller:
        expected = controller.run(images)
        with RequestBatcher(controller, max_batch=7, max_delay_ms=1) as batcher:
            results = [answer(future) for future in [batcher.submit(image) for image in images]]
    assert [result.options.tolist() for result in results] == [[row.tolist()] for row in expected.options]
    assert np.concatenate([result.macs for result in results]).tolist() == expected.macs.tolist()
    outputs = np.concatenate([result.outputs for result in results])
    np.testing.assert_allclose(outputs, expected.outputs, atol=1e-4 * np.abs(expected.outputs).max(), rtol=0)
