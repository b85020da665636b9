"""Each contender is given what it is reported to have been given, and reported by its own runs."""

from __future__ import annotations

import numpy as np
import pytest

from bundles import small_manifest
from rnp_deploy.benchmarking.contenders import contender_reports, entries_of, outputs_of
from rnp_deploy.benchmarking.measures import Energy
from rnp_deploy.benchmarking.timing import Timed

IMAGES = np.arange(7, dtype=np.float32)[:, None, None, None]
DECIDED = np.array([[1, 1], [1, 2], [2, 1], [2, 2], [1, 1], [2, 1], [2, 2]])


class Recorded:
    """A controller that keeps what it was run with."""

    manifest = small_manifest()

    def __init__(self):
        self.runs = []

    def run(self, images, **how):
        self.runs.append((images.ravel().tolist(), how))


def entries(controller=None):
    return {
        entry.name: entry
        for entry in entries_of(
            controller or Recorded(), (), DECIDED, batch=2, penalty=0.0, timed_images=slice(6)
        )
    }


def test_a_batch_is_given_its_own_decisions():
    controller = Recorded()
    run = entries(controller)["controller, its decisions given"].run
    for i in (0, 2, 1):
        run(i, IMAGES[2 * i : 2 * i + 2])
    assert [how["options"].tolist() for _, how in controller.runs] == [
        DECIDED[rows].tolist() for rows in ([0, 1], [4, 5], [2, 3])
    ]


def test_a_penalty_of_zero_is_no_absent_one_and_options_are_held_for_all():
    controller = Recorded()
    for name in ("controller", "controller, option 1 held", "controller, option 2 held"):
        entries(controller)[name].run(0, IMAGES[:3])
    (_, decides), (_, one), (_, two) = controller.runs
    assert decides == {"penalty": 0.0}
    assert [held["options"].tolist() for held in (one, two)] == [[[1, 1]] * 3, [[2, 2]] * 3]


def test_shares_are_of_the_images_that_are_timed():
    manifest = Recorded.manifest
    share = np.mean([manifest.path_macs(path) for path in DECIDED[:6].tolist()]) / manifest.macs
    agent = sum(step.macs for step in manifest.agent.steps) / manifest.macs
    assert entries()["controller, its decisions given"].macs_share == pytest.approx(share)
    assert entries()["controller"].macs_share == pytest.approx(share + agent)


def test_outputs_are_kept_of_what_writes_over_them_and_a_short_batch_is_filled_with_its_first_image():
    made, batches = np.empty((3, 1), np.float32), []

    def run(i, part):
        batches.append((i, part.ravel().tolist()))
        made[:] = 10 * part[:, :, 0, 0]
        return made

    assert outputs_of(run, IMAGES, 3).ravel().tolist() == [0, 10, 20, 30, 40, 50, 60]
    assert batches == [(0, [0, 1, 2]), (1, [3, 4, 5]), (2, [6, 6, 6])]


def test_speed_ups_are_of_means_over_batches_and_the_devices_times_are_reported():
    latencies = {
        "controller": [1.0, 3.0, 1.0, 90.0, 1.0, 3.0],
        "controller, option 2 held": [4.0, 4.0, 40.0, 4.0, 4.0, 4.0],
    }
    batch_of = np.array([0, 1, 0, 1, 0, 1])
    timed = {
        name: Timed(np.array(latencies.get(name, [8.0] * 6)), batch_of, np.arange(6.0), np.full(6, 0.5))
        for name in entries()
    }  # fmt: skip
    energies = dict.fromkeys(timed, Energy(reason="none"))
    accuracies = {"controller": 0.75}
    reports = {
        report.name: report
        for report in contender_reports(list(entries().values()), timed, accuracies, energies, 2)
    }
    controller = reports["controller"]
    assert (controller.speedup, controller.accuracy, controller.latency.device_mean_ms) == (2.0, 0.75, 0.5)
    assert controller.efficiency == pytest.approx(2.0 * controller.macs_share)
    assert controller.images_per_s == pytest.approx(2 * 1e3 / 16.5)
    assert reports["controller, option 1 held"].speedup == 0.5
    assert reports["controller, option 1 held"].accuracy is None
