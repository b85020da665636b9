"""The C++ controller decides and computes as Python's: every kind of edge, precision, policy and argument."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import networks
from cpp_runs import Run, cpp_results, differences, python_results
from narrow_bundles import narrow_bundle
from rnp_deploy import Controller
from rnp_deploy.bundle import open_bundle
from rnp_deploy.bundle.calibration import Calibration, CalibrationPoint
from rnp_deploy.engines.ort_build import build_engine_set
from rnp_deploy.exporters import export_bundle
from rnp_deploy.network import RuntimePrunedNetwork
from serving_build import built, environment
from tiny_training import tiny_network

#: The first test to need the C++ programs builds them.
pytestmark = pytest.mark.timeout(1500)

TOLERANCE = 1e-5
POLICIES = ("regroup", "serial", "round-up")
IMAGES = 21


@pytest.fixture(scope="module")
def program():
    return built("asan") / "rnp_run_arrays"


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """An untrained network for digits whose agent minds the image and the price, with a calibration; both packages."""
    folder = tmp_path_factory.mktemp("digits")
    network = networks.undecided(tiny_network("8,8,16,16", groups=4, penalty_range=(-1.0, 1.0)))
    counts = tuple((25, 25, 25, 25) for _ in network.decisions)
    points = tuple(
        CalibrationPoint(penalty=penalty, accuracy=0.5, macs_share=share, option_counts=counts)
        for penalty, share in ((-1.0, 1.0), (0.0, 0.6), (1.0, 0.2))
    )
    accuracies = {"backbone_accuracy": 0.5, "full_accuracy": 0.5}
    calibration = Calibration(data="none", samples=100, points=points, **accuracies)
    export_bundle(network, folder / "bundle", calibration=calibration)
    build_engine_set(open_bundle(folder / "bundle"), folder / "engines")
    return folder


def images_of(package, count=IMAGES):
    shape = (count, *open_package_manifest(package).inputs[0].shape)
    return np.random.default_rng(5).standard_normal(shape, dtype=np.float32)


def open_package_manifest(package):
    with Controller.load(package, "onnxruntime", "cpu", 1) as controller:
        return controller.manifest


def all_kinds_of_runs(package):
    """Batches with and without remainders; each argument; each policy."""
    manifest = open_package_manifest(package)
    random = np.random.default_rng(3)
    runs = []
    for batch, policy in ((1, "regroup"), (8, "regroup"), (13, "regroup"), (8, "serial"), (13, "round-up")):
        given = random.integers(1, np.array(manifest.option_counts) + 1, (batch, len(manifest.option_counts)))
        priced = [{}, {"penalty": 0.05}, {"penalty": random.uniform(-0.2, 0.5, batch)}, {"options": given}]
        if manifest.calibration is not None:
            priced += [{"target_macs": share} for share in (0.25, 0.7, 1.0)]
        runs += [Run(i % 8, batch, arguments | {"policy": policy}) for i, arguments in enumerate(priced)]
    return runs


def check_parity(program, package, threads=1, **settings):
    images, runs = images_of(package), all_kinds_of_runs(package)
    expected = python_results(package, images, runs, threads)
    got = cpp_results(program, package, images, runs, threads, environment("asan"), **settings)
    deviation, rows = differences(got, expected)
    assert rows == 0
    assert deviation <= TOLERANCE
    return expected


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("kind", ["bundle", "engines"])
def test_digits(program, digits, kind, threads):
    results = check_parity(program, digits / kind, threads)
    paths = np.unique(np.concatenate([result.options for result in results]), axis=0)
    assert len(paths) > 20  # or nothing is told of regrouping


@pytest.mark.parametrize("name", networks.TINY)
def test_bundles_and_engine_sets_of_every_tiny_network(program, name, exported, engine_set):
    check_parity(program, exported(name).path)
    check_parity(program, engine_set(name))


@pytest.mark.parametrize(
    "kind", ["concatenated", "shuffled", "several readers", "grouped, linear gate", "depthwise", "mixed"]
)
def test_edges_that_follow_decisions_of_several_convolutions(program, kind, tmp_path):
    bundle = narrow_bundle(kind, "fp32", tmp_path / "bundle").path
    check_parity(program, bundle)
    build_engine_set(open_bundle(bundle), tmp_path / "engines")
    check_parity(program, tmp_path / "engines")


@pytest.mark.parametrize("precision", ["fp16", "int8"])
@pytest.mark.parametrize("kind", ["basic residual", "shuffled"])
def test_bundles_in_other_precisions(program, kind, precision, narrow):
    check_parity(program, narrow(kind, precision).path)


def test_engines_let_go_of_under_a_budget(program, digits):
    check_parity(program, digits / "engines", memory_budget_bytes=4000)


def test_tensors_too_large_for_the_caches_go_in_parts(program, tmp_path):
    """Above 16 MB a batch, above 256 KiB a sample to begin with, below later."""
    backbone = networks.Vgg([64, 64, "M", 32, "M", 16, 16], torch.nn.Linear(16 * 16 * 16, 5), norm=False)
    torch.manual_seed(2)
    network = RuntimePrunedNetwork.from_backbone(backbone.eval(), torch.zeros(1, 3, 64, 64))
    export_bundle(networks.undecided(network), tmp_path / "bundle", verify=1)
    build_engine_set(open_bundle(tmp_path / "bundle"), tmp_path / "engines", verify=1)
    random = np.random.default_rng(1)
    images = random.standard_normal((21, 3, 64, 64), dtype=np.float32)
    runs = [
        Run(0, 21, {"options": random.integers(1, 5, (21, len(network.decisions))), "policy": p})
        for p in POLICIES
    ]
    runs.append(Run(0, 21))
    for package in (tmp_path / "bundle", tmp_path / "engines"):
        expected = python_results(package, images, runs, 2)
        got = cpp_results(program, package, images, runs, 2, environment("asan"))
        deviation, rows = differences(got, expected)
        assert rows == 0
        assert deviation <= TOLERANCE


def test_errors_have_the_codes_that_python_gives(program, digits, tmp_path):
    images = images_of(digits / "bundle", 2)
    for arguments in ({"penalty": 0.1, "target_macs": 0.5}, {"options": [[9, 9, 9]]}, {"target_macs": 0.1}):
        with pytest.raises(AssertionError, match="exit code 3\ninput: "):
            cpp_results(program, digits / "bundle", images, [Run(0, 1, arguments)], 1, environment("asan"))
    with pytest.raises(AssertionError, match="exit code 3\nmissing: "):
        cpp_results(program, tmp_path / "none", images, [Run(0, 1)], 1, environment("asan"))
