"""Engine sets of ONNX Runtime: they compute what the bundle does, whole or not at all."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

import networks
from random_networks import PARTS, RandomCnn
from rnp_deploy import Controller
from rnp_deploy.bundle import open_bundle
from rnp_deploy.bundle.engine_set import open_engine_set, read_engines
from rnp_deploy.engines import agent_fusion, ort_build
from rnp_deploy.engines.blocked_layout import block_size
from rnp_deploy.engines.engine_weights import BundleArrays, EngineWeights
from rnp_deploy.engines.ort_build import build_engine_set
from rnp_deploy.errors import EngineError, InputError, OutputExistsError
from rnp_deploy.exporters import export_bundle
from rnp_deploy.network import RuntimePrunedNetwork
from rnp_deploy.plan import Plan, PlanTensor, Step

TOLERANCE = 1e-5
PENALTIES = [None, -1.0, 0.0, 0.05, 0.3, 2.0]
each_network = pytest.mark.parametrize("name", networks.TINY)


def assert_same_runs(bundle, engines, images, given_options):
    """Outputs, options and MACs, as decided at several prices and as given."""
    batch = len(images)
    mixed = np.linspace(-0.5, 1.5, batch).astype(np.float32)
    asked = [{"penalty": penalty} for penalty in (*PENALTIES, mixed)] + [{"options": given_options}]
    with Controller.load(bundle, threads=1) as reference, Controller.load(engines, threads=1) as controller:
        for arguments in asked:
            expected, got = reference.run(images, **arguments), controller.run(images, **arguments)
            assert (got.options == expected.options).all(), arguments
            assert (got.macs == expected.macs).all()
            assert np.abs(got.outputs - expected.outputs).max() <= TOLERANCE * np.abs(expected.outputs).max()
        for i in range(min(batch, 3)):
            alone = controller.run(images[i : i + 1], options=given_options[i : i + 1]).outputs
            assert np.abs(alone - got.outputs[i]).max() <= TOLERANCE * np.abs(got.outputs).max()


@each_network
def test_an_engine_set_computes_what_its_bundle_does(name, exported, engine_set):
    case = exported(name)
    assert_same_runs(case.path, engine_set(name), case.images(7).numpy(), case.options(7).numpy())


@each_network
def test_every_engine_can_be_opened_and_run(name, exported, engine_set):
    """The same option everywhere, each in turn, and all pieces preloaded."""
    case = exported(name)
    images = case.images(2).numpy()
    with (
        Controller.load(case.path, threads=1) as bundle,
        Controller.load(engine_set(name), threads=1, preload="all") as engines,
    ):
        for option in range(1, max(bundle.manifest.option_counts) + 1):
            options = np.minimum(bundle.manifest.option_counts, option)
            expected = bundle.run(images, options=np.tile(options, (2, 1))).outputs
            got = engines.run(images, options=np.tile(options, (2, 1))).outputs
            assert np.abs(got - expected).max() <= TOLERANCE * np.abs(expected).max()


def random_bundle(folder, parts, channels, flatten, seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        backbone = networks.randomised(RandomCnn(parts, channels, flatten))
        images = torch.randn(5, 3, 9, 11)
        network = RuntimePrunedNetwork.from_backbone(backbone, images[:1], min_macs_share=0.0, groups=2)
        networks.undecided(network)
        options = network.random_options(5)
    export_bundle(network, folder, overwrite=True, verify=0)
    return images.numpy(), options.numpy()


@settings(max_examples=3, deadline=None, derandomize=True)
@given(
    st.lists(st.sampled_from(sorted(PARTS)), min_size=1, max_size=3),
    st.sampled_from([8, 16, 24]),
    st.booleans(),
    st.integers(0, 99),
)
def test_random_networks(tmp_path_factory, parts, channels, flatten, seed):
    folder = tmp_path_factory.mktemp("random")
    images, options = random_bundle(folder / "bundle", parts, channels, flatten, seed)
    build_engine_set(open_bundle(folder / "bundle"), folder / "engines")
    assert_same_runs(folder / "bundle", folder / "engines", images, options)


def test_sums_of_a_residual_trunk_are_made_in_place(tmp_path):
    images, options = random_bundle(tmp_path / "bundle", ["residual"] * 3, 16, False, 0)
    engines = build_engine_set(open_bundle(tmp_path / "bundle"), tmp_path / "engines")
    if block_size(tmp_path) > 1:
        assert sum(len(step.in_place) for step in engines.plan.steps) >= 1
    assert_same_runs(tmp_path / "bundle", tmp_path / "engines", images, options)


@pytest.mark.parametrize(
    ("reads_last", "x", "kept"),
    [
        (["y"], {}, {"y": "x"}),
        (["x", "y"], {}, {}),
        (["y"], {"shape": (8, 2, 2)}, {}),
        (["y"], {"follows": 0, "sizes": (2, 4)}, {}),
    ],
    ids=["kept", "needed later", "another size", "of the size of an option"],
)
def test_what_may_be_done_in_place(reads_last, x, kept):
    def step(inputs, output, in_place):
        names = {name: name for name in inputs}
        return Step(option_decisions=(), inputs=names, outputs={output: output}, pieces=(), in_place=in_place)

    tensors = [PlanTensor(name=name, shape=(4, 2, 2)) for name in ("images", "y", "z")]
    tensors.append(PlanTensor(**({"name": "x", "shape": (4, 2, 2)} | x)))
    steps = (step(["images"], "x", {}), step(["x"], "y", {"y": "x"}), step(reads_last, "z", {}))
    plan = ort_build._kept_in_place(Plan(tensors=tuple(tensors), steps=steps))
    assert [dict(step.in_place) for step in plan.steps] == [{}, kept, {}]


def bytes_of(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


BUILD = """
import sys
from rnp_deploy.bundle import open_bundle
from rnp_deploy.engines.ort_build import build_engine_set
for bundle, engines in zip(sys.argv[1::2], sys.argv[2::2]):
    build_engine_set(open_bundle(bundle), engines)
