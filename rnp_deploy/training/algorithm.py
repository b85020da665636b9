"""Algorithm 1 of the paper: backbone, random options, then agent and backbone in turn."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from rnp_deploy.bundle.calibration import Calibration
from rnp_deploy.datasets import ImageData, spread_rows
from rnp_deploy.errors import InputError, TrainingError
from rnp_deploy.network import RuntimePrunedNetwork
from rnp_deploy.progress import Progress, no_progress
from rnp_deploy.training import phases, processes
from rnp_deploy.training.config import TrainingConfig
from rnp_deploy.training.evaluation import calibration_points, fixed_policy, outcomes
from rnp_deploy.training.minibatches import epoch_of, minibatches
from rnp_deploy.training.phases import Descent, Phase, StepResult
from rnp_deploy.training.progress_log import EpochLog, EpochRow, Meter, no_log
from rnp_deploy.training.q_learning import Draws, draw, epsilon_at
from rnp_deploy.training.run_state import read_state, write_state

__all__ = ["RunSettings", "TrainingResult", "train"]


@dataclass(frozen=True)
class RunSettings:
    """Where and how a run is done; nothing here changes its result but for rounding.

    Attributes:
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
        workers: Processes that read images ahead; 0 reads them in between.
        folder: Where the state of an unfinished run is kept; None keeps none.
        resume: Go on with the run in ``folder``, if there is one.
        save_every_s: Seconds between states.
    """

    device: str = "cpu"
    workers: int = 0
    folder: Path | None = None
    resume: bool = False
    save_every_s: float = 30.0

    def reading(self, batch_size: int) -> tuple[int, int]:
        """Workers, and images at once, of an evaluation: it is to fit where training does."""
        return self.workers, min(256, batch_size)


@dataclass(frozen=True)
class TrainingResult:
    """A trained network, in eval mode on the CPU, and what it does on the held-out split."""

    network: RuntimePrunedNetwork
    calibration: Calibration


def train(
    backbone: nn.Module,
    data: ImageData,
    config: TrainingConfig,
    run: RunSettings | None = None,
    progress: Progress = no_progress,
    log: EpochLog = no_log,
) -> TrainingResult:
    """Train a backbone, and then the agent that prunes it at run time.

    The same seed, first weights and machine give the same result, bit for bit, whether or not
    the run was killed and resumed. Torch's global random state is left as it was.

    Args:
        backbone: Any CNN that torch.fx can trace; left untouched.
        data: Its train split is learnt from; its test split only fills the calibration.
        config: What decides the result.
        run: Where and how; None is on the CPU, keeping no state.
        progress: Told of every minibatch.
        log: Told of every epoch.

    Raises:
        NetworkError: The backbone cannot be pruned; found before anything is trained.
        InputError: A batch size that does not fit the data or the processes, a device that is
            not there, or a state of another configuration.
        TrainingError: A loss is no longer a finite number, or a minibatch does not fit the
            device's memory.
    """
    run = run or RunSettings()
    device = processes.torch_device(run.device)
    with processes.own_random_state(device):
        training = _Training(backbone, data, config, run, device)
        for phase in training.phases:
            training.do(phase, progress, log)
        return training.result(progress)


class _Training:
    """What changes while training: ``module``, the optimizers, and three numbers."""

    def __init__(
        self,
        backbone: nn.Module,
        data: ImageData,
        config: TrainingConfig,
        run: RunSettings,
        device: torch.device,
    ) -> None:
        _check_batch(config.batch_size, len(data.train))
        self.data, self.config, self.run, self.device = data, config, run, device
        self.epoch = epoch_of(data.train, config.batch_size)
        self.phases = phases.schedule(config, self.epoch)
        self.example = torch.from_numpy(data.train.read(np.arange(1))[0])
        pruned = self._pruned(backbone)  # refuses, if it does, before anything is trained
        _check_outputs(pruned, self.example, len(data.classes))
        self.module: nn.Module = copy.deepcopy(backbone).to(device)
        self.descents: dict[str, Descent] = {}
        self.step = 0
        self.loss_sum = 0.0
        self.backbone_accuracy = 0.0
        self.identity = _identity(backbone, pruned, data, config)
        self._saved_at = time.monotonic()
        content = None if run.folder is None or not run.resume else read_state(run.folder, self.identity)
        if content is not None:
            self._restore(pruned, content)
        self.batches = minibatches(
            data.train, config.batch_size, config.seed, self.step,
            rank=processes.rank(), ranks=processes.count(), workers=run.workers,
        )  # fmt: skip

    @property
    def network(self) -> RuntimePrunedNetwork:
        """The module, from the second phase on."""
        return cast(RuntimePrunedNetwork, self.module)

    def _prune(self) -> None:
        """Make the runtime-pruned network of the trained backbone: its filters' norms order the groups."""
        torch.manual_seed(self._seed(2))
        self.backbone_accuracy = self._accuracy(self.module)
        network = self._pruned(self.module.cpu())
        network.agent.decoder.reset_parameters()  # without the untrained agent's liking for all groups
        self.module = network.to(self.device)

    def do(self, phase: Phase, progress: Progress, log: EpochLog) -> None:
        """Take the steps of a phase that were not taken yet."""
        if phase.name != phases.BACKBONE and not isinstance(self.module, RuntimePrunedNetwork):
            self._prune()
        first = sum(each.steps for each in self.phases[: self.phases.index(phase)])
        every = phase.steps if phase.name in (phases.AGENT, phases.TUNING) else self.epoch
        meter = Meter()
        while self.step < first + phase.steps:
            done = phase.before + self.step - first
            with _memory_named(self.config.batch_size, self.device, phase.name):
                result = self._take_step(phase, done)
            self.step += 1
            self._save_sometimes()
            progress(phase.name, done + 1, phase.total)
            meter.add(result)
            if (self.step - first) % every == 0:
                log(self._row(meter, phase, done))
        if phase.before + phase.steps == phase.total:
            self.descents.pop(phase.name, None)

    def result(self, progress: Progress) -> TrainingResult:
        """The network and its calibration."""
        self._save()
        network, images = self.network, self.data.test
        network.agent.trained = True
        rows = spread_rows(images, self.config.calibration_images)
        progress("calibrating", 0, 1)
        full = fixed_policy(network, network.full_options(1)[0])
        with _memory_named(self.config.batch_size, self.device, "calibrating"):
            (whole,) = outcomes(network, images, [full], rows, *self.run.reading(self.config.batch_size))
            points = calibration_points(network, images, rows, *self.run.reading(self.config.batch_size))
        progress("calibrating", 1, 1)
        calibration = Calibration(
            data=f"{self.data.name}:test",
            samples=len(rows),
            backbone_accuracy=self.backbone_accuracy,
            full_accuracy=whole.accuracy,
            points=points,
        )
        return TrainingResult(network.cpu(), calibration)

    def _take_step(self, phase: Phase, done: int) -> StepResult:
        config = self.config
        images, labels = (x.to(self.device, non_blocking=True) for x in next(self.batches))
        torch.manual_seed(self._seed(0) + processes.rank())  # of what the backbone draws, as dropout does
        if phase.name == phases.BACKBONE:
            result = phases.backbone_step(self.module, images, labels, config)
            self._descent(phase).step(result.loss, done)
            return result
        network, draws = self.network, self._draws()
        if phase.name == phases.MEASURE:
            network.eval()
            with torch.no_grad():
                result = phases.options_step(network, images, labels, draws.options, config)
            self.loss_sum += float(processes.average_gradients((), result.class_loss))
            if not math.isfinite(self.loss_sum):
                raise TrainingError(
                    f"the loss is {self.loss_sum} in phase {phase.name!r}, step {done + 1} of {phase.total}; "
                    "lower the learning rate of the backbone"
                )
            return result
        if phase.name == phases.RANDOM:
            network.train()
            result = phases.options_step(network, images, labels, draws.options, config)
        elif phase.name == phases.AGENT:
            epsilon = self._epsilon(phase, done)
            result = phases.agent_step(network, images, labels, draws, epsilon, self._alpha(), config)
        else:
            result = phases.tuning_step(network, images, labels, draws, config)
        self._descent(phase).step(result.loss, done)
        return result

    def _epsilon(self, phase: Phase, done: int) -> float:
        return epsilon_at(done, phase.total, self.config.first_epsilon, self.config.last_epsilon)

    def _alpha(self) -> float:
        """The α for which α·L_cls averages 1 under random options, over one epoch."""
        return self.epoch / max(self.loss_sum, 1e-9)  # of tiny data every image may be learnt by heart

    def _draws(self) -> Draws:
        """This process's share of what is drawn for the step."""
        generator = torch.Generator().manual_seed(self._seed(1))
        whole = draw(self.network, self.config.batch_size, generator)
        own = slice(processes.rank(), None, processes.count())
        return Draws(*(x[own].to(self.device) for x in whole))

    def _seed(self, stream: int) -> int:
        """Of one step alone, so that a resumed run needs no random state."""
        words = np.random.SeedSequence((self.config.seed, self.step, stream)).generate_state(2)
        return (int(words[0]) << 30) ^ int(words[1])

    def _pruned(self, backbone: nn.Module) -> RuntimePrunedNetwork:
        config = self.config
        return RuntimePrunedNetwork.from_settings(
            backbone, self.example, config.pruning, penalty=config.penalty,
            penalty_range=config.penalty_range, state_size=config.state_size,
        )  # fmt: skip

    def _descent(self, phase: Phase) -> Descent:
        if phase.name not in self.descents:
            module: nn.Module = self.module
            rate = self.config.backbone_rate
            if isinstance(module, RuntimePrunedNetwork):
                module = module.agent if phase.name == phases.AGENT else module.backbone
            if phase.name in (phases.AGENT, phases.TUNING):
                rate = self.config.agent_rate if phase.name == phases.AGENT else self.config.tuning_rate
            self.descents[phase.name] = Descent(phase.name, module.parameters(), rate, phase.total)
        return self.descents[phase.name]

    def _accuracy(self, backbone: nn.Module) -> float:
        rows = spread_rows(self.data.test, self.config.calibration_images)

        def plain(images: Tensor, _: slice) -> tuple[Tensor, Tensor]:
            return backbone(images), images.new_zeros(len(images), 0)

        with _memory_named(self.config.batch_size, self.device, "measuring the backbone"):
            (outcome,) = outcomes(
                backbone, self.data.test, [plain], rows, *self.run.reading(self.config.batch_size)
            )
        return outcome.accuracy

    def _row(self, meter: Meter, phase: Phase, done: int) -> EpochRow:
        descent = self.descents.get(phase.name)
        return meter.row(
            phase.name,
            self.step,
            sum(each.steps for each in self.phases),
            epsilon=self._epsilon(phase, done) if phase.name == phases.AGENT else None,
            rate=None if descent is None else descent.rate_at(done),
        )

    def _save_sometimes(self) -> None:
        if time.monotonic() - self._saved_at >= self.run.save_every_s:
            self._save()

    def _save(self) -> None:
        if self.run.folder is None or processes.rank():
            return
        network = self.module if isinstance(self.module, RuntimePrunedNetwork) else None
        content = {
            "step": self.step,
            "loss_sum": self.loss_sum,
            "backbone_accuracy": self.backbone_accuracy,
            "module": self.module.state_dict(),
            "orders": None if network is None else network.orders,
            "optimizers": {name: descent.optimizer.state_dict() for name, descent in self.descents.items()},
        }
        write_state(self.run.folder, self.identity, content)
        self._saved_at = time.monotonic()

    def _restore(self, pruned: RuntimePrunedNetwork, content: dict[str, Any]) -> None:
        if content["orders"] is None:
            self.module.load_state_dict(content["module"])
        else:
            pruned.load_ordered(content["module"], content["orders"])
            self.module = pruned.to(self.device)
        self.step, self.loss_sum = content["step"], content["loss_sum"]
        self.backbone_accuracy = content["backbone_accuracy"]
        for phase in {each.name: each for each in self.phases if each.name in content["optimizers"]}.values():
            self._descent(phase).optimizer.load_state_dict(content["optimizers"][phase.name])


