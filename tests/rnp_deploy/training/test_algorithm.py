"""Algorithm 1 on a tiny scale: determinism, resumption, errors, and what the calibration says."""

import dataclasses
import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from rnp_deploy.datasets import ImageData
from rnp_deploy.errors import InputError, NothingPrunableError, TrainingError
from rnp_deploy.training import RunSettings, TrainingConfig, TrainingResult, phases, train
from rnp_deploy.training.backbones import digits_cnn
from rnp_deploy.training.progress_log import EpochRow
from tiny_training import PHASE_STEPS, TINY, tensors, tiny_backbone, tiny_data, tiny_network

STEPS = sum(steps for _, steps in PHASE_STEPS)


@pytest.fixture(scope="module")
def data() -> ImageData:
    return tiny_data()


@pytest.fixture(scope="module")
def backbone() -> nn.Module:
    return tiny_backbone("4,8,8,8", dropout=0.2)  # which draws at random, in training


@pytest.fixture(scope="module")
def result(backbone: nn.Module, data: ImageData) -> TrainingResult:
    return train(backbone, data, TINY)


def assert_same(one: TrainingResult, other: TrainingResult) -> None:
    weights = other.network.state_dict()
    for name, tensor in one.network.state_dict().items():
        assert torch.equal(tensor, weights[name]), name
    assert one.network.orders == other.network.orders
    assert one.calibration == other.calibration


class KilledError(Exception):
    """Stands for a kill: nothing of the library runs after it."""


def killed_after(steps: int) -> Callable[[str, int, int], None]:
    calls = itertools.count(1)

    def progress(task: str, done: int, total: int) -> None:
        if next(calls) == steps:
            raise KilledError

    return progress


def never(task: str, done: int, total: int) -> None:
    pytest.fail(f"{task} was begun")


def test_the_same_seed_gives_the_same_network_bit_for_bit(
    backbone: nn.Module, data: ImageData, result: TrainingResult
) -> None:
    torch.rand(3)  # the caller's random state does not matter
    np.random.seed(1)
    assert_same(train(backbone, data, TINY), result)
    other = train(backbone, data, dataclasses.replace(TINY, seed=1))
    assert not torch.equal(other.network.agent.decoder.weight, result.network.agent.decoder.weight)


def test_workers_and_saved_states_change_nothing(
    backbone: nn.Module, data: ImageData, result: TrainingResult, tmp_path: Path
) -> None:
    settings = RunSettings(workers=2, folder=tmp_path / "run", resume=True, save_every_s=0)
    assert_same(train(backbone, data, TINY, settings), result)


@pytest.mark.parametrize(
    "stops",
    [
        pytest.param([1, 7, 8, 9, 16, 18, 20, 21, 26, 27, 29, 30, 37, 38], id="at and around every end"),
        pytest.param([4, 13, 22, 28, 34, 39], id="within every phase, and while calibrating"),
    ],
)
def test_a_run_that_was_killed_ends_as_if_it_had_not_been(
    stops: list[int], backbone: nn.Module, data: ImageData, result: TrainingResult, tmp_path: Path
) -> None:
    assert stops[-1] <= STEPS + 1
    run = RunSettings(folder=tmp_path / "run", resume=True, save_every_s=0)
    done = 0
    for stop in stops:
        torch.rand(3)
        with pytest.raises(KilledError):
            train(backbone, data, TINY, run, killed_after(stop - done))
        done = min(stop, STEPS)
    assert result.network.orders != tiny_network("4,8,8,8").orders  # else a lost order would not show
    left: list[str] = []
    final = train(backbone, data, TINY, run, lambda task, *_: left.append(task))
    assert len(left) == STEPS - done + 2
    assert_same(final, result)