"""


def test_a_second_build_gives_the_same_bytes(exported, engine_set, tmp_path):
    """In a process of its own, where sets have another order."""
    names = ["chain", "basic residual", "separable"]
    ends = [str(path) for name in names for path in (exported(name).path, tmp_path / name)]
    subprocess.run([sys.executable, "-c", BUILD, *ends], check=True, timeout=120)
    for name in names:
        first, second = bytes_of(engine_set(name)), bytes_of(tmp_path / name)
        assert set(first) == set(second)
        assert [file for file in first if first[file] != second[file]] == []


def test_what_is_written_down(exported, engine_set, tmp_path):
    engines = read_engines(engine_set("chain"))
    bundle = open_bundle(exported("chain").path)
    assert engines.decisions == engines.decisions_equal > 0
    assert 0 <= engines.max_deviation <= TOLERANCE
    assert (engine_set("chain") / "manifest.json").read_bytes() == (
        bundle.path / "manifest.json"
    ).read_bytes()
    told = []
    unverified = build_engine_set(
        bundle, tmp_path / "engines", verify=0, progress=lambda *report: told.append(report)
    )
    assert unverified.max_deviation is None
    assert read_engines(tmp_path / "engines") == unverified
    branches = bundle.manifest.branch_count()
    assert told[0] == ("optimising branches", 1, branches)
    assert ("optimising branches", branches, branches) in told


def test_weights_of_all_branches_of_a_stage_are_stored_once(engine_set):
    """Fewer output channels are the beginning of more; fewer input channels are not."""
    path = engine_set("chain")
    plan = read_engines(path).plan
    pieces = [piece for step in plan.steps for piece in step.pieces]
    assert (path / "weights.bin").stat().st_size < 0.6 * sum(piece.weight_bytes for piece in pieces)


def graph_of(**arrays):
    weights = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    return onnx.helper.make_model(onnx.helper.make_graph([], "g", [], [], weights))


def places(model):
    return {t.name: {e.key: e.value for e in t.external_data} for t in model.graph.initializer}


def test_arrays_are_stored_by_their_beginning(exported, tmp_path):
    random = np.random.default_rng(0)
    wide, other = random.standard_normal((2, 32, 64)).astype(np.float32)
    arrays = BundleArrays(open_bundle(exported("chain").path))
    with (tmp_path / "weights.bin").open("wb") as stream:
        weights = EngineWeights(stream, arrays)
        like = wide.copy()
        like[20:] += 1  # begins as wide does, and goes on in another way
        first = graph_of(wide=wide, small=wide[:1])
        second = graph_of(half=wide[:16], same=wide.copy(), other=other, like=like)
        weights.store(first)
        weights.store(second)
        weights.end_stage()
        third = graph_of(again=other.copy(), half=wide[:8])
        weights.store(third)
    stored = (tmp_path / "weights.bin").read_bytes()
    where = places(first) | places(second)
    assert where["small"] == {}
    assert where["half"]["offset"] == where["same"]["offset"] == where["wide"]["offset"] == "0"
    assert places(third)["again"]["offset"] == where["other"]["offset"]
    assert len(stored) == 3 * wide.nbytes + wide[:8].nbytes
    for model, expected in ((second, {"half": wide[:16], "other": other, "like": like}),
                            (third, {"again": other, "half": wide[:8]})):  # fmt: skip
        for name, array in expected.items():
            place = places(model)[name]
            start = int(place["offset"])
            assert start % 64 == 0
            assert stored[start : start + int(place["length"])] == array.tobytes()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("earlier", [False, True])
def test_a_build_that_fails_leaves_nothing(error, earlier, exported, tmp_path, monkeypatch):
    bundle, target = open_bundle(exported("in place").path), tmp_path / "engines"
    if earlier:
        build_engine_set(bundle, target, verify=0)
    before, calls = bytes_of(tmp_path), []
    real = ort_build.with_blocked_edges

    def fails_later(*arguments):
        calls.append(1)
        if len(calls) == 4:
            raise error("in the middle")
        return real(*arguments)

    monkeypatch.setattr(ort_build, "with_blocked_edges", fails_later)
    with pytest.raises(error, match="in the middle"):
        build_engine_set(bundle, target, overwrite=True)
    assert bytes_of(tmp_path) == before
    assert list(tmp_path.iterdir()) == ([target] if earlier else [])


def test_overwriting(exported, tmp_path):
    bundle, target = open_bundle(exported("in place").path), tmp_path / "engines"
    with pytest.raises(InputError, match="does not exist"):
        build_engine_set(bundle, tmp_path / "nowhere" / "engines")
    build_engine_set(bundle, target, verify=0)
    with pytest.raises(OutputExistsError, match="overwrite"):
        build_engine_set(bundle, target)
    (target / "old").write_text("")
    build_engine_set(bundle, target, overwrite=True, verify=0)
    assert not (target / "old").exists()
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "notes.txt").write_text("mine")
    for foreign in (mine, exported("in place").path):
        before = bytes_of(foreign)
        with pytest.raises(OutputExistsError, match=r"engines\.json; it is not ours"):
            build_engine_set(bundle, foreign, overwrite=True)
        assert bytes_of(foreign) == before


def wrong_weight(monkeypatch, factor=1.01):
    real = EngineWeights.store

    def store(self, model):
        stored = real(self, model)
        for tensor in model.graph.initializer:
            if tensor.data_location != onnx.TensorProto.EXTERNAL and len(tensor.dims) == 4:
                tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * factor, tensor.name))
        return stored

    monkeypatch.setattr(EngineWeights, "store", store)


def weight_of_nan(monkeypatch):
    wrong_weight(monkeypatch, np.nan)


def wrong_offset(monkeypatch):
    real = EngineWeights._add

    def add(self, data):
        return max(real(self, data) - 64, 0)

    monkeypatch.setattr(EngineWeights, "_add", add)


def gates_in_torchs_order(monkeypatch):
    monkeypatch.setattr(agent_fusion, "_zrn", lambda weights: weights)


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (wrong_offset, "outputs differ"),
        (wrong_weight, "outputs differ"),
        (weight_of_nan, "outputs differ"),
        (gates_in_torchs_order, "states of the agent differ"),
    ],
)
def test_a_broken_build_is_found(break_it, words, exported, tmp_path, monkeypatch):
    bundle = open_bundle(exported("basic residual").path)
    break_it(monkeypatch)
    with pytest.raises(EngineError, match=words):
        build_engine_set(bundle, tmp_path / "engines")
    assert list(tmp_path.iterdir()) == []
    build_engine_set(bundle, tmp_path / "engines", verify=0)  # nothing else found it
    assert open_engine_set(tmp_path / "engines").engines.max_deviation is None


def test_agents_that_differ_in_options_and_an_agent_of_one_price(tmp_path):
    """Decisions of 2, 3 and 4 options; a fixed agent sees no penalty."""
    with torch.random.fork_rng():
        torch.manual_seed(4)
        backbone, shape = networks.make("chain")
        network = RuntimePrunedNetwork.from_backbone(
            backbone, torch.zeros(1, *shape), overrides={"features.2": 2, "features.5": 3}, penalty_range=None
        )
        networks.undecided(network)
        options = network.random_options(4).numpy()
        images = torch.randn(4, *shape).numpy()
    export_bundle(network, tmp_path / "bundle")
    assert len({*network.option_counts}) > 1
    engines = build_engine_set(open_bundle(tmp_path / "bundle"), tmp_path / "engines")
    assert "agent/bias.0" not in {tensor.name for tensor in engines.plan.tensors}
    assert_same_runs(tmp_path / "bundle", tmp_path / "engines", images, options)


def test_engines_json_is_readable(engine_set):
    raw = json.loads((engine_set("chain") / "engines.json").read_text())
    assert raw["backend"] == "onnxruntime"
    assert set(raw["fingerprint"]) == {"onnxruntime", "machine", "processor", "features"}
