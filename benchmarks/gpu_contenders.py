"""The controller and the static graphs of one bundle on any backend, images and all where the backend computes.

What is timed begins with images in the backend's memory and ends with the outputs on the host, for all contenders.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rnp_deploy import Controller
from rnp_deploy.benchmarking.rivals import static_contender
from rnp_deploy.bundle.reading import Bundle, open_bundle
from rnp_deploy.engines.backends import Opened, open_backend
from rnp_deploy.memory import resident_bytes

Images = NDArray[np.float32]
Run = Callable[[], Any]


@dataclass(frozen=True)
class Place:
    """A backend on a device, for one bundle; ``engines`` is the engine set of TensorRT's."""

    backend: str
    device: str
    folder: Path
    engines: Path | None = None

    def open(self) -> Subject:
        """Raises RnpError where the backend cannot be used here."""
        path = self.folder / "bundle" if self.engines is None else self.engines
        opened = open_backend(path, self.backend, self.device, self.threads, "")
        return Subject(self, opened, open_bundle(self.folder / "bundle"))

    @property
    def threads(self) -> int | None:
        """That compute on the CPU."""
        return 1 if self.device == "cpu" else None


class Subject:
    """An open backend: its controller, and static graphs in the same memory and stream."""

    def __init__(self, place: Place, opened: Opened, bundle: Bundle) -> None:
        self.place, self.memory, self.bundle = place, opened.memory, bundle
        self._opened = opened
        self.controller = Controller.over(opened)

    def keep(self, images: Images) -> Any:
        """Images in the backend's memory."""
        with self.memory.turn():
            kept = self.memory.empty(images.shape, images.dtype)
            self.memory.write(kept, images)
        return kept

    def deciding(self, images: Any, penalty: float) -> Callable[[], tuple[Any, NDArray[np.int64]]]:
        """The controller with its agent; gives outputs and options."""
        prices = np.full(len(images), penalty, np.float32)
        options = np.zeros((len(images), len(self.bundle.manifest.decisions)), np.int64)

        def run() -> tuple[Any, NDArray[np.int64]]:
            # Below Controller.run, which takes and checks images on the host.
            made = self.controller._runner.run(images, prices, options, deciding=True)
            return made.outputs, options

        return run

    def static(self, images: Any, path: Sequence[int]) -> Run:
        """The static graph of a path; gives its outputs."""
        batch, threads = len(images), self.place.threads
        run = static_contender(self.bundle, self._opened, path, batch=batch, threads=threads)
        return partial(run, 0, images)

    def used_bytes(self) -> int:
        """Memory that is taken: of the whole device, or of this process where it computes."""
        if self.place.device == "cpu":
            return resident_bytes() or 0
        return device_bytes_used()


def device_bytes_used() -> int:
    """Of the first GPU, by all its processes."""
    import ctypes

    from rnp_deploy.engines.cuda_driver import current_context, driver_call

    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    with current_context():
        driver_call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
    return total.value - free.value
