"""What a run is given: what is refused, in which words, and what is made of the rest."""

from __future__ import annotations

import warnings
from types import SimpleNamespace

import numpy as np
import pytest

from bundles import small_manifest
from rnp_deploy import Controller
from rnp_deploy.errors import InputError
from rnp_deploy.run_inputs import checked_images, checked_options, checked_penalty
from small_network import Network, images_of

SHAPE = (1, 2, 2)


@pytest.fixture
def manifest():
    return small_manifest()


def spoilt(value):
    images = images_of([0, 1, 2])
    images[1, 0, 1, 1] = value
    return images


@pytest.mark.parametrize(
    ("images", "words"),
    [
        ([[[[0.0, 0.0], [0.0, 0.0]]]], ["list", "numpy array", "float32 [N, 1, 2, 2]"]),
        (None, ["NoneType", "numpy array"]),
        (images_of([0]).astype(np.float64), ["float64", "float32 [N, 1, 2, 2]"]),
        (images_of([0]).astype(">f4"), [">f4", "float32 [N, 1, 2, 2]"]),
        (images_of([0]).astype(np.uint8), ["uint8", "float32"]),
        (images_of([0]).astype(object), ["object", "float32"]),
        (images_of([0])[0], ["(1, 2, 2)", "[N, 1, 2, 2]"]),
        (np.zeros((2, 3, 2, 2), np.float32), ["(2, 3, 2, 2)", "[N, 1, 2, 2]"]),
        (np.zeros((2, 1, 2, 3), np.float32), ["(2, 1, 2, 3)", "[N, 1, 2, 2]"]),
        (np.zeros((), np.float32), ["()", "[N, 1, 2, 2]"]),
        (np.zeros((0, 1, 2, 2), np.float32), ["empty", "at least one"]),
        (spoilt(np.nan), ["image 1", "NaN"]),
        (spoilt(np.inf), ["image 1", "infinity"]),
        (spoilt(-np.inf), ["image 1", "infinity"]),
        (np.array([np.inf, -np.inf, 0, 0], np.float32).reshape(1, 1, 2, 2), ["image 0", "infinity"]),
        (np.zeros((1, 1, 2, 2, 1), np.float32), ["(1, 1, 2, 2, 1)", "[N, 1, 2, 2]"]),
    ],
)
def test_bad_images(images, words):
    with pytest.raises(InputError) as caught:
        checked_images(images, SHAPE)
    assert isinstance(caught.value, ValueError)
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([1, 2], ["(2,)", "(2, 2)"]),
        ([[1, 2]], ["(1, 2)", "(2, 2)"]),
        ([[1], [2]], ["(2, 1)", "(2, 2)"]),
        ([[1, 2], [1]], ["options", "(2, 2)"]),
        ([], ["(0,)", "(2, 2)"]),
        (3, ["()", "(2, 2)"]),
        (np.ones((2, 2)), ["float64", "integers"]),
        (np.ones((2, 2), bool), ["bool", "integers"]),
        ([["1", "2"], ["1", "2"]], ["integers"]),
        ([[0, 1], [1, 1]], ["0..1", "1..2"]),
        ([[1, 3], [1, 1]], ["1..3", "1..2"]),
        ([[-1, 1], [1, 1]], ["-1..1", "1..2"]),
        (np.full((2, 2), 2**63 + 1, np.uint64), ["9223372036854775809", "1..2"]),
        ([[1, 10**30], [1, 1]], ["object", "integers"]),
        (np.array([[1, np.nan], [1, 1]]), ["float64", "integers"]),
    ],
    ids=str,
)
def test_bad_options(manifest, options, words):
    with pytest.raises(InputError) as caught:
        checked_options(options, 2, manifest)
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize(
    ("penalty", "words"),
    [
        (float("nan"), ["penalty", "not finite"]),
        (float("inf"), ["penalty", "not finite"]),
        ([0.1, float("-inf")], ["penalty", "not finite"]),
        ("cheap", ["penalty is 'cheap'", "one number, or one per image"]),
        ("0.5", ["penalty is '0.5'", "one number, or one per image"]),
        (1j, ["penalty is 1j", "one number, or one per image"]),
        ({}, ["penalty is {}", "one number, or one per image"]),
        ([0.1, 0.2, 0.3], ["penalty is [0.1, 0.2, 0.3]", "one per image"]),
        ([[0.1], [0.2]], ["penalty is [[0.1], [0.2]]", "one per image"]),
        ([[0.1, 0.2], [0.1]], ["penalty", "one per image"]),
        ([], ["penalty is []", "one per image"]),
        (1e300, ["penalty", "not finite"]),
        (10**30, ["penalty is 1000", "one number, or one per image"]),
        (True, ["penalty is True", "one number, or one per image"]),
    ],
    ids=str,
)
def test_bad_penalty(manifest, penalty, words):
    with warnings.catch_warnings(), pytest.raises(InputError) as caught:
        warnings.simplefilter("error")
        checked_penalty(penalty, 2, manifest)
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize("arguments", [{"images": spoilt(np.nan)}, {"options": [[0, 1]]}, {"penalty": "dear"},
                                       {"policy": "none"}, {"target_macs": 0.5}], ids=str)  # fmt: skip
def test_nothing_is_opened_for_what_is_refused(arguments):
    network = Network()
    with Controller(small_manifest(), network.open) as controller, pytest.raises(InputError):
        controller.run(**{"images": images_of([0]), **arguments})
    assert network.opened == []


def test_images_whose_sum_overflows_are_finite():
    images = np.full((2, 1, 2, 2), np.finfo(np.float32).max)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert checked_images(images, SHAPE) is images


def test_images_are_copied_where_they_do_not_lie_in_a_row():
    images = images_of([0, 1, 2])
    assert checked_images(images, SHAPE) is images
    turned = checked_images(images[::-1], SHAPE)
    assert turned.flags.c_contiguous
    assert np.array_equal(turned, images[::-1])


def test_no_options_are_zeros_and_given_ones_a_copy(manifest):
    assert checked_options(None, 3, manifest).tolist() == [[0, 0]] * 3
    given = np.array([[1, 2]])
    taken = checked_options(given, 1, manifest)
    assert taken.tolist() == [[1, 2]]
    assert not np.shares_memory(taken, given)


def test_options_are_held_against_the_count_of_their_own_decision():
    uneven = SimpleNamespace(decisions=(None, None), option_counts=(1, 2), groups=2)
    assert checked_options([[1, 2]], 1, uneven).tolist() == [[1, 2]]
    with pytest.raises(InputError, match=r"1\.\.2, by decision 1\.\.\(1, 2\)"):
        checked_options([[2, 1]], 1, uneven)


@pytest.mark.parametrize(
    ("penalty", "prices"),
    [(None, [0.25, 0.25]), (2, [2, 2]), ([-1, 0.5], [-1, 0.5]), (np.float16(0.5), [0.5, 0.5]), ([3], [3, 3])],
    ids=str,
)
def test_a_price_for_every_image(manifest, penalty, prices):
    taken = checked_penalty(penalty, 2, manifest)
    assert taken.tolist() == prices
    assert taken.dtype == np.float32
    assert taken.flags.c_contiguous
