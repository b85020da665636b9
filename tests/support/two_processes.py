"""Functions that the tests run in the two processes of a group, over gloo on the CPU."""

from __future__ import annotations

import functools
import multiprocessing
import os
import socket
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from rnp_deploy.bundle.calibration import Calibration
from rnp_deploy.errors import RnpError
from rnp_deploy.training import TrainingConfig, phases, processes, train
from rnp_deploy.training.progress_log import EpochRow
from tiny_training import tiny_backbone, tiny_data

__all__ = [
    "Trained",
    "averaged",
    "batch_norm_outputs",
    "in_two_processes",
    "lost_in_process_one",
    "refusal",
    "trained",
]

_DEADLINE_S = 120
_STARTED_WITH = ["torch", "sklearn.datasets", "rnp_deploy.training.algorithm", "rnp_deploy.network"]


class Trained(NamedTuple):
    """What a process made of a run."""

    state: dict[str, Tensor]
    calibration: Calibration
    rows: list[EpochRow]


def in_two_processes(function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What a function of this module returns in process 0 and 1, torchrun's environment around it."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_STARTED_WITH)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with ProcessPoolExecutor(2, mp_context=context) as pool:
        tasks = [pool.submit(_member, rank, port, function, arguments) for rank in range(2)]
        return [task.result(_DEADLINE_S) for task in tasks]


def _member(rank: int, port: int, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    with processes.join(torch.device("cpu")):
        return function(*arguments)


def trained(config: TrainingConfig) -> Trained:
    """A tiny run; in one process, where this is no member of a group."""
    rows: list[EpochRow] = []
    result = train(tiny_backbone("4,8,8,8"), tiny_data(), config, log=rows.append)
    return Trained(dict(result.network.state_dict()), result.calibration, rows)


def refusal(config: TrainingConfig) -> str:
    """The error of a run that must fail."""
    try:
        train(tiny_backbone(), tiny_data(), config)
    except RnpError as err:
        return f"{type(err).__name__}: {err}"
    return ""


def lost_in_process_one(config: TrainingConfig, phase: str) -> str:
    """The same, where a loss of process 1 alone stops being a number in the second step of a phase."""
    name = {"backbone": "_losses", "agent": "q_loss"}[phase]
    loss, calls = getattr(phases, name), 0

    @functools.wraps(loss)
    def losing(*arguments: Any) -> Tensor:
        nonlocal calls
        calls += phases.schedule(config, 4)[0].name == phase or name == "q_loss"
        found: Tensor = loss(*arguments)
        return found * float("nan") if calls >= 2 and processes.rank() == 1 else found

    setattr(phases, name, losing)
    return refusal(config)


def averaged() -> tuple[list[Tensor | None], float]:
    """Gradients rank + 1 and 10·rank, and none, and a loss of 4·rank, averaged."""
    rank = processes.rank()
    parameters = [nn.Parameter(torch.zeros(2, 3)), nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))]
    parameters[0].grad = torch.full((2, 3), rank + 1.0)
    parameters[1].grad = torch.tensor([10.0 * rank, 0.0])
    loss = processes.average_gradients(parameters, torch.tensor(4.0 * rank))
    return [parameter.grad for parameter in parameters], loss.item()


def batch_norm_outputs(norm: nn.Module, images: np.ndarray, weights: np.ndarray) -> tuple[Tensor, ...]:
    """Of this process's share of a minibatch, every second image: outputs, gradients, statistics.

    Gradients are of the mean over the shares of ``(outputs · weights)``'s mean.
    """
    own = slice(processes.rank(), None, processes.count())
    x = torch.from_numpy(images)[own].requires_grad_()
    forward = norm.forward
    with processes.synced_batch_norms(norm):
        outputs = norm(x)
    assert norm.forward == forward
    loss = (outputs * torch.from_numpy(weights)[own]).mean()
    loss.backward()
    processes.average_gradients(norm.parameters(), loss)
    assert x.grad is not None
    gradients = [parameter.grad for parameter in norm.parameters() if parameter.grad is not None]
    return outputs.detach(), x.grad / processes.count(), *gradients, *norm.buffers()
