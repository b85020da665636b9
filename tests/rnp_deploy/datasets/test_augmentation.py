"""Draws that depend on a sample's seed alone, and what is done with them."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from rnp_deploy.datasets.augmentation import affine, crop_and_flip, random_resized_crop, uniform

SEEDS = np.arange(64, dtype=np.uint64)
IMAGES = np.random.default_rng(0).random((64, 3, 16, 12), np.float32)


def crop_boxes(images, seeds):
    """Only the draws: the sizes are the first pixels'."""
    sizes = (1 + 500 * images[:, 0, 0, :2]).astype(np.int64)
    boxes, flips = random_resized_crop(seeds, sizes)
    return np.concatenate([boxes, flips[:, None]], axis=1)


@pytest.mark.parametrize("augment", [affine, crop_and_flip, crop_boxes])
def test_a_sample_depends_on_its_seed_and_nothing_else(augment) -> None:
    together = augment(IMAGES, SEEDS)
    for part in ([5], [63, 5, 0], list(range(17))):
        assert np.array_equal(augment(IMAGES[part], SEEDS[part]), together[part])
    same, one = np.repeat(IMAGES[:1], 64, axis=0), augment(IMAGES[:1], SEEDS[:1])
    assert all(np.array_equal(row, one[0]) for row in augment(same, np.zeros(64, np.uint64)))
    others = augment(same, SEEDS)
    assert len(np.unique(others.reshape(64, -1), axis=0)) > 45  # crop_and_flip has 162 results


def test_what_comes_out_is_float32_and_shaped_as_what_went_in() -> None:
    for augment in (affine, crop_and_flip):
        result = augment(IMAGES, SEEDS)
        assert (result.dtype, result.shape) == (np.float32, IMAGES.shape)
        assert (IMAGES.min() <= result.min()) and (result.max() <= IMAGES.max())


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=20), st.integers(1, 30))
def test_draws_of_any_seed_are_its_own(seeds, count) -> None:
    draws = uniform(np.array(seeds, np.uint64), count)
    assert (draws.shape, draws.dtype) == ((len(seeds), count), np.float64)
    assert ((draws >= 0) & (draws < 1)).all()
    for i, seed in enumerate(seeds):
        assert np.array_equal(draws[i], uniform(np.array([seed], np.uint64), count)[0])
        assert np.array_equal(draws[i, :1], uniform(np.array([seed], np.uint64), 1)[0])


@pytest.mark.parametrize("step", [1, 2**32, 0x9E3779B97F4A7C15], ids=["next", "high bits", "golden"])
def test_draws_are_even_and_independent_however_the_seeds_are_related(step) -> None:
    seeds = np.arange(100_000, dtype=np.uint64) * np.uint64(step)
    draws = uniform(seeds, 4)
    assert np.abs(draws.mean(axis=0) - 1 / 2).max() < 0.005
    assert np.abs(draws.var(axis=0) - 1 / 12).max() < 0.002
    beside = np.concatenate([draws[:-1], draws[1:]], axis=1)
    assert np.abs(np.corrcoef(beside.T) - np.eye(8)).max() < 0.015
    assert np.bincount((draws * 10).astype(int).ravel(), minlength=10).min() > 39_000
    assert len(np.unique(draws)) == draws.size


def test_affine_is_torchs_with_the_border_continued() -> None:
    theta = np.eye(2, 3) + 0.3 * (2 * uniform(SEEDS, 6).reshape(-1, 2, 3) - 1)
    grid = F.affine_grid(torch.from_numpy(theta.astype(np.float32)), list(IMAGES.shape), align_corners=False)
    expected = F.grid_sample(torch.from_numpy(IMAGES), grid, padding_mode="border", align_corners=False)
    np.testing.assert_allclose(affine(IMAGES, SEEDS, 0.3), expected.numpy(), atol=1e-4)
    np.testing.assert_allclose(affine(IMAGES, SEEDS, 0.0), IMAGES, atol=1e-4)


def test_crops_are_shifts_of_the_reflected_image_half_of_them_mirrored() -> None:
    image = np.arange(30, dtype=np.float32).reshape(1, 1, 5, 6)
    padded = np.pad(image[0, 0], 2, mode="reflect")
    shifts = {(i, j): padded[i : i + 5, j : j + 6] for i in range(5) for j in range(5)}
    possible = {
        (at, flip): x[:, :: -1 if flip else 1].tobytes() for at, x in shifts.items() for flip in (0, 1)
    }
    results = crop_and_flip(np.repeat(image, 4000, axis=0), np.arange(4000, dtype=np.uint64), padding=2)
    seen = [result[0].tobytes() for result in results]
    assert set(seen) == set(possible.values())
    mirrored = {bytes_ for (_, flip), bytes_ in possible.items() if flip}
    assert 0.46 < sum(x in mirrored for x in seen) / 4000 < 0.54
    assert np.array_equal(np.sort(crop_and_flip(IMAGES, SEEDS, 0), axis=3), np.sort(IMAGES, axis=3))


def test_crop_boxes_lie_in_the_image_and_have_the_areas_and_ratios_asked_for() -> None:
    seeds = np.arange(5000, dtype=np.uint64)
    sizes = np.stack([100 + seeds % 300, 100 + seeds // 17 % 300], axis=1).astype(np.int64)
    boxes, flips = random_resized_crop(seeds, sizes)
    left, upper, right, lower = boxes.T
    assert ((left >= 0) & (upper >= 0) & (right <= sizes[:, 1]) & (lower <= sizes[:, 0])).all()
    height, width = lower - upper, right - left
    ratio, area = width / height, height * width / sizes.prod(axis=1)
    assert 0.72 < ratio.min() < 0.77 < 1.3 < ratio.max() < 1.38
    assert 0.075 < area.min() < 0.1 < 0.85 < area.max() <= 1
    assert abs(np.log(ratio).mean()) < 0.02
    assert 0.47 < flips.mean() < 0.53


@pytest.mark.parametrize(
    ("height", "width", "box"),
    [(10, 1000, [493, 0, 506, 10]), (1000, 10, [0, 493, 10, 506]), (1, 1, [0, 0, 1, 1])],
)
def test_where_no_draw_fits_the_middle_is_taken(height, width, box) -> None:
    sizes = np.tile([[height, width]], (20, 1))
    boxes, _ = random_resized_crop(SEEDS[:20], sizes, scale=(0.9, 1.0))
    assert (boxes == box).all()
