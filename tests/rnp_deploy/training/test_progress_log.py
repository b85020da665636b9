"""Rows of the epochs, and TensorBoard logs of them."""

import sys
from pathlib import Path

import pytest
import torch

from rnp_deploy.errors import MissingRuntimeError
from rnp_deploy.training.phases import StepResult
from rnp_deploy.training.progress_log import EpochRow, Meter, tensorboard_log

ROW = EpochRow("agent", 26, 38, 0.5, 2.25, 0.75, 1.5, 0.1, 1e-3, 3.0)


def step(loss: float, correct: list[bool], options: torch.Tensor | None) -> StepResult:
    return StepResult(
        torch.tensor(loss, requires_grad=True), torch.tensor(2 * loss), torch.tensor(correct), options
    )


def test_a_row_holds_the_means_since_the_last() -> None:
    meter = Meter()
    meter.add(step(1.0, [True, False], torch.tensor([[1, 2], [2, 2]])))
    meter.add(step(4.0, [True, True], torch.tensor([[1, 1], [1, 1]])))
    row = meter.row("agent", 7, 38, epsilon=0.3, rate=1e-3)
    assert row[:-1] == ("agent", 7, 38, 2.5, 5.0, 0.75, 1.375, 0.3, pytest.approx(1e-3))
    assert 0 < row.seconds < 60
    meter.add(step(3.0, [False, False], None))
    assert meter.row("backbone", 8, 38, None, None)[:-1] == (
        "backbone", 8, 38, 3.0, 6.0, 0.0, None, None, None
    )  # fmt: skip


def test_every_number_of_a_row_is_a_scalar_over_the_step(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with tensorboard_log(tmp_path / "logs") as log:
        log(ROW)
        log(ROW._replace(step=35, loss=0.25))
        log(ROW._replace(phase="backbone", step=4, mean_option=None, epsilon=None))
    events = EventAccumulator(str(tmp_path / "logs"))
    events.Reload()
    names = ("loss", "class_loss", "accuracy", "mean_option", "epsilon", "rate", "seconds")
    of_backbone = {f"backbone/{name}" for name in names} - {"backbone/mean_option", "backbone/epsilon"}
    assert set(events.Tags()["scalars"]) == {f"agent/{name}" for name in names} | of_backbone
    assert [(e.step, e.value) for e in events.Scalars("agent/loss")] == [(26, 0.5), (35, 0.25)]
    assert [(e.step, e.value) for e in events.Scalars("backbone/class_loss")] == [(4, 2.25)]


def test_missing_tensorboard_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with (
        pytest.raises(MissingRuntimeError, match=r"tensorboard.*pip install rnp-deploy\[train\]"),
        tensorboard_log(tmp_path / "logs"),
    ):
        pass
    assert not any(tmp_path.iterdir())