def test_a_killed_run_that_is_not_resumed_begins_anew(
    backbone: nn.Module, data: ImageData, result: TrainingResult, tmp_path: Path
) -> None:
    run = RunSettings(folder=tmp_path / "run", save_every_s=0)
    with pytest.raises(KilledError):
        train(backbone, data, TINY, run, killed_after(22))
    assert_same(train(backbone, data, TINY, run), result)


def test_a_state_is_saved_no_more_often_than_asked(
    backbone: nn.Module, data: ImageData, tmp_path: Path
) -> None:
    with pytest.raises(KilledError):
        train(backbone, data, TINY, RunSettings(folder=tmp_path / "run"), killed_after(10))
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": 1}, "seed was 0, is 1"),
        ({"penalty_range": None}, r"penalty_range was \[-0.02, 1.0\], is None"),
        ({"agent_rate": 1e-3, "rounds": 3}, "agent_rate was 0.003, is 0.001; rounds was 2, is 3"),
    ],
)
def test_a_run_is_not_gone_on_with_under_other_settings(
    change: dict[str, Any], words: str, backbone: nn.Module, data: ImageData, tmp_path: Path
) -> None:
    run = RunSettings(folder=tmp_path / "run", resume=True, save_every_s=0)
    with pytest.raises(KilledError):
        train(backbone, data, TINY, run, killed_after(2))
    with pytest.raises(InputError, match=words):
        train(backbone, data, dataclasses.replace(TINY, **change), run, never)
    with pytest.raises(InputError, match="network: another"):
        train(tiny_backbone("4,4,4,8"), data, TINY, run, never)
    with pytest.raises(InputError, match="data was 'digits, 128 training images', is 'cifar10, 128"):
        train(backbone, dataclasses.replace(data, name="cifar10"), TINY, run, never)


def test_training_leaves_the_callers_backbone_and_random_state(backbone: nn.Module, data: ImageData) -> None:
    mode = backbone.training
    weights = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    state = torch.get_rng_state()
    trained = train(backbone, data, dataclasses.replace(TINY, rounds=1))
    assert torch.equal(torch.get_rng_state(), state)
    assert backbone.training == mode
    assert all(torch.equal(tensor, weights[name]) for name, tensor in backbone.state_dict().items())
    assert not torch.equal(trained.network.backbone.state_dict()["0.weight"], weights["0.weight"])


def test_progress_and_log_tell_of_every_phase(backbone: nn.Module, data: ImageData) -> None:
    calls: dict[str, list[tuple[int, int]]] = {}
    rows: list[EpochRow] = []
    train(
        backbone,
        data,
        TINY,
        progress=lambda task, done, total: calls.setdefault(task, []).append((done, total)),
        log=rows.append,
    )
    totals: dict[str, int] = {}
    for name, steps in PHASE_STEPS:
        totals[name] = totals.get(name, 0) + steps
    expected = {task: [(i + 1, total) for i in range(total)] for task, total in totals.items()}
    assert calls == {**expected, "calibrating": [(0, 1), (1, 1)]}
    # One row an epoch, and one for the agent and the backbone in each round.
    assert [(row.phase, row.step) for row in rows] == [
        ("backbone", 4), ("backbone", 8), ("random options", 12), ("random options", 16),
        ("measuring the loss", 20), ("agent", 26), ("backbone under the agent", 29),
        ("agent", 35), ("backbone under the agent", 38),
    ]  # fmt: skip
    assert {row.steps for row in rows} == {STEPS}
    assert [row.epsilon is None for row in rows] == [row.phase != "agent" for row in rows]
    assert rows[-2].epsilon == pytest.approx(TINY.last_epsilon)


