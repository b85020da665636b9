"""What a profile says, apart from the times, which no test can know."""

from __future__ import annotations

import numpy as np
import pytest

from rnp_deploy import Controller
from rnp_deploy.errors import BundleError, InputError
from rnp_deploy.profiling import percentile, profile_bundle

IMAGES = 7


@pytest.fixture(scope="module")
def images(exported):
    return exported("chain").images(IMAGES).numpy()


@pytest.fixture(scope="module")
def dense_classes(exported, images):
    with Controller.load(exported("chain").path) as controller:
        full = np.full((IMAGES, 3), 4)
        return controller.run(images, options=full).outputs.argmax(axis=1)


@pytest.fixture(scope="module")
def profiled(exported, images, dense_classes):
    """A profile with labels that the dense network gets right but for the first."""
    labels = dense_classes.copy()
    labels[0] = (labels[0] + 1) % 10
    reports = []
    profile = profile_bundle(
        exported("chain").path, images, labels, batch=2, penalty=-0.02, threads=1, duration_s=0.0,
        min_runs=10, progress=lambda *report: reports.append(report),
    )  # fmt: skip
    return profile, reports, labels


@pytest.fixture(scope="module")
def decided(exported, images):
    with Controller.load(exported("chain").path) as controller:
        return controller.run(images, penalty=-0.02)


@pytest.mark.parametrize(("runs", "q", "known"), [
    (100, 99, True), (99, 99, False), (10, 90, True), (9, 90, False),
    (2, 50, True), (1, 50, False), (0, 50, False),
])  # fmt: skip
def test_a_percentile_needs_runs_beyond_it(runs, q, known):
    assert (percentile(np.arange(float(runs)), q) is not None) == known


def test_a_percentile_is_numpys():
    assert percentile(np.arange(101.0), 90) == 90.0


def test_the_contenders_are_dense_static_and_controlled(profiled):
    profile, _, _ = profiled
    assert [timing.name for timing in profile.timings] == [
        "dense network, one graph",
        "static graph, option 3",
        "static graph, option 2",
        "static graph, option 1",
        "controller",
        "controller, its decisions given",
        "controller, option 4 held",
        "controller, option 3 held",
        "controller, option 2 held",
        "controller, option 1 held",
    ]
    assert {timing.runs for timing in profile.timings} == {10}
    assert all(timing.p90_ms is not None and timing.p99_ms is None for timing in profile.timings)


def test_shares_are_macs_over_the_dense_networks(profiled, exported, images):
    profile, _, _ = profiled
    shares = {timing.name: timing.macs_share for timing in profile.timings}
    with Controller.load(exported("chain").path) as controller:
        manifest = controller.manifest
        measured = controller.run(images[:6], penalty=-0.02).macs.mean() / manifest.macs
    for j in (1, 2, 3):
        share = manifest.path_macs([j] * 3) / manifest.macs
        assert shares[f"static graph, option {j}"] == shares[f"controller, option {j} held"] == share
    assert shares["dense network, one graph"] == shares["controller, option 4 held"] == 1.0
    assert shares["controller, its decisions given"] == pytest.approx(measured, abs=1e-9)
    agent = sum(step.macs for step in manifest.agent.steps) / manifest.macs
    assert shares["controller"] == pytest.approx(measured + agent, abs=1e-9)


def test_speed_up_and_efficiency_follow_from_the_medians(profiled):
    profile, _, _ = profiled
    dense, given = profile.timings[0], {timing.name: timing for timing in profile.timings}
    for timing in profile.timings:
        assert timing.p50_ms > 0
        assert timing.speedup == pytest.approx(dense.p50_ms / timing.p50_ms)
        assert timing.efficiency == pytest.approx(timing.speedup * timing.macs_share)
    share = 1 - given["controller, its decisions given"].p50_ms / given["controller"].p50_ms
    assert profile.agent_share == pytest.approx(share)


def test_decisions_are_counted_over_all_images_of_a_last_short_batch_too(profiled, decided):
    profile, _, _ = profiled
    assert profile.images == IMAGES
    assert profile.batch == 2
    expected = tuple(tuple(int((column == j).sum()) for j in (1, 2, 3, 4)) for column in decided.options.T)
    assert profile.option_counts == expected
    assert all(sum(row) == IMAGES for row in profile.option_counts)


def test_accuracies_are_over_the_labels_given(profiled, decided):
    profile, _, labels = profiled
    assert profile.dense_accuracy == pytest.approx((IMAGES - 1) / IMAGES)
    assert profile.accuracy == pytest.approx((decided.outputs.argmax(axis=1) == labels).mean())


def test_progress_rises_to_the_end(profiled):
    _, reports, _ = profiled
    done = [done for _, done, _ in reports]
    assert done == sorted(done)
    assert reports[-1][1:] == (100, 100)


def test_the_environment_is_recorded(profiled):
    profile, _, _ = profiled
    assert profile.environment["threads"] == 1
    assert {"rnp_deploy", "onnxruntime", "processor", "cores"} <= set(profile.environment)


def test_without_labels_there_is_no_accuracy(exported, images):
    profile = profile_bundle(exported("chain").path, images[:1], threads=1, duration_s=0.0, min_runs=1)
    assert (profile.accuracy, profile.dense_accuracy) == (None, None)
    assert all(timing.runs == 1 and timing.p90_ms is None for timing in profile.timings)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"batch": 8}, ["7 images", "batch of 8"]),
        ({"batch": 0}, ["batch of 0"]),
        ({"labels": np.zeros(6, np.int64)}, ["(6,)", "7 images"]),
        ({"labels": np.zeros((7, 1), np.int64)}, ["labels"]),
        ({"penalty": float("nan")}, ["penalty"]),
        ({"threads": 0}, ["threads is 0"]),
        ({"images": np.zeros((0, 3, 16, 16), np.float32)}, ["0 images"]),
        ({"images": np.zeros((2, 3, 16, 17), np.float32)}, ["(1, 3, 16, 17)", "[N, 3, 16, 16]"]),
        ({"images": np.zeros((2, 3, 16, 16))}, ["float64", "float32"]),
        ({"images": np.zeros((), np.float32)}, ["images"]),
    ],
    ids=str,
)
def test_bad_arguments(exported, images, arguments, words):
    arguments = {"images": images, "duration_s": 0.0, "min_runs": 1, **arguments}
    with pytest.raises(InputError) as caught:
        profile_bundle(exported("chain").path, **arguments)
    assert all(word in str(caught.value) for word in words), caught.value


def test_a_missing_bundle(tmp_path, images):
    with pytest.raises(BundleError, match="nowhere does not exist"):
        profile_bundle(tmp_path / "nowhere", images)
