"""The same network gives the same bytes, and the same images the same answers."""

from __future__ import annotations

import hashlib
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

import networks
from rnp_deploy import Controller
from rnp_deploy.errors import IntegrityError
from rnp_deploy.exporters import export_bundle
from rnp_deploy.network import RuntimePrunedNetwork


def digest(folder):
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_two_exports_of_one_network_are_byte_identical(tmp_path):
    backbone, shape = networks.make("basic residual")
    for name in ("first", "second"):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            network = RuntimePrunedNetwork.from_backbone(backbone, torch.zeros(1, *shape))
        export_bundle(network, tmp_path / name)
    assert digest(tmp_path / "first") == digest(tmp_path / "second")


def test_repeated_and_concurrent_runs_agree(exported):
    case = exported("bottleneck residual")
    images, options = case.images(6).numpy(), case.options(6).numpy()
    with Controller.load(case.path) as controller, ThreadPoolExecutor(8) as pool:
        first = controller.run(images, options=options)
        results = pool.map(lambda _: controller.run(images, options=options), range(32))
        for result in results:
            assert np.array_equal(result.outputs, first.outputs)
            assert np.array_equal(result.macs, first.macs)


def test_preloading_changes_nothing(exported):
    case = exported("chain")
    images = case.images(5).numpy()
    with Controller.load(case.path, preload="all") as eager, Controller.load(case.path) as lazy:
        assert np.array_equal(eager.run(images).outputs, lazy.run(images).outputs)


def test_one_thread_and_many_agree(exported):
    case = exported("chain with norm")
    images, options = case.images(5).numpy(), case.options(5).numpy()
    with Controller.load(case.path, threads=1) as one, Controller.load(case.path) as many:
        alone, together = (c.run(images, options=options).outputs for c in (one, many))
    assert np.abs(alone - together).max() <= 1e-5 * np.abs(together).max()


def test_weights_replaced_after_loading_are_refused(exported, tmp_path):
    """A service must not mix graphs it checked with weights it did not."""
    path = shutil.copytree(exported("chain").path, tmp_path / "bundle")
    images = exported("chain").images(1).numpy()
    with Controller.load(path) as controller:
        weights = (path / "weights.bin").read_bytes()
        (path / "weights.bin").unlink()
        (path / "weights.bin").write_bytes(weights)
        with pytest.raises(IntegrityError, match=r"weights\.bin was replaced after loading"):
            controller.run(images)
