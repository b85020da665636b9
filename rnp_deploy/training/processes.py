"""Data-parallel training: what the processes of one run tell each other.

Each process computes its share of every minibatch. Gradients are averaged, and batch norms see
the whole minibatch, so that two processes do what one does.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from rnp_deploy.errors import InputError

__all__ = [
    "average_gradients",
    "count",
    "join",
    "own_random_state",
    "rank",
    "synced_batch_norms",
    "torch_device",
]


def torch_device(name: str) -> torch.device:
    """``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:1"`` → the device; this process's own under torchrun.

    Raises:
        InputError: There is none of this name.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as err:
        raise InputError(f"device {name!r} is none; use auto, cpu, cuda or cuda:N") from err
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"device {name!r} is not supported; use auto, cpu, cuda or cuda:N")
    if device.type == "cuda":
        if ":" in name and "LOCAL_RANK" in os.environ:
            raise InputError(f"device {name!r} would be that of every process; use cuda, each takes its own")
        if ":" not in name:
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        if not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count():
            raise InputError(
                f"device {str(device)!r}: torch {torch.__version__} finds {torch.cuda.device_count()} CUDA devices; "
                "use --device cpu, or install a build of torch for CUDA"
            )
    return device


@contextmanager
def own_random_state(device: torch.device) -> Iterator[None]:
    """Leave torch's global random state, and the device's, as they were."""
    with torch.random.fork_rng(devices=[] if device.type == "cpu" else [device]):
        yield


@contextmanager
def join(device: torch.device) -> Iterator[None]:
    """Take part in the run that torchrun started this process for; without torchrun, do nothing."""
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def rank() -> int:
    """This process, 0 where there is one alone."""
    return dist.get_rank() if dist.is_initialized() else 0


def count() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def average_gradients(parameters: Iterable[nn.Parameter], loss: Tensor) -> Tensor:
    """Set every gradient to its mean over the processes, in one message; returns the mean loss."""
    loss = loss.detach()
    if count() == 1:
        return loss
    gradients = [p.grad for p in parameters if p.grad is not None]
    message = torch.cat([loss.reshape(1), *(gradient.reshape(-1) for gradient in gradients)])
    dist.all_reduce(message)
    message /= count()
    for gradient, mean in zip(gradients, message[1:].split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.reshape(gradient.shape))
    return message[0]


@contextmanager
def synced_batch_norms(module: nn.Module) -> Iterator[None]:
    """Let batch norms in training see the minibatches of all processes.

    ``nn.SyncBatchNorm`` refuses the CPU and would be another module in the traced network; this
    lends the modules there are another forward.
    """
    norms = [each for each in module.modules() if isinstance(each, _BatchNorm)] if count() > 1 else []
    for norm in norms:
        norm.forward = partial(_synced_forward, norm)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for norm in norms:
            del norm.forward


class _SumOverProcesses(torch.autograd.Function):
    """The sum over all processes; its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _SumOverProcesses.forward(ctx, gradient)


def _sum(x: Tensor) -> Tensor:
    total: Tensor = _SumOverProcesses.apply(x)  # type: ignore[no-untyped-call]
    return total


def _synced_forward(norm: _BatchNorm, x: Tensor) -> Tensor:
    if not norm.training:
        return type(norm).forward(norm, x)
    dtype, x = x.dtype, x.to(torch.promote_types(x.dtype, torch.float32))  # as torch's own does
    axes = [0, *range(2, x.ndim)]
    values = count() * x.numel() // x.shape[1]
    shape = (1, -1, *(1,) * (x.ndim - 2))
    mean = _sum(x.sum(axes)) / values
    centred = x - mean.view(shape)
    variance = _sum(centred.square().sum(axes)) / values
    if norm.running_mean is not None and norm.running_var is not None:
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked.add_(1)
        step = 1 / float(norm.num_batches_tracked or 1) if norm.momentum is None else norm.momentum
        norm.running_mean.lerp_(mean.detach(), step)
        norm.running_var.lerp_(variance.detach() * values / max(values - 1, 1), step)
    normed: Tensor = centred * torch.rsqrt(variance + norm.eps).view(shape)
    if norm.weight is not None:
        normed = normed * norm.weight.view(shape) + norm.bias.view(shape)
    return normed.to(dtype)
