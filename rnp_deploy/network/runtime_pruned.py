"""A CNN kept whole, whose convolutions compute per image as many channel groups as an agent says."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor, fx, nn

from rnp_deploy.errors import InputError, NothingPrunableError, TracingError
from rnp_deploy.network.agent import Agent, StepOutput
from rnp_deploy.network.channels import ChannelAnalysis, analyse_channels
from rnp_deploy.network.macs import LayerMacs, layer_macs
from rnp_deploy.network.ordering import filter_order, reorder_channels
from rnp_deploy.network.stages import Decision, Stage, cut_stages
from rnp_deploy.network.tracing import noise_like, same_outputs, trace_backbone

__all__ = ["RuntimePrunedNetwork"]

#: (decision t, its pooled features ``[N, C_in]``) → options ``[N]`` in 1..k.
ChooseOption = Callable[[int, Tensor], Tensor]


class RuntimePrunedNetwork(nn.Module):
    """The torch form of a runtime-pruned network: the reference for everything after it.

    It computes at full width and sets pruned channels to zero where they are read, per
    sample; see :meth:`run`. Make one with :meth:`from_backbone`.

    Attributes:
        backbone: The traced copy, its channels in group order. Owns every backbone parameter.
        agent: Chooses the options.
        analysis: What became of every convolution, with reasons, and what follows what.
        stages: T + 1 pieces of backbone; they share its modules.
        decisions: T places where an option is chosen.
        groups: k.
        input_shape: ``(C, H, W)``.
    """

    backbone: fx.GraphModule
    agent: Agent

    def __init__(
        self,
        backbone: fx.GraphModule,
        agent: Agent,
        analysis: ChannelAnalysis,
        stages: tuple[Stage, ...],
        decisions: tuple[Decision, ...],
        groups: int,
        input_shape: tuple[int, ...],
    ) -> None:
        """Put the parts together; :meth:`from_backbone` makes them."""
        super().__init__()
        self.backbone = backbone
        self.agent = agent
        self.analysis = analysis
        self.stages = stages
        self.decisions = decisions
        self.groups = groups
        self.input_shape = input_shape
        self._layers = tuple(layer_macs(backbone, analysis, stage.module.graph) for stage in stages)

    @classmethod
    def from_backbone(
        cls,
        backbone: nn.Module,
        example_input: Tensor,
        groups: int = 4,
        *,
        penalty: float = 0.1,
        state_size: int = 32,
    ) -> RuntimePrunedNetwork:
        """Make a runtime-pruned network with an untrained agent from a CNN.

        Args:
            backbone: Any CNN that torch.fx can trace; it is copied and left untouched.
            example_input: ``[N, C, H, W]``; sets C, H, W and dtype.
            groups: k, the number of channel groups of each prunable convolution.
            penalty: The price of one more group the agent is trained with (the paper's -p).
            state_size: D, the length of the agent's recurrent state and of its embeddings.

        Returns:
            The network in eval mode. With option k everywhere it computes what the backbone does.

        Raises:
            InputError: ``groups`` < 2, or the example does not fit.
            TracingError: The backbone cannot be traced.
            NothingPrunableError: Every convolution has to stay whole.
        """
        if isinstance(groups, bool) or not isinstance(groups, int) or groups < 2:
            raise InputError(f"groups is {groups!r}; pass an integer of at least 2")
        traced = trace_backbone(backbone, example_input)
        analysis = analyse_channels(traced, groups)
        if not analysis.prunable:
            reasons = "; ".join(f"{role.conv}: {role.reason}" for role in analysis.roles) or "it has none"
            raise NothingPrunableError(
                f"no convolution of {type(backbone).__name__} can be pruned: {reasons}"
            )
        noise = noise_like(example_input)
        with torch.no_grad():
            expected = traced(noise)
        convs = {conv: traced.get_submodule(conv) for conv in analysis.prunable}
        orders = {conv: filter_order(module) for conv, module in convs.items()}  # type: ignore[arg-type]
        reorder_channels(traced, analysis.cuts, orders)
        widths = {
            conv: tuple(len(order) * j // groups for j in range(1, groups + 1))
            for conv, order in orders.items()
        }
        stages, decisions = cut_stages(traced, analysis, widths, orders)
        channels = [decision.feature_channels for decision in decisions]
        agent = Agent(channels, groups, state_size, state_size, penalty).to(example_input)
        input_shape = tuple(example_input.shape[1:])
        network = cls(traced, agent, analysis, stages, decisions, groups, input_shape).eval()
        with torch.no_grad():
            same = same_outputs(network.run(noise, network.full_options(2).to(noise.device)), expected)
        if not same:
            raise TracingError(
                f"cut into stages, {type(backbone).__name__} gives other outputs than before; "
                "please report the network: its channels are used in a way that was not understood"
            )
        return network

    def forward(self, images: Tensor, penalty: float | Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Let the agent decide.

        Args:
            images: ``[N, C, H, W]``.
            penalty: Price of one more group, a number or ``[N]``; None is the trained one.

        Returns:
            ``(outputs [N, ...], options [N, T] int64 in 1..k)``.
        """
        price = torch.as_tensor(self.agent.penalty if penalty is None else penalty, device=images.device)
        price = price.to(images.dtype).expand(images.shape[0])
        state = self.agent.initial_state(images)

        def choose(decision: int, features: Tensor) -> Tensor:
            nonlocal state
            step: StepOutput = self.agent(decision, features, state, price)
            state = step.state
            return step.option

        return self.route(images, choose)

    def run(self, images: Tensor, options: Tensor) -> Tensor:
        """Compute with given options.

        Wherever the channels of a pruned convolution are read, those beyond
        ``widths[option-1]`` are zero.

        Args:
            images: ``[N, C, H, W]``.
            options: Integer ``[N, T]``, 1..k.

        Returns:
            Outputs ``[N, ...]``.

        Raises:
            InputError: Options of another shape or dtype, or out of 1..k.
        """
        options = self._checked_options(options, images.shape[0])
        outputs, _ = self.route(images, lambda decision, _: options.select(1, decision))
        return outputs

    def route(self, images: Tensor, choose: ChooseOption) -> tuple[Tensor, Tensor]:
        """Run stage by stage, asking ``choose`` at each decision.

        Args:
            images: ``[N, C, H, W]``.
            choose: Called in order of decisions with pooled features ``[N, C_in]``, zero
                where channels are pruned; returns the options ``[N]``.

        Returns:
            ``(outputs, options [N, T])``.

        Raises:
            InputError: Images of another shape than ``[N, *input_shape]``.
        """
        if tuple(images.shape[1:]) != self.input_shape or images.ndim != 4:
            wanted = ", ".join(map(str, self.input_shape))
            raise InputError(f"images have shape {tuple(images.shape)}; pass [N, {wanted}]")
        tensors = {"images": images}
        chosen: list[Tensor] = []
        for stage in self.stages:
            if stage.decision is not None:
                features = tensors[self.decisions[stage.decision].features]
                chosen.append(choose(stage.decision, features))
            inputs = [tensors[tensor.name] for tensor in stage.inputs]
            results = stage.module(*inputs, *(chosen[t] for t in stage.option_decisions))
            tensors.update({tensor.name: x for tensor, x in zip(stage.outputs, results, strict=True)})
        return tensors["outputs"], torch.stack(chosen, dim=1)

    def macs(self, options: Tensor) -> Tensor:
        """Multiply-accumulates ``[N]`` int64 of the backbone, for options ``[N, T]``.

        Convolutions and linear layers count; the agent does not: see :meth:`Agent.macs`.

        Raises:
            InputError: As :meth:`run`.
        """
        options = self._checked_options(options, options.shape[0]).cpu()
        totals = [
            sum(self.stage_macs(s, dict(enumerate(row))) for s in range(len(self.stages)))
            for row in options.tolist()
        ]
        return torch.tensor(totals, dtype=torch.int64)

    def stage_macs(self, stage: int, options: dict[int, int]) -> int:
        """Multiply-accumulates of one stage for one sample; ``options`` maps decision → option."""
        widths = {
            decision.conv: (decision.widths[options[t] - 1], decision.widths[-1])
            for t, decision in enumerate(self.decisions)
            if t in options
        }
        layers: tuple[LayerMacs, ...] = self._layers[stage]
        return sum(layer.at(widths) for layer in layers)

    def full_options(self, batch: int) -> Tensor:
        """Option k everywhere: ``[batch, T]`` int64."""
        return torch.full((batch, len(self.decisions)), self.groups)

    def _checked_options(self, options: Tensor, batch: int) -> Tensor:
        wanted = (batch, len(self.decisions))
        if tuple(options.shape) != wanted or options.is_floating_point() or options.dtype == torch.bool:
            raise InputError(
                f"options have shape {tuple(options.shape)} and dtype {options.dtype}; "
                f"pass integers of shape {wanted}: one per image and decision"
            )
        if options.numel() and (int(options.min()) < 1 or int(options.max()) > self.groups):
            raise InputError(
                f"options range over {int(options.min())}..{int(options.max())}; "
                f"this network takes 1..{self.groups}"
            )
        return options.long()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> RuntimePrunedNetwork:
        # Moving modules replaces buffers, and a stage holds by reference those it reads by name.
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.stages = tuple(
            dataclasses.replace(stage, module=fx.GraphModule(self.backbone, stage.module.graph))
            for stage in self.stages
        )
        return self
