"""Controllers loaded from a bundle: arguments, preloading, and a budget of memory."""

from __future__ import annotations

import pytest

from bundles import bundle_copy, edit_manifest
from rnp_deploy import Controller
from rnp_deploy.errors import BundleError, EngineError, InputError


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        ({"backend": "caffe"}, InputError, ["'caffe'", "'onnxruntime'"]),
        ({"backend": "tensorrt"}, EngineError, ["is a bundle", "rnp-build", "--backend tensorrt"]),
        ({"device": "tpu"}, InputError, ["'tpu'", "'cuda'", "'cpu'"]),
        ({"preload": "some"}, InputError, ["'some'", "'none'", "'all'"]),
        ({"preload": None}, InputError, ["preload is None", "'common'"]),
        ({"preload": "common"}, InputError, ["needs a calibration", "'none' or 'all'"]),
        ({"memory_budget_bytes": 0}, InputError, ["memory_budget_bytes is 0", "a number of bytes"]),
        ({"memory_budget_bytes": -1}, InputError, ["memory_budget_bytes is -1"]),
        ({"memory_budget_bytes": 1e9}, InputError, ["memory_budget_bytes is 1000000000.0"]),
        ({"memory_budget_bytes": "1G"}, InputError, ["memory_budget_bytes is '1G'"]),
        ({"memory_budget_bytes": True}, InputError, ["memory_budget_bytes is True"]),
        ({"threads": 0}, InputError, ["threads is 0"]),
        ({"threads": -2}, InputError, ["threads is -2"]),
        ({"threads": 1.5}, InputError, ["threads is 1.5"]),
        ({"threads": True}, InputError, ["threads is True"]),
    ],
    ids=str,
)
def test_bad_arguments_of_load(exported, arguments, kind, words):
    with pytest.raises(kind) as caught:
        Controller.load(exported("chain").path, **arguments)
    assert all(word in str(caught.value) for word in words)


def test_loading_what_is_not_there(tmp_path):
    with pytest.raises(BundleError, match="nowhere does not exist"):
        Controller.load(tmp_path / "nowhere")


@pytest.fixture
def calibrated(exported, tmp_path):
    """A bundle whose calibration images all took the last option, but for one in 150."""
    bundle = bundle_copy(exported("chain").path, tmp_path / "calibrated")

    def calibrate(raw):
        counts = [[0] * (len(d["widths"]) - 1) + [149] for d in raw["decisions"]]
        counts[0][0] = 1
        point = {
            "penalty": raw["agent"]["penalty"],
            "accuracy": 0.9,
            "macs_share": 0.7,
            "option_counts": counts,
        }
        shares = {"backbone_accuracy": 0.9, "full_accuracy": 0.9}
        raw["calibration"] = {"data": "any:test", "samples": 150, **shares, "points": [point]}

    edit_manifest(bundle, calibrate)
    return bundle


def full_path(manifest):
    """Weights of the branches with the last option everywhere."""
    last = manifest.uniform_options(manifest.groups)
    return [manifest.branch(s, last).weight_bytes for s in range(len(manifest.stages))]


def test_common_opens_the_path_of_the_calibration_and_the_agent(calibrated):
    with Controller.load(calibrated, preload="common", threads=1) as controller:
        memory, manifest = controller.memory(), controller.manifest
        assert memory.engines == len(manifest.stages) + len(manifest.decisions)
        assert memory.weight_bytes == sum(full_path(manifest))
        assert memory.engines_in_all == manifest.branch_count() + len(manifest.decisions)
        assert (memory.evictions, memory.budget_bytes) == (0, None)


@pytest.mark.parametrize("preload", ["none", "all"])
def test_none_and_all(exported, preload):
    with Controller.load(exported("chain").path, preload=preload, threads=1) as controller:
        memory = controller.memory()
        assert memory.engines == (memory.engines_in_all if preload == "all" else 0)


@pytest.mark.parametrize("preload", ["common", "all"])
def test_preloading_stops_at_the_budget_and_evicts_nothing(calibrated, preload):
    with Controller.load(calibrated, threads=1) as controller:
        budget = sum(full_path(controller.manifest)) - 1
    with Controller.load(calibrated, preload=preload, memory_budget_bytes=budget, threads=1) as controller:
        memory = controller.memory()
        assert 0 < memory.weight_bytes <= memory.budget_bytes == budget
        assert memory.evictions == 0


def test_results_do_not_depend_on_the_budget_and_it_is_kept(exported):
    case = exported("chain")
    images, options = case.images(6).numpy(), case.options(6).numpy()
    with Controller.load(case.path, threads=1) as controller:
        expected, held = controller.run(images, options=options), controller.memory().weight_bytes
    with Controller.load(case.path, memory_budget_bytes=held // 2, threads=1) as controller:
        for _ in range(3):
            assert controller.run(images, options=options).outputs.tolist() == expected.outputs.tolist()
        memory = controller.memory()
    assert memory.weight_bytes <= held // 2
    assert memory.evictions > 0
