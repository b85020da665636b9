"""Single images of many callers, run in batches."""

from __future__ import annotations

import atexit
import math
import threading
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass
from time import monotonic
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from rnp_deploy.controller import Controller, Result
from rnp_deploy.errors import ControllerClosedError, InputError, OverloadedError
from rnp_deploy.run_inputs import checked_images, checked_penalty

__all__ = ["RequestBatcher"]


@dataclass(frozen=True)
class _Request:
    """One image, ``[1, C, H, W]``, the batcher's own; ``due_s`` is on the clock of ``monotonic``."""

    image: NDArray[np.float32]
    price: np.float32
    due_s: float
    future: Future[Result]


class RequestBatcher:
    """Coalesces single images into batches for one controller; a context manager, or closed by hand.

    A free worker takes the oldest ``max_batch`` images once as many wait, or the oldest has waited
    ``max_delay_ms``, or the batcher is closing. The wait counts from :meth:`submit`, so that what waited for a
    busy worker goes as soon as it is free: under load the delay costs nothing, and a lone image waits
    ``max_delay_ms``. An idle worker does wait, because callers answered together come back together; were the
    first of them sent at once, it would go alone and the others wait for it. ``max_delay_ms=0`` does
    that: the best latency for a lone caller.

    Images of different penalties share a batch. Every method may be called from many threads.

    The worker threads are daemons; a batcher left open is closed when the interpreter exits, which waits
    for what was accepted, at most ``max_pending`` images and the batches under way.
    """

    def __init__(
        self,
        controller: Controller,
        *,
        max_batch: int = 8,
        max_delay_ms: float = 2.0,
        max_pending: int = 256,
        workers: int = 1,
    ) -> None:
        """Start the workers.

        Args:
            controller: Stays the caller's to close, after the batcher; closed before it, its
                ControllerClosedError reaches those who wait.
            max_batch: Images in a batch, at most.
            max_delay_ms: How long an image may wait for others to share its batch, in ms.
            max_pending: Images that may wait, those in a running batch not counted; at least ``max_batch``.
            workers: Batches that may run at once, each in a thread of its own. More than one helps
                where the controller's engines leave cores idle, as with ``threads=1``.

        Raises:
            InputError: An argument is out of range.
        """
        for name, value in (("max_batch", max_batch), ("max_pending", max_pending), ("workers", workers)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InputError(f"{name} is {value!r}; pass an integer of at least 1")
        if not isinstance(max_delay_ms, int | float) or not 0 <= max_delay_ms < math.inf:
            raise InputError(f"max_delay_ms is {max_delay_ms!r}; pass milliseconds, 0 or more")
        if max_pending < max_batch:
            raise InputError(
                f"max_pending is {max_pending}, below max_batch, {max_batch}: no batch could fill; raise it"
            )
        self._controller = controller
        self._max_batch = max_batch
        self._max_delay_s = max_delay_ms / 1000
        self._max_pending = max_pending
        self._waiting: deque[_Request] = deque()
        self._changed = threading.Condition()  # guards _waiting and _closed
        self._closed = False
        self._workers = [
            threading.Thread(target=self._work, name=f"rnp-batcher-{index}", daemon=True)
            for index in range(workers)
        ]
        for worker in self._workers:
            worker.start()
        atexit.register(self.close)

    def submit(self, image: NDArray[np.float32], *, penalty: float | None = None) -> Future[Result]:
        """Accept an image; never waits for a place.

        Args:
            image: float32 ``[C, H, W]``, finite. It is copied: the caller may write over it at once.
            penalty: Price of one more group; None is the agent's own.

        Returns:
            The future of a result of N = 1, whose arrays are the caller's and hold nothing else
            alive; or of the error its batch met, the same for all of that batch. ``cancel`` works
            until the batch starts. Callbacks run in a worker: let them be short, and not wait for
            another request.

        Raises:
            InputError: Image or penalty do not fit.
            OverloadedError: ``max_pending`` images wait already.
            ControllerClosedError: After :meth:`close`.
        """
        owned = _checked_image(image, self._controller.manifest.inputs[0].shape)
        price = checked_penalty(penalty, 1, self._controller.manifest)[0]
        request = _Request(owned, price, monotonic() + self._max_delay_s, Future())
        with self._changed:
            if self._closed:
                raise ControllerClosedError("the batcher is closed; make a new one")
            if len(self._waiting) >= self._max_pending:
                self._drop_cancelled()
            if len(self._waiting) >= self._max_pending:
                raise OverloadedError(
                    f"{len(self._waiting)} requests are waiting, as many as max_pending allows; "
                    "wait and retry, or raise max_pending"
                )
            self._waiting.append(request)
            # Those between need no worker of their own: the first one's times them. Later ones do, since
            # a batch may leave them; and every worker looks at the queue before it sleeps.
            if len(self._waiting) == 1 or len(self._waiting) >= self._max_batch:
                self._changed.notify()
        return request.future

    def run(self, image: NDArray[np.float32], *, penalty: float | None = None) -> Result:
        """Submit an image and wait for its result; arguments and errors as of :meth:`submit`.

        Raises:
            RnpError: Also what ``Controller.run`` raised for its batch.
        """
        return self.submit(image, penalty=penalty).result()

    def close(self) -> None:
        """Refuse new images, finish the accepted ones without delay, end the workers.

        May be called twice and from many threads: each call returns when all is done. Called by a
        future's callback, in a worker, it does not wait.
        """
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if threading.current_thread() in self._workers:
            return
        for worker in self._workers:
            worker.join()
        atexit.unregister(self.close)

    def __enter__(self) -> RequestBatcher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _work(self) -> None:
        while self._run_next_batch():
            pass

    def _run_next_batch(self) -> bool:
        """Wait for a batch and run it; False when closed and all is done.

        A function of its own, so that an idle worker holds no images.
        """
        with self._changed:
            self._wait_until_due()
            batch = self._take_batch()
            if self._closed and not batch and not self._waiting:
                return False
        if batch:
            self._run(batch)
        return True

    def _wait_until_due(self) -> None:
        while not self._closed and len(self._waiting) < self._max_batch:
            left_s = None
            if self._waiting:
                left_s = min(self._waiting[0].due_s - monotonic(), threading.TIMEOUT_MAX)
                if left_s <= 0:
                    return
            self._changed.wait(left_s)

    def _take_batch(self) -> list[_Request]:
        """The oldest that were not cancelled; from here on they cannot be."""
        batch: list[_Request] = []
        while self._waiting and len(batch) < self._max_batch:
            request = self._waiting.popleft()
            if request.future.set_running_or_notify_cancel():
                batch.append(request)
        return batch

    def _drop_cancelled(self) -> None:
        kept: deque[_Request] = deque()
        for request in self._waiting:
            if request.future.cancelled():
                request.future.set_running_or_notify_cancel()  # tells concurrent.futures.wait
            else:
                kept.append(request)
        self._waiting = kept

    def _run(self, batch: list[_Request]) -> None:
        try:
            images = np.concatenate([request.image for request in batch])
            result = self._controller.run(images, penalty=np.array([request.price for request in batch]))
            rows = [_row(result, index) for index in range(len(batch))]
        except BaseException as err:  # noqa: BLE001 - whatever it is, callers wait for an answer
            # Emptied, since the error's traceback holds the list, whose futures hold the error.
            while batch:
                batch.pop(0).future.set_exception(err)
        else:
            for request, row in zip(batch, rows, strict=True):
                request.future.set_result(row)


def _row(result: Result, index: int) -> Result:
    """Copies, since a slice would keep the arrays of the whole batch alive."""
    here = slice(index, index + 1)
    return Result(result.outputs[here].copy(), result.options[here].copy(), result.macs[here].copy())


def _checked_image(image: NDArray[np.float32], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """A copy of one image as a batch of one; checked after copying, since its owner may be writing."""
    wanted = f"one image, a numpy array, float32 [{', '.join(map(str, shape))}]"
    if not isinstance(image, np.ndarray):
        raise InputError(f"the image is a {type(image).__name__}; pass {wanted}")
    if image.dtype != np.float32 or image.shape != shape:
        raise InputError(f"the image has shape {image.shape} and dtype {image.dtype}; pass {wanted}")
    return checked_images(np.array(image, order="C")[np.newaxis], shape)
