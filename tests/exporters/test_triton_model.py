"""model.py of a Triton repository, beside a bundle and without Triton: batches, prices, errors."""

from __future__ import annotations

import numpy as np
import pytest

from bundles import flip
from rnp_deploy import Controller
from rnp_deploy.errors import DeviceError
from rnp_deploy.exporters import write_triton_model
from triton_bundles import described_bundle
from triton_stand_in import Refusal, ask, load_model


@pytest.fixture
def bundle(exported, tmp_path):
    return described_bundle(exported("chain").path, tmp_path / "bundle")


@pytest.fixture
def folder(bundle, tmp_path):
    (tmp_path / "models").mkdir()
    return write_triton_model(bundle, tmp_path / "models" / "chain").path


@pytest.fixture
def controller(bundle):
    with Controller.load(bundle) as controller:
        yield controller


@pytest.fixture
def model(folder, monkeypatch):
    model = load_model(folder, {"device": "cpu", "threads": "1"}, monkeypatch)
    yield model
    model.finalize()


@pytest.fixture
def runs(model, monkeypatch):
    """The batches that the model runs."""
    seen, run = [], model._controller.run

    def counted(images, **options):
        seen.append((len(images), options))
        return run(images, **options)

    monkeypatch.setattr(model._controller, "run", counted)
    return seen


@pytest.fixture
def images(exported):
    return exported("chain").images(7).numpy()


def same(answer, result, rows):
    np.testing.assert_allclose(answer["outputs"], result.outputs[rows], atol=1e-6)
    assert answer["options"].tolist() == result.options[rows].tolist()
    assert answer["macs"].tolist() == result.macs[rows, None].tolist()


def test_the_requests_of_a_batch_are_one_run(model, controller, images, runs):
    cuts = [slice(0, 1), slice(1, 4), slice(4, 5), slice(5, 7)]
    answers = model.execute([ask(images=images[cut]) for cut in cuts])
    expected = controller.run(images)
    for answer, cut in zip(answers, cuts, strict=True):
        same(answer, expected, cut)
    assert [count for count, _ in runs] == [7]


def test_every_image_has_its_own_penalty(model, controller, images, runs):
    prices = np.array([-1.0, 0.0, 0.02, 5.0, 0.0], np.float32)
    answers = model.execute(
        [
            ask(images=images[:1], penalty=prices[:1, None]),
            ask(images=images[1:3]),
            ask(images=images[3:5], penalty=prices[3:, None]),
        ]
    )
    own = controller.manifest.agent.penalty
    expected = controller.run(images[:5], penalty=[-1.0, own, own, 5.0, 0.0])
    assert len({tuple(row) for row in expected.options.tolist()}) > 1
    for answer, cut in zip(answers, (slice(0, 1), slice(1, 3), slice(3, 5)), strict=True):
        same(answer, expected, cut)
    assert len(runs) == 1


def test_a_share_of_the_macs_becomes_the_calibrated_penalty(model, controller, images, runs):
    shares = np.array([[0.9], [0.3]], np.float32)
    (answer,) = model.execute([ask(images=images[:2], target_macs=shares)])
    expected = [controller.manifest.calibration.penalty_for(float(share)) for share in shares.flat]
    same(answer, controller.run(images[:2], penalty=expected), slice(0, 2))
    np.testing.assert_allclose(runs[0][1]["penalty"], expected, rtol=1e-6)


def nan(images):
    images = images.copy()
    images[-1, 0, 0, 0] = np.nan
    return images


