"""Bundles of the tiny networks, exported once a session."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import networks
from narrow_bundles import Narrow, narrow_bundle
from rnp_deploy.bundle import open_bundle
from rnp_deploy.exporters import export_bundle
from rnp_deploy.network import RuntimePrunedNetwork


@dataclass(frozen=True)
class Exported:
    """A tiny network in all its forms."""

    name: str
    backbone: nn.Module
    network: RuntimePrunedNetwork
    path: Path

    def images(self, batch: int, seed: int = 1) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(batch, *self.network.input_shape, generator=generator)

    def options(self, batch: int, seed: int = 1) -> Tensor:
        return self.network.random_options(batch, torch.Generator().manual_seed(seed))


@pytest.fixture(autouse=True)
def threads_of_torch() -> Iterator[None]:
    """Torch's threads are the process's: a test that asks for some leaves others theirs."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Exported]:
    """Name of a tiny network → that network, exported; each is exported once."""
    made: dict[str, Exported] = {}

    def export(name: str) -> Exported:
        if name not in made:
            backbone, shape = networks.make(name)
            with torch.random.fork_rng():
                torch.manual_seed(2)
                network = RuntimePrunedNetwork.from_backbone(backbone, torch.zeros(1, *shape))
            networks.undecided(network)
            path = tmp_path_factory.mktemp("bundles") / name.replace(" ", "-")
            export_bundle(network, path)
            made[name] = Exported(name, backbone, network, path)
        return made[name]

    return export


@pytest.fixture(scope="session")
def engine_set(
    exported: Callable[[str], Exported], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """Name of a tiny network → its engine set of this machine; each is built once."""
    made: dict[str, Path] = {}

    def build(name: str) -> Path:
        from rnp_deploy.engines.ort_build import build_engine_set

        if name not in made:
            path = tmp_path_factory.mktemp("engine-sets") / name.replace(" ", "-")
            build_engine_set(open_bundle(exported(name).path), path)
            made[name] = path
        return made[name]

    return build


@pytest.fixture(scope="session")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Narrow]:
    """Kind of network, precision → its bundle; each is exported once."""
    known: dict[tuple[str, str], Narrow] = {}

    def export(kind: str, precision: str = "fp16") -> Narrow:
        if (kind, precision) not in known:
            path = tmp_path_factory.mktemp(precision) / "bundle"
            known[kind, precision] = narrow_bundle(kind, precision, path)
        return known[kind, precision]

    return export


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Files side by side; but for one, that counts what another compared, and so goes with it."""
    from xdist.scheduler import LoadFileScheduling

    class ByFile(LoadFileScheduling):
        def _split_scope(self, nodeid):
            return nodeid.split("::", 1)[0].replace("test_torch_layers", "test_torch_ops")

    return ByFile(config, log)
