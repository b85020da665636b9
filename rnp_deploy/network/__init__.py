"""Runtime-pruned networks in torch: tracing, channel analysis, stages, agent."""

from rnp_deploy.network.runtime_pruned import RuntimePrunedNetwork

__all__ = ["RuntimePrunedNetwork"]
