"""A CNN kept whole, whose convolutions compute per image as many channel groups as an agent says."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, fx, nn

from rnp_deploy.errors import InputError, NothingPrunableError, TracingError
from rnp_deploy.explanation import Explanation
from rnp_deploy.network.agent import Agent, StepOutput
from rnp_deploy.network.channels import ChannelAnalysis
from rnp_deploy.network.ordering import filter_order, reorder_channels
from rnp_deploy.network.stages import Decision, Stage, cut_stages
from rnp_deploy.network.tracing import Trace, same_outputs, trace_backbone
from rnp_deploy.network.widths import analyse_channels
from rnp_deploy.pruning_settings import PENALTY_RANGE, PruningSettings

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
        settings: What was asked to be pruned.
        groups: k, the largest number of options of a decision.
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
        settings: PruningSettings,
        input_shape: tuple[int, ...],
    ) -> None:
        """Put the parts together; :meth:`from_backbone` makes them."""
        super().__init__()
        self.backbone = backbone
        self.agent = agent
        self.analysis = analysis
        self.stages = stages
        self.decisions = decisions
        self.settings = settings
        self.groups = max(len(decision.widths) for decision in decisions)
        self.input_shape = input_shape
        cuts = analysis.cuts_by_name
        #: By stage, for each layer that multiplies: its MACs, and the convolutions its weight shrinks with.
        self._layers = tuple(
            [
                (node.meta["macs"], [cut.conv for cut in cuts.get(f"{node.target}.weight", ())])
                for node in stage.module.graph.nodes
                if node.meta.get("macs")
            ]
            for stage in stages
        )

    @classmethod
    def from_backbone(  # noqa: PLR0913 - settings by name, each of its own
        cls,
        backbone: nn.Module,
        example_input: Tensor,
        groups: int = 4,
        *,
        overrides: Mapping[str, int] | None = None,
        skip: Sequence[str] = (),
        align: int = 8,
        granularity: str = "conv",
        min_macs_share: float = 0.01,
        penalty: float = 0.1,
        penalty_range: tuple[float, float] | None = PENALTY_RANGE,
        state_size: int = 32,
    ) -> RuntimePrunedNetwork:
        """Make a runtime-pruned network with an untrained agent from a CNN.

        Until it is trained, the agent takes all groups everywhere at its own penalty.

        Args:
            backbone: Any CNN that torch.fx can trace; it is copied and left untouched.
            example_input: ``[N, C, H, W]``; sets C, H, W and dtype.
            groups: k, the number of channel groups of each prunable convolution.
            overrides: Module path pattern → another number of groups.
            skip: Module path patterns of convolutions to leave whole.
            align: Round widths up to a multiple of this, where groups are as wide; 1: do not.
            granularity: ``"conv"`` or ``"block"``: one decision for each, or for all of a block.
            min_macs_share: Leave a convolution whole whose option changes a smaller share,
                0..1, of the MACs. For all of these see
                :class:`rnp_deploy.pruning_settings.PruningSettings`.
            penalty: The price of one more group (the paper's -p) where the caller names none.
            penalty_range: Prices the agent is to be trained for; None: for ``penalty`` alone.
            state_size: D, the length of the agent's recurrent state and of its embeddings.

        Returns:
            The network in eval mode. With option k everywhere it computes what the backbone does.

        Raises:
            InputError: A setting out of range, or an example that does not fit.
            TracingError: The backbone cannot be traced.
            NothingPrunableError: Every convolution has to stay whole.
        """
        if isinstance(skip, str):
            raise InputError(f"skip is {skip!r}; pass a sequence of patterns, [{skip!r}]")
        settings = PruningSettings.checked(
            groups=groups,
            overrides=dict(overrides or {}),
            skip=tuple(skip),
            align=align,
            granularity=granularity,
            min_macs_share=min_macs_share,
        )
        return cls.from_settings(
            backbone,
            example_input,
            settings,
            penalty=penalty,
            penalty_range=penalty_range,
            state_size=state_size,
        )

    @classmethod
    def from_settings(
        cls,
        backbone: nn.Module,
        example_input: Tensor,
        settings: PruningSettings,
        *,
        penalty: float = 0.1,
        penalty_range: tuple[float, float] | None = PENALTY_RANGE,
        state_size: int = 32,
    ) -> RuntimePrunedNetwork:
        """As :meth:`from_backbone`, with the settings in one value."""
        trace = trace_backbone(backbone, example_input)
        analysis = analyse_channels(trace, settings)
        if not analysis.prunable:
            reasons = "; ".join(f"{role.conv}: {role.reason}" for role in analysis.roles) or "it has none"
            raise NothingPrunableError(
                f"no convolution of {type(backbone).__name__} can be pruned: {reasons}"
            )
        try:
            network = cls._assembled(trace, analysis, settings, (state_size, penalty, penalty_range))
            network._check(trace.images, trace.outputs)
        except InputError:  # the caller's settings, not the network's channels
            raise
        except (RuntimeError, LookupError, ValueError) as err:
            raise TracingError(
                f"{type(backbone).__name__} cannot be cut into stages: {err}; please report the network: its "
                "channels are used in a way that was not understood; skip= leaves a convolution whole"
            ) from err
        return network

    @classmethod
    def _assembled(
        cls,
        trace: Trace,
        analysis: ChannelAnalysis,
        settings: PruningSettings,
        agent_settings: tuple[int, float, tuple[float, float] | None],
    ) -> RuntimePrunedNetwork:
        traced, shape = trace.graph_module, tuple(trace.images.shape[1:])
        orders = {
            conv: tuple(range(analysis.widths[conv][-1]))
            if conv in analysis.fixed
            else filter_order(traced.get_submodule(conv), analysis.units[conv])  # type: ignore[arg-type]
            for conv in analysis.prunable
        }
        reorder_channels(traced, analysis.cuts, orders)
        stages, decisions = cut_stages(traced, analysis, orders)
        agent = Agent(
            [decision.feature_channels for decision in decisions],
            [len(decision.widths) for decision in decisions],
            *agent_settings,
        ).to(trace.images)
        return cls(traced, agent, analysis, stages, decisions, settings, shape).eval()

    def _check(self, images: Tensor, expected: Tensor) -> None:
        """Refuse a network whose channels reach where nobody masks them.

        In full it has to repeat the backbone, and at option 1 it must not matter what the dropped
        filters hold.
        """
        full = self.full_options(len(images)).to(images.device)
        least = torch.ones_like(full)
        weights = {
            self.backbone.get_parameter(f"{conv}.weight"): widths[0]
            for conv, widths in self.analysis.widths.items()
        }
        with torch.no_grad():
            outputs, cheapest = self.run(images, full), self.run(images, least)
            before = [weight.clone() for weight in weights]
            for weight, kept in weights.items():
                weight[kept:] += 1 + weight.abs().max()
            changed = self.run(images, least)
            for weight, old in zip(weights, before, strict=True):
                weight.copy_(old)
        for what, got, wanted in (("in full", outputs, expected), ("at option 1", changed, cheapest)):
            if not same_outputs(got, wanted):
                deviation = float((got - wanted).abs().max() / wanted.abs().max())
                raise TracingError(
                    f"cut into stages, the network gives other outputs {what}, by {deviation:.1e} of the largest. "
                    "If this is far above rounding, please report the network: its channels are used in a way "
                    "that was not understood; else it is so unstable that the order of its channels matters"
                )

    def explain(self) -> Explanation:
        """What became of every convolution, and why; print it to see a table."""
        return Explanation(self.analysis.roles)

    def forward(self, images: Tensor, penalty: float | Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Let the agent decide.

        Args:
            images: ``[N, C, H, W]``.
            penalty: Price of one more group, a number or ``[N]``; None is the agent's own.

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
        # Paths are counted in Python, and few are taken by many samples.
        paths, path_of = options.unique(dim=0, return_inverse=True)
        totals = [
            sum(self.stage_macs(s, dict(enumerate(row))) for s in range(len(self.stages)))
            for row in paths.tolist()
        ]
        return torch.tensor(totals, dtype=torch.int64)[path_of]

    def stage_macs(self, stage: int, options: Mapping[int, int]) -> int:
        """Multiply-accumulates of one stage for one sample.

        A convolution costs ``out_channels · in_channels/groups · kH · kW · H_out · W_out``, a
        linear layer ``out · in`` per position, a matrix product likewise. Biases, norms and
        activations count nothing, as in the paper's tables.

        Args:
            stage: Its index.
            options: Decision → option; what follows another decision counts at full width.
        """
        kept = {conv: width for t, j in options.items() for conv, width in self.decisions[t].kept(j).items()}
        full, total = self.analysis.widths, 0
        for macs, convs in self._layers[stage]:
            for conv in convs:
                macs = macs * kept.get(conv, full[conv][-1]) // full[conv][-1]
            total += macs
        return total

    @property
    def option_counts(self) -> tuple[int, ...]:
        """How many options each decision has."""
        return tuple(len(decision.widths) for decision in self.decisions)

    @property
    def orders(self) -> dict[str, tuple[int, ...]]:
        """Of each prunable convolution, the backbone's own channel indices in group order."""
        return {pruned.conv: pruned.order for decision in self.decisions for pruned in decision.convs}

    def load_ordered(self, state: Mapping[str, Tensor], orders: Mapping[str, tuple[int, ...]]) -> None:
        """Take over the weights and the channel order of another network of this backbone and settings.

        Raises:
            InputError: They do not fit.
        """
        try:
            self.load_state_dict(state)
        except RuntimeError as err:
            raise InputError(f"the weights do not fit the backbone: {err}") from err
        if orders.keys() != self.orders.keys():
            raise InputError("the backbone has other prunable convolutions")
        for conv, order in self.orders.items():
            if sorted(orders[conv]) != sorted(order):
                raise InputError(f"orders of {conv} is no order of its channels")
        self.decisions = tuple(
            dataclasses.replace(
                decision,
                convs=tuple(dataclasses.replace(p, order=tuple(orders[p.conv])) for p in decision.convs),
            )
            for decision in self.decisions
        )

    def full_options(self, batch: int) -> Tensor:
        """All groups everywhere: ``[batch, T]`` int64."""
        return torch.tensor(self.option_counts).expand(batch, -1).clone()

    def random_options(self, batch: int, generator: torch.Generator | None = None) -> Tensor:
        """Uniformly random options ``[batch, T]`` int64."""
        columns = [torch.randint(1, k + 1, (batch,), generator=generator) for k in self.option_counts]
        return torch.stack(columns, dim=1)

    def _checked_options(self, options: Tensor, batch: int) -> Tensor:
        wanted = (batch, len(self.decisions))
        if tuple(options.shape) != wanted or options.is_floating_point() or options.dtype == torch.bool:
            raise InputError(
                f"options have shape {tuple(options.shape)} and dtype {options.dtype}; "
                f"pass integers of shape {wanted}: one per image and decision"
            )
        largest = torch.tensor(self.option_counts, device=options.device)
        if ((options < 1) | (options > largest)).any():
            raise InputError(
                f"options range over {int(options.min())}..{int(options.max())}; "
                f"this network takes 1..{self.groups}"
                + ("" if len(set(self.option_counts)) == 1 else f", by decision 1..{self.option_counts}")
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
