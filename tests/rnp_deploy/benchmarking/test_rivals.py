"""Static rivals: which there are, that each computes its path, and which is nearest."""

from __future__ import annotations

import numpy as np
import pytest

from bundles import small_manifest
from every_backend import Backend
from rnp_deploy import Controller
from rnp_deploy.array_memory import HOST
from rnp_deploy.benchmarking.rivals import (
    contender_of,
    nearest_path,
    open_rivals,
    rival_bundle,
    static_contender,
)
from rnp_deploy.bundle import open_bundle
from rnp_deploy.engines.backends import open_backend
from rnp_deploy.engines.fake import FakeEngine
from rnp_deploy.errors import BundleError, InputError

NEAREST = (2, 4, 1)


@pytest.fixture
def case(exported):
    return exported("chain")


@pytest.fixture(params=["onnxruntime cpu", "torch cpu", "onnxruntime cuda"])
def opened(request, case, monkeypatch):
    backend, device = request.param.split()
    if device == "cuda":
        Backend(backend, device, stand_in=True).stand_in_for_cuda(monkeypatch)
    return open_backend(case.path, backend, device, 1, "")


def test_each_gives_what_the_controller_does_on_its_path(opened, case):
    images = case.images(7).numpy()
    rivals = open_rivals(open_bundle(case.path), opened, batch=4, threads=1, nearest=NEAREST)
    assert [(rival.name, rival.kind, rival.options, rival.nearest) for rival in rivals] == [
        ("dense network, one graph", "dense", (4, 4, 4), False),
        ("static graph, option 3", "static", (3, 3, 3), False),
        ("static graph, option 2", "static", (2, 2, 2), False),
        ("static graph, option 1", "static", (1, 1, 1), False),
        ("static graph nearest in MACs", "nearest", NEAREST, True),
    ]
    with Controller(opened.source.manifest, opened.open_engine, memory=opened.memory) as controller:
        for rival in rivals:
            expected = controller.run(images, options=np.tile(rival.options, (7, 1)))
            assert rival.macs_share == expected.macs[0] / controller.manifest.macs
            given = [rival.contender(i, part) for i, part in enumerate((images[:4], images[4:], images[2:6]))]
            wanted = expected.outputs
            for got, rows in zip(given, (wanted[:4], wanted[4:], wanted[2:6]), strict=True):
                np.testing.assert_allclose(got, rows, rtol=1e-4, atol=1e-5)


def test_one_path_alone(opened, case):
    images = case.images(2).numpy()
    run = static_contender(open_bundle(case.path), opened, NEAREST, batch=2, threads=1)
    with Controller(opened.source.manifest, opened.open_engine, memory=opened.memory) as controller:
        expected = controller.run(images, options=np.tile(NEAREST, (2, 1))).outputs
    np.testing.assert_allclose(run(0, images), expected, rtol=1e-4, atol=1e-5)


def test_a_uniform_path_that_is_nearest_is_marked_and_opened_once(case):
    opened = open_backend(case.path, "onnxruntime", "cpu", 1, "")
    rivals = open_rivals(open_bundle(case.path), opened, batch=1, threads=1, nearest=np.array([2, 2, 2]))
    assert [rival.name for rival in rivals if rival.nearest] == ["static graph, option 2"]
    assert [rival.kind for rival in rivals] == ["dense", "static", "static", "static"]
    assert not any(r.nearest for r in open_rivals(open_bundle(case.path), opened, batch=1, threads=1))


def test_those_of_a_bundle_in_bf16_are_run_by_torch(narrow):
    _, path, manifest = narrow("chain", "bf16")
    opened = open_backend(path, "auto", "cpu", 1, "")
    images = np.random.default_rng(0).standard_normal((2, *manifest.inputs[0].shape), np.float32)
    rivals = open_rivals(open_bundle(path), opened, batch=2, threads=1)
    assert opened.backend == "torch"
    with Controller(manifest, opened.open_engine) as controller:
        for rival in rivals:
            wanted = controller.run(images, options=np.tile(rival.options, (2, 1))).outputs
            np.testing.assert_allclose(rival.contender(0, images), wanted, rtol=2e-2, atol=2e-2)


def test_the_bundle_of_rivals(case, engine_set):
    of_bundle = open_backend(case.path, "onnxruntime", "cpu", 1, "")
    of_set = open_backend(engine_set("chain"), "onnxruntime", "cpu", 1, "")
    assert rival_bundle(of_bundle) is of_bundle.source.graphs
    assert rival_bundle(of_set) is None
    assert rival_bundle(of_set, case.path).path == case.path


def test_rivals_of_another_bundle_are_refused(case, engine_set, exported, tmp_path):
    of_set = open_backend(engine_set("chain"), "onnxruntime", "cpu", 1, "")
    for path, error, words in (
        (exported("chain with norm").path, InputError, "is not the bundle that .* was built from"),
        (engine_set("chain"), InputError, "is an engine set"),
        (tmp_path / "nowhere", BundleError, "does not exist"),
    ):
        with pytest.raises(error, match=words):
            rival_bundle(of_set, path)


@pytest.mark.parametrize(
    ("options", "nearest"),
    [
        ([[2, 1], [2, 1]], (2, 1)),
        ([[1, 1], [2, 2]], (1, 1)),  # as near as (2, 2): the narrower
        ([[1, 2], [1, 2], [1, 2], [2, 2]], (1, 2)),
        ([[1, 1], [2, 2], [2, 2]], (2, 2)),
        ([[2, 2]], (2, 2)),
        ([[1, 2], [2, 1]], (1, 2)),
        ([[1, 2], [2, 2]], (2, 2)),  # as near as (1, 2): the uniform one
        ([[2, 2], [2, 1], [2, 1], [2, 1]], (2, 1)),
    ],
)
def test_the_nearest_path_is_one_that_was_taken_or_uniform(options, nearest):
    manifest = small_manifest()  # 1000 + 100·o0 + 10·o0 + o1
    taken = np.array(options)
    macs = np.array([manifest.path_macs(path) for path in options])
    assert nearest_path(taken, macs, manifest) == nearest


def test_on_the_host_results_are_the_engines_own_first_output():
    engine = FakeEngine(lambda feeds: {"y": feeds["x"] + 1, "z": feeds["x"]})
    images = np.zeros((2, 3), np.float32)
    assert contender_of(engine, HOST, "x")(0, images).tolist() == [[1] * 3] * 2


class _DeviceLike:
    """The host's memory, as if it were a device's."""

    on_host = False
    empty, host_empty, write, turn = HOST.empty, HOST.host_empty, HOST.write, HOST.turn


def test_on_a_device_a_batch_size_is_bound_once_and_results_are_the_callers(case):
    engine = FakeEngine(lambda feeds: {"y": feeds["x"] + 1})
    binds, real = [], engine.bind
    engine.bind = lambda inputs, outputs: binds.append(len(inputs["x"])) or real(inputs, outputs)
    run = contender_of(engine, _DeviceLike(), "x")
    batches = [np.full((n, 1), value, np.float32) for n, value in ((2, 1), (2, 5), (1, 7), (2, 9))]
    got = [run(i, part) for i, part in enumerate(batches)]
    assert [made.ravel().tolist() for made in got] == [[2, 2], [6, 6], [8], [10, 10]]
    assert binds == [2, 1]