def _check_batch(batch_size: int, images: int) -> None:
    if batch_size > images:
        raise InputError(f"batch_size is {batch_size}, but there are {images} training images; lower it")
    if batch_size % processes.count():
        raise InputError(f"batch_size is {batch_size}; {processes.count()} processes cannot share it evenly")


def _check_outputs(network: RuntimePrunedNetwork, example: Tensor, classes: int) -> None:
    with torch.no_grad():
        shape = tuple(network.run(example, network.full_options(1)).shape)
    if len(shape) != 2 or shape[1] != classes:
        raise InputError(
            f"the network gives outputs of shape [N, {', '.join(map(str, shape[1:]))}] and the data has {classes} "
            "classes; it has to give one logit for each"
        )


def _identity(
    backbone: nn.Module, pruned: RuntimePrunedNetwork, data: ImageData, config: TrainingConfig
) -> dict[str, Any]:
    """What a run may not change half-way, as JSON values; what is many values, as a hash."""
    settings = {name: value for name, value in dataclasses.asdict(config).items() if name != "pruning"}
    weights = hashlib.sha256()
    for name, tensor in backbone.state_dict().items():
        weights.update(name.encode())
        weights.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return {
        **settings,
        "penalty_range": None if config.penalty_range is None else list(config.penalty_range),
        "pruning": config.pruning.model_dump(mode="json"),
        "data": f"{data.name}, {len(data.train)} training images",
        "preprocessing": data.preprocessing.model_dump(mode="json"),
        "classes": list(data.classes),
        "labels": hashlib.sha256(data.train.labels.tobytes() + data.test.labels.tobytes()).hexdigest(),
        "network": hashlib.sha256(str(pruned.backbone.graph).encode() + repr(backbone).encode()).hexdigest(),
        "first weights": weights.hexdigest(),
    }


@contextmanager
def _memory_named(batch_size: int, device: torch.device, phase: str) -> Iterator[None]:
    try:
        yield
    except RuntimeError as err:
        if not isinstance(err, torch.OutOfMemoryError) and "can't allocate memory" not in str(err):
            raise
        raise TrainingError(
            f"a minibatch of {batch_size} does not fit into the memory of {device} in phase {phase!r}; "
            "lower the batch size, or train in more processes"
        ) from err
