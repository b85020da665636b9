"""Two processes do what one does."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

import two_processes
from rnp_deploy.errors import InputError
from rnp_deploy.training import processes
from rnp_deploy.training.processes import torch_device
from tiny_training import TINY
from two_processes import Trained, in_two_processes

#: Few steps, since Adam makes much of the rounding that a sum in another order brings.
BRIEF = dataclasses.replace(
    TINY, backbone_epochs=1, random_epochs=1, rounds=1, agent_minibatches=3, backbone_minibatches=2,
    backbone_rate=1e-3, agent_rate=1e-3,
)  # fmt: skip


@pytest.fixture(scope="module")
def one() -> Trained:
    return two_processes.trained(BRIEF)


@pytest.fixture(scope="module")
def two() -> list[Trained]:
    return in_two_processes(two_processes.trained, BRIEF)


def test_two_processes_train_the_network_of_one(one: Trained, two: list[Trained]) -> None:
    """Batch norm's running statistics among its state show at once whether they were of all images."""
    for name, tensor in one.state.items():
        torch.testing.assert_close(
            two[0].state[name], tensor, atol=1e-4, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}"
        )
    assert [(r.phase, r.step) for r in two[0].rows] == [(r.phase, r.step) for r in one.rows]
    for row in zip(one.rows, *(each.rows for each in two), strict=True):
        whole, *shares = (each.class_loss for each in row)
        assert sum(shares) / 2 == pytest.approx(whole, rel=1e-3), row[0].phase


def test_the_calibration_is_that_of_one_process(one: Trained, two: list[Trained]) -> None:
    assert two[0].calibration.samples == one.calibration.samples
    assert two[0].calibration.full_accuracy == pytest.approx(one.calibration.full_accuracy, abs=0.04)
    for point in one.calibration.points:
        found = two[0].calibration.at(point.penalty)
        assert found.macs_share == pytest.approx(point.macs_share, abs=0.05)


def test_both_processes_end_with_the_same_network(two: list[Trained]) -> None:
    for name, tensor in two[0].state.items():
        assert torch.equal(tensor, two[1].state[name]), name
    assert two[0].calibration == two[1].calibration


def test_mixed_precision_works_in_two_processes(one: Trained) -> None:
    first, second = in_two_processes(two_processes.trained, dataclasses.replace(BRIEF, mixed_precision=True))
    for name, tensor in first.state.items():
        assert torch.equal(tensor, second.state[name]), name
    for name in ("backbone.0.weight", "backbone.1.running_mean"):
        torch.testing.assert_close(first.state[name], one.state[name], atol=0.02, rtol=0.02)


def test_a_batch_that_cannot_be_shared_evenly_is_refused() -> None:
    words = "InputError: batch_size is 33; 2 processes cannot share it evenly"
    assert in_two_processes(two_processes.refusal, dataclasses.replace(BRIEF, batch_size=33)) == [words] * 2


@pytest.mark.parametrize("phase", ["backbone", "agent"])
def test_a_loss_lost_in_one_process_stops_both_naming_the_step(phase: str) -> None:
    steps = {"backbone": 4, "agent": 3}[phase]
    for message in in_two_processes(two_processes.lost_in_process_one, BRIEF, phase):
        assert message.startswith(f"TrainingError: the loss is nan in phase {phase!r}, step 2 of {steps};")


def test_gradients_and_loss_are_averaged() -> None:
    for gradients, loss in in_two_processes(two_processes.averaged):
        assert gradients[0].tolist() == [[1.5] * 3] * 2
        assert gradients[1].tolist() == [5.0, 0.0]
        assert gradients[2] is None
        assert loss == 2.0


@pytest.mark.parametrize(
    "norm",
    [
        pytest.param(nn.BatchNorm2d(3), id="train"),
        pytest.param(nn.BatchNorm2d(3, momentum=None), id="cumulative"),
        pytest.param(nn.BatchNorm2d(3, affine=False, eps=0.1), id="no weights"),
        pytest.param(nn.BatchNorm2d(3, track_running_stats=False), id="no statistics"),
        pytest.param(nn.BatchNorm2d(3).eval(), id="eval"),
    ],
)
def test_batch_norm_sees_the_whole_minibatch(norm: nn.Module) -> None:
    draws = np.random.default_rng(0)
    images, weights = draws.normal(2, 3, (6, 3, 4, 4)), draws.normal(size=(6, 3, 4, 4))
    images[::2] += 5  # the shares are not alike
    norm.double().zero_grad()
    norm.load_state_dict(
        {name: x + 0.5 if x.is_floating_point() else x for name, x in norm.state_dict().items()}
    )
    shares = in_two_processes(two_processes.batch_norm_outputs, norm, images, weights)
    outputs, gradient, *rest = two_processes.batch_norm_outputs(norm, images, weights)
    for rank, (own, own_gradient, *own_rest) in enumerate(shares):
        torch.testing.assert_close(own, outputs[rank::2])
        torch.testing.assert_close(own_gradient, gradient[rank::2])
        for mine, whole in zip(own_rest, rest, strict=True):
            torch.testing.assert_close(mine, whole)


def test_one_process_alone_needs_no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    with processes.join(torch.device("cpu")):
        assert (processes.rank(), processes.count()) == (0, 1)
    norm = nn.BatchNorm1d(2)
    with processes.synced_batch_norms(norm):
        assert "forward" not in vars(norm)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("tpu", "'tpu' is none"),
        ("cuda:x", "'cuda:x' is none"),
        ("meta", "'meta' is not supported"),
        ("mps", "'mps' is not supported"),
        ("cuda", "'cuda:1': .* finds 1 CUDA devices"),  # the second process's own
        ("cuda:7", "'cuda:7' would be that of every process"),
    ],
)
def test_a_device_that_is_not_there_is_refused(
    name: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(InputError, match=words):
        torch_device(name)


def test_a_device_is_found_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for there, auto in ((True, "cuda:1"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        monkeypatch.setenv("LOCAL_RANK", "1")
        assert str(torch_device("auto")) == auto
        assert str(torch_device("cpu")) == "cpu"