def test_alpha_makes_the_mean_loss_one(
    backbone: nn.Module, data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    alphas: set[float] = set()
    step = phases.agent_step

    def watched(*arguments: Any) -> phases.StepResult:
        alphas.add(arguments[5])
        return step(*arguments)

    monkeypatch.setattr(phases, "agent_step", watched)
    rows: list[EpochRow] = []
    train(backbone, data, TINY, log=rows.append)
    (measured,) = (row.class_loss for row in rows if row.phase == "measuring the loss")
    (alpha,) = alphas
    assert 0.1 < measured < 10
    assert alpha * measured == pytest.approx(1)


def test_the_calibration_says_what_the_network_does(result: TrainingResult, data: ImageData) -> None:
    network, calibration = result.network, result.calibration
    assert not network.training
    assert network.agent.trained
    assert (calibration.data, calibration.samples) == ("digits:test", 60)
    images, labels = tensors(data.test)
    with torch.no_grad():
        full = network.run(images, network.full_options(60))
        assert calibration.full_accuracy == pytest.approx((full.argmax(1) == labels).double().mean().item())
        for point in calibration.points:
            logits, options = network(images, point.penalty)
            assert point.accuracy == pytest.approx((logits.argmax(1) == labels).double().mean().item())
            shares = network.macs(options).double() / network.macs(network.full_options(1))
            assert point.macs_share == pytest.approx(shares.mean().item())
            assert point.option_counts == tuple(
                tuple(int((options[:, t] == j).sum()) for j in (1, 2)) for t in range(3)
            )


def test_the_backbones_accuracy_is_that_before_pruning(data: ImageData) -> None:
    """Of a backbone that is not trained here, that of the one given."""
    backbone = tiny_backbone("8,8,8,8")
    images, labels = tensors(data.test)
    with torch.no_grad():
        right = backbone.eval()(images).argmax(1) == labels
    config = dataclasses.replace(TINY, backbone_epochs=0)
    calibration = train(backbone, data, config).calibration
    assert calibration.backbone_accuracy == pytest.approx(right.double().mean().item())


def test_fewer_images_make_the_calibration_where_so_asked(backbone: nn.Module, data: ImageData) -> None:
    calibration = train(backbone, data, dataclasses.replace(TINY, calibration_images=7)).calibration
    assert calibration.samples == 7
    assert {sum(counts) for point in calibration.points for counts in point.option_counts} == {7}


def test_high_prices_teach_the_cheapest_options_and_low_ones_dearer_ones(
    backbone: nn.Module, data: ImageData
) -> None:
    config = dataclasses.replace(TINY, penalty_range=(-0.2, 5.0), agent_minibatches=60)
    points = train(backbone, data, config).calibration.points
    assert points[0].penalty == pytest.approx(-0.2)
    assert points[-1].penalty == pytest.approx(5.0)
    assert points[-1].option_counts == ((60, 0),) * 3
    assert points[0].macs_share > points[-1].macs_share + 0.25


def test_a_fixed_agent_is_trained_for_its_price_and_shifted_to_others(
    backbone: nn.Module, data: ImageData
) -> None:
    config = dataclasses.replace(TINY, penalty_range=None, penalty=0.1)
    network = train(backbone, data, config).network
    assert network.agent.scale is None
    images, _ = tensors(data.test)
    state, features = network.agent.initial_state(images), torch.rand(60, 4)
    own, other = (network.agent(0, features, state, torch.full((60,), p)).q_values for p in (0.1, 0.35))
    torch.testing.assert_close(own - other, torch.tensor([0.0, 0.25]).expand(60, -1))
    with torch.no_grad():
        assert (network(images, 1e3)[1] == 1).all()
        assert (network(images, -1e3)[1] == 2).all()


def test_a_fixed_agent_learns_its_price(backbone: nn.Module, data: ImageData) -> None:
    config = dataclasses.replace(TINY, penalty_range=None, penalty=5.0, agent_minibatches=30)
    assert train(backbone, data, config).calibration.at(5.0).option_counts == ((60, 0),) * 3


@pytest.mark.parametrize(("value", "words"), [(math.nan, "loss is nan"), (math.inf, "loss is (nan|inf)")])
def test_a_loss_that_is_not_finite_names_phase_and_step(
    value: float, words: str, backbone: nn.Module
) -> None:
    broken = tiny_data(lambda images: np.full_like(images, value))
    with pytest.raises(TrainingError, match=rf"{words} in phase 'backbone', step 1 of 8"):
        train(backbone, broken, TINY)


def test_a_q_loss_that_is_not_finite_names_phase_and_step(
    backbone: nn.Module, data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(phases, "q_loss", lambda q_values, *_: q_values.sum() * math.nan)
    with pytest.raises(TrainingError, match=r"phase 'agent', step 1 of 12"):
        train(backbone, data, TINY)


def test_memory_that_does_not_suffice_is_named(
    backbone: nn.Module, data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    def step(*_: Any) -> phases.StepResult:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    monkeypatch.setattr(phases, "options_step", step)
    words = "minibatch of 32 does not fit into the memory of cpu in phase 'random options'; lower the batch"
    with pytest.raises(TrainingError, match=words):
        train(backbone, data, TINY)


@pytest.mark.parametrize(
    ("config", "run", "words"),
    [
        ({"batch_size": 129}, {}, "batch_size is 129, but there are 128 training images; lower it"),
        ({"penalty_range": (0.5, 0.1)}, {}, "^penalty range 0.5..0.1: pass two rising numbers"),
        ({"penalty_range": (0.0, math.inf)}, {}, "^penalty range 0.0..inf"),
        ({}, {"device": "tpu"}, "device 'tpu' is none; use auto, cpu, cuda"),
        ({}, {"device": "meta"}, "device 'meta' is not supported"),
    ],
)
def test_what_does_not_fit_is_refused_before_training(
    config: dict[str, Any], run: dict[str, Any], words: str, backbone: nn.Module, data: ImageData
) -> None:
    with pytest.raises(InputError, match=words):
        train(backbone, data, dataclasses.replace(TINY, **config), RunSettings(**run), never)


@pytest.mark.parametrize("classes", [9, 11])
def test_a_network_has_to_give_one_logit_a_class(classes: int, data: ImageData) -> None:
    with torch.random.fork_rng():
        other = digits_cnn(classes=classes, widths="4,4,4,4")
    words = rf"shape \[N, {classes}\] and the data has 10 classes; it has to give one logit for each"
    with pytest.raises(InputError, match=words):
        train(other, data, TINY, progress=never)


@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_a_gpu_that_is_not_there_is_refused(
    device: str, backbone: nn.Module, data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(InputError, match=r"device 'cuda:[01]': .*finds 0 CUDA devices; use --device cpu"):
        train(backbone, data, TINY, RunSettings(device=device), never)


def test_a_backbone_that_cannot_be_pruned_is_refused_before_training(data: ImageData) -> None:
    with pytest.raises(NothingPrunableError):
        train(tiny_backbone("4,3,3,3"), data, TINY, progress=never)


def test_mixed_precision_stays_near_full_precision(backbone: nn.Module, data: ImageData) -> None:
    """One epoch: of more, Adam would make the rounding anything."""

    def rows(config: TrainingConfig) -> tuple[TrainingResult, list[EpochRow]]:
        found: list[EpochRow] = []
        return train(backbone, data, config, log=found.append), found

    brief = dataclasses.replace(TINY, backbone_epochs=1, random_epochs=1, rounds=1, backbone_rate=1e-3)
    exact, exact_rows = rows(brief)
    mixed, mixed_rows = rows(dataclasses.replace(brief, mixed_precision=True))
    assert {parameter.dtype for parameter in mixed.network.parameters()} == {torch.float32}
    first = exact.network.backbone.get_parameter("0.weight"), mixed.network.backbone.get_parameter("0.weight")
    assert not torch.equal(*first)
    torch.testing.assert_close(*first, atol=0.02, rtol=0)
    for one, other in zip(exact_rows, mixed_rows, strict=True):
        assert other.class_loss == pytest.approx(one.class_loss, rel=0.05), one.phase
