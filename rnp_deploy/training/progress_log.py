"""What training tells of each epoch, and TensorBoard logs of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from rnp_deploy.errors import MissingRuntimeError, OutputError
from rnp_deploy.training.phases import StepResult

__all__ = ["EpochLog", "EpochRow", "Meter", "no_log", "tensorboard_log"]


class EpochRow(NamedTuple):
    """Means over an epoch, or over a phase of a round; shares 0..1, of this process's samples.

    ``loss`` is what was descended, ``class_loss`` L_cls; ``mean_option`` is over samples and
    decisions; ``epsilon`` the exploration rate; None where there is none.
    """

    phase: str
    step: int
    steps: int
    loss: float
    class_loss: float
    accuracy: float
    mean_option: float | None
    epsilon: float | None
    rate: float | None
    seconds: float


#: Called with each row, in order.
EpochLog: TypeAlias = Callable[[EpochRow], None]


def no_log(row: EpochRow) -> None:
    """Keep nothing."""


class Meter:
    """Sums over the steps since the last row; on their device, so that none is waited for."""

    def __init__(self) -> None:
        self._sums: Tensor | None = None
        self._started = time.perf_counter()

    def add(self, result: StepResult) -> None:
        """Count a step."""
        options = result.options
        zero = torch.zeros((), device=result.loss.device)
        now = torch.stack(
            [
                zero + 1,
                result.loss.detach().float(),
                result.class_loss.float(),
                result.correct.float().mean(),
                zero if options is None else options.float().mean().to(zero.device),
            ]
        )
        self._sums = now if self._sums is None else self._sums + now

    def row(self, phase: str, step: int, steps: int, epsilon: float | None, rate: float | None) -> EpochRow:
        """The means since the last row."""
        count, *sums = [0.0] if self._sums is None else self._sums.tolist()
        loss, class_loss, accuracy, option = (total / count for total in sums)
        now = time.perf_counter()
        seconds, self._started, self._sums = now - self._started, now, None
        return EpochRow(
            phase, step, steps, loss, class_loss, accuracy, option or None, epsilon, rate, seconds
        )


@contextmanager
def tensorboard_log(folder: Path) -> Iterator[EpochLog]:
    """Yield a log that writes every number of a row as a scalar, over the step of the whole run.

    Raises:
        MissingRuntimeError: tensorboard is not installed.
        OutputError: The folder cannot be written.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as err:
        raise MissingRuntimeError(
            f"TensorBoard logs need tensorboard ({err}); pip install rnp-deploy[train]"
        ) from err
    try:
        writer = SummaryWriter(str(folder))
    except OSError as err:
        raise OutputError(f"TensorBoard logs cannot be written to {folder}: {err}") from err

    def log(row: EpochRow) -> None:
        for name, value in zip(row._fields[3:], row[3:], strict=True):
            if value is not None:
                writer.add_scalar(f"{row.phase}/{name}", value, row.step)

    try:
        yield log
    finally:
        writer.close()
