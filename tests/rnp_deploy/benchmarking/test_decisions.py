"""Options and paths are counted, and how evenly they are spread."""

from __future__ import annotations

import numpy as np
import pytest

from bundles import small_manifest
from rnp_deploy.benchmarking.decisions import decision_report

OPTIONS = np.array([[2, 2], [1, 2], [2, 2], [2, 1], [1, 2], [2, 2], [2, 2], [2, 1]])
MANIFEST = small_manifest()
MACS = np.array([MANIFEST.path_macs(path) for path in OPTIONS.tolist()])


def test_counts_and_entropies():
    report = decision_report(OPTIONS, MACS, MANIFEST, {})
    assert report.counts == ((2, 6), (2, 6))
    assert report.entropy_bits == pytest.approx([0.8112781, 0.8112781])
    assert report.distinct_paths == 3
    assert report.path_entropy_bits == pytest.approx(1.5)


def test_paths_come_by_how_often_they_were_taken_the_narrower_first():
    paths = decision_report(OPTIONS, MACS, MANIFEST, {(2, 2): 7.5, (2, 1): 6.5, (1, 1): 1.0}).paths
    assert [(path.options, path.images, path.share, path.p50_ms) for path in paths] == [
        ((2, 2), 4, 0.5, 7.5),
        ((1, 2), 2, 0.25, None),
        ((2, 1), 2, 0.25, 6.5),
    ]
    assert [path.macs_share for path in paths] == [1222 / 1222, 1112 / 1222, 1221 / 1222]


def test_each_path_has_the_accuracy_of_its_images():
    correct = np.array([True, False, True, True, True, True, False, False])
    paths = decision_report(OPTIONS, MACS, MANIFEST, {}, correct).paths
    assert [(path.options, path.accuracy) for path in paths] == [((2, 2), 0.75), ((1, 2), 0.5), ((2, 1), 0.5)]
    assert decision_report(OPTIONS, MACS, MANIFEST, {}).paths[0].accuracy is None


def test_the_most_frequent_alone_are_listed():
    report = decision_report(OPTIONS, MACS, MANIFEST, {}, most=2)
    assert [path.options for path in report.paths] == [(2, 2), (1, 2)]
    assert report.distinct_paths == 3


@pytest.mark.parametrize(("row", "counts"), [(0, (0, 1)), (3, (1, 0))], ids=["narrow", "wide"])
def test_an_option_that_none_took_counts_zero(row, counts):
    report = decision_report(OPTIONS[row : row + 1], MACS[row : row + 1], MANIFEST, {})
    assert (report.counts[1], report.entropy_bits, report.path_entropy_bits) == (counts, (0.0, 0.0), 0.0)