BAD = {
    "nan": (lambda images: {"images": nan(images)}, "image 1 holds NaN or infinity"),
    "penalty": (
        lambda images: {"images": images, "penalty": np.full((2, 1), np.inf, np.float32)},
        "penalty is not finite",
    ),
    "two penalties for three": (
        lambda images: {"images": images[[0, 1, 1]], "penalty": np.zeros((2, 1), np.float32)},
        "one per image",
    ),
    "both": (
        lambda images: {
            "images": images,
            "penalty": np.zeros((2, 1), np.float32),
            "target_macs": np.ones((2, 1), np.float32),
        },
        "target_macs is given beside a penalty",
    ),
    "share": (
        lambda images: {"images": images, "target_macs": np.array([[0.9], [0.01]], np.float32)},
        "the cheapest calibrated point takes 0.2",
    ),
    "share of nothing": (
        lambda images: {"images": images, "target_macs": np.full((2, 1), np.nan, np.float32)},
        "pass a share above 0",
    ),
    "shape": (lambda images: {"images": images[:, :, :-1]}, "images have shape"),
    "nothing": (lambda images: {}, "the input 'images' is missing"),
    "none": (lambda images: {"images": images[:0]}, "empty batch"),
}


@pytest.mark.parametrize(("inputs", "words"), BAD.values(), ids=BAD)
def test_a_bad_request_gets_its_own_error_and_no_other(inputs, words, model, controller, images):
    good, bad, other = model.execute(
        [ask(images=images[:2]), ask(**inputs(images[2:4])), ask(images=images[4:5])]
    )
    expected = controller.run(images)
    same(good, expected, slice(0, 2))
    same(other, expected, slice(4, 5))
    assert words in bad.error.message
    assert bad.error.code == Refusal.INVALID_ARG
    assert not bad.output_tensors


def test_a_batch_of_bad_requests_alone_runs_nothing(model, images, runs):
    first, second = model.execute([ask(images=nan(images)), ask()])
    assert first.error
    assert second.error
    assert not runs


def test_an_engine_that_fails_is_told_to_all_of_the_batch(model, images, monkeypatch):
    def fail(*_, **__):
        raise DeviceError("the GPU was lost")

    monkeypatch.setattr(model._controller, "run", fail)
    answers = model.execute([ask(images=images[:1]), ask(images=images[1:2]), ask()])
    assert [answer.error.message for answer in answers[:2]] == ["the GPU was lost"] * 2
    assert [answer.error.code for answer in answers] == [Refusal.INTERNAL] * 2 + [Refusal.INVALID_ARG]


def test_a_share_needs_a_calibration(exported, images, tmp_path, monkeypatch):
    (tmp_path / "models").mkdir()
    folder = write_triton_model(exported("chain").path, tmp_path / "models" / "chain").path
    model = load_model(folder, {}, monkeypatch)
    (answer,) = model.execute([ask(images=images[:1], target_macs=np.ones((1, 1), np.float32))])
    assert "target_macs needs a calibration" in answer.error.message
    model.finalize()


def test_the_parameters_reach_the_controller(folder, images, monkeypatch):
    given = {}
    load = Controller.load
    monkeypatch.setattr(
        Controller, "load", lambda path, **options: given.update(options) or load(path, **options)
    )
    parameters = {"backend": "onnxruntime", "device": "cpu", "threads": "1", "preload": "all"}
    model = load_model(folder, parameters | {"memory_budget_bytes": "123", "policy": "round-up"}, monkeypatch)
    assert given == parameters | {"threads": 1, "memory_budget_bytes": 123}
    policies = []
    run = model._controller.run
    monkeypatch.setattr(
        model._controller,
        "run",
        lambda *a, **options: policies.append(options["policy"]) or run(*a, **options),
    )
    model.execute([ask(images=images)])
    assert policies == ["round-up"]
    model.finalize()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (flip("1/bundle/weights.bin"), "IntegrityError: .*weights.bin: its sha256 is not the one listed"),
        (lambda folder: (folder / "1/bundle/manifest.json").unlink(), "BundleError: .*rnp-export writes one"),
    ],
)
def test_a_bad_bundle_is_not_loaded(damage, words, folder, monkeypatch):
    damage(folder)
    with pytest.raises(Exception, match=words) as caught:
        load_model(folder, {}, monkeypatch)
    assert type(caught.value).__name__ == "TritonModelException"


def test_an_ended_model_has_closed_its_controller(folder, images, monkeypatch):
    model = load_model(folder, {}, monkeypatch)
    model.finalize()
    (answer,) = model.execute([ask(images=images)])
    assert "the controller is closed" in answer.error.message
