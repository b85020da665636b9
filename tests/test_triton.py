"""A repository of rnp-triton, served by a real Triton over HTTP."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pytest

from bundles import flip
from rnp_deploy import Controller
from rnp_deploy.exporters import TritonSettings, write_triton_model
from triton_bundles import described_bundle
from triton_server import TritonServer, triton_server

IMAGES = 50
SETTINGS = TritonSettings(max_delay_ms=20.0, threads=1)


@dataclass(frozen=True)
class Served:
    """A server of the models "bundle", "engines" and "damaged", and a controller of the bundle."""

    server: TritonServer
    controller: Controller
    images: np.ndarray

    def ask_all(self, model: str, requests: list[dict[str, np.ndarray]]):
        """The answers to requests that are sent at once, as many as there are images in a batch."""
        with ThreadPoolExecutor(8) as pool:
            return list(pool.map(lambda inputs: self.server.infer(model, **inputs), requests))


@pytest.fixture(scope="module")
def served(exported: Callable, engine_set: Callable, tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("triton")
    repository, work = folder / "models", folder / "work"
    repository.mkdir()
    work.mkdir()
    bundle = described_bundle(exported("chain").path, folder / "bundle")
    write_triton_model(bundle, repository / "bundle", settings=SETTINGS)
    write_triton_model(engine_set("chain"), repository / "engines", settings=SETTINGS)
    damaged = write_triton_model(bundle, repository / "damaged", settings=SETTINGS).path
    flip("1/bundle/weights.bin")(damaged)
    with triton_server(repository, work) as server, Controller.load(bundle, threads=1) as controller:
        yield Served(server, controller, exported("chain").images(IMAGES, seed=5).numpy())


def check(answer, result, rows):
    status, outputs = answer
    assert status == 200, outputs
    np.testing.assert_allclose(outputs["outputs"], result.outputs[rows], atol=1e-5)
    assert outputs["options"].tolist() == result.options[rows].tolist()
    assert outputs["macs"].tolist() == result.macs[rows, None].tolist()


@pytest.mark.parametrize("model", ["bundle", "engines"])
def test_requests_at_once_are_answered_as_the_controller_does_in_fewer_runs(model, served):
    images_before, runs_before = served.server.counts(model)
    prices = np.linspace(-0.3, 0.3, IMAGES, dtype=np.float32)
    requests = [
        {"images": served.images[i : i + 1], "penalty": prices[i : i + 1, None]} for i in range(IMAGES)
    ]
    answers = served.ask_all(model, requests)
    expected = served.controller.run(served.images, penalty=prices)
    assert len({tuple(row) for row in expected.options.tolist()}) > 2
    for index, answer in enumerate(answers):
        check(answer, expected, slice(index, index + 1))
    images, runs = served.server.counts(model)
    assert images - images_before == IMAGES
    assert runs - runs_before < IMAGES


def test_penalties_of_every_request_hold_within_a_batch(served):
    prices = np.linspace(-0.5, 1.0, 24, dtype=np.float32)
    images = served.images[:24]
    cuts = [slice(i, i + 3) for i in range(0, 24, 3)]
    requests = [{"images": images[cut]} for cut in cuts]
    for request, cut in zip(requests[1:], cuts[1:], strict=True):
        request["penalty"] = prices[cut, None]
    prices[:3] = served.controller.manifest.agent.penalty
    answers = served.ask_all("bundle", requests)
    expected = served.controller.run(images, penalty=prices)
    for answer, cut in zip(answers, cuts, strict=True):
        check(answer, expected, cut)


def test_a_share_of_the_macs_is_the_controllers(served):
    images = served.images[:4]
    answer = served.server.infer("bundle", images=images, target_macs=np.full((4, 1), 0.4, np.float32))
    check(answer, served.controller.run(images, target_macs=float(np.float32(0.4))), slice(0, 4))


def test_a_bad_request_is_told_why_and_its_neighbours_are_answered(served):
    images = served.images[:8]
    bad = images[:1].copy()
    bad[0, 0, 0, 0] = np.nan
    requests = [{"images": bad if i == 3 else images[i : i + 1]} for i in range(8)]
    answers = served.ask_all("bundle", requests)
    expected = served.controller.run(images)
    for index in (i for i in range(8) if i != 3):
        check(answers[index], expected, slice(index, index + 1))
    assert answers[3] == (400, "image 0 holds NaN or infinity; check the preprocessing")


REFUSED = {
    "two prices": (
        lambda images: {"images": images, "penalty": np.zeros((1, 1)), "target_macs": np.ones((1, 1))},
        "target_macs is given beside a penalty",
    ),
    "out of reach": (
        lambda images: {"images": images, "target_macs": np.full((1, 1), 0.1)},
        "the cheapest calibrated point takes 0.2",
    ),
    "shape": (lambda images: {"images": images[..., :-1]}, "unexpected shape for input 'images'"),
    "too many": (lambda images: {"images": np.repeat(images, 9, axis=0)}, "must be <= 8"),
    "unknown": (lambda images: {"images": images, "price": np.ones((1, 1))}, "unexpected inference input"),
}


@pytest.mark.parametrize(("inputs", "words"), REFUSED.values(), ids=REFUSED)
def test_what_does_not_fit_is_refused(inputs, words, served):
    given = {name: array.astype(np.float32) for name, array in inputs(served.images[:1]).items()}
    status, error = served.server.infer("bundle", **given)
    assert status == 400
    assert words in error
    check(
        served.server.infer("bundle", images=served.images[:1]),
        served.controller.run(served.images[:1]),
        slice(0, 1),
    )


def test_the_classification_extension_names_the_classes(served):
    status, outputs = served.server.infer(
        "bundle", [{"name": "outputs", "parameters": {"classification": 1}}], images=served.images[:3]
    )
    assert status == 200, outputs
    assert list(outputs) == ["outputs"]
    classes = served.controller.manifest.classes
    for text, row in zip(
        outputs["outputs"].flat, served.controller.run(served.images[:3]).outputs, strict=True
    ):
        best = int(row.argmax())
        assert text.split(":")[1:] == [str(best), " ".join(classes[best].split())]


def test_a_damaged_bundle_is_not_served_and_the_others_are(served):
    assert served.server.get("models/damaged/ready")[0] == 400
    assert "weights.bin: its sha256 is not the one listed" in served.server.reason("damaged")
    status, _ = served.server.infer("damaged", images=served.images[:1])
    assert status == 404
    assert served.server.get("models/bundle/ready")[0] == 200


def test_a_repository_that_was_moved_is_served(served, tmp_path):
    """Nothing in a model tells where it was written; this server is a second one beside the first."""
    (tmp_path / "work").mkdir()
    shutil.copytree(served.server.log.parents[1] / "models" / "engines", tmp_path / "models" / "engines")
    with triton_server(tmp_path / "models", tmp_path / "work") as server:
        check(
            server.infer("engines", images=served.images[:2]),
            served.controller.run(served.images[:2]),
            slice(0, 2),
        )
