"""Shuffling and distortion."""

import torch

from rnp_deploy.training.minibatches import distort_images, minibatches


def test_an_epoch_of_minibatches_holds_every_image_once() -> None:
    images, labels = torch.arange(12.0).reshape(12, 1, 1, 1).expand(12, 1, 2, 2), torch.arange(12)
    batches = minibatches(images, labels, 5)
    first, second, third = next(batches), next(batches), next(batches)
    for shown, named in (first, second, third):
        torch.testing.assert_close(shown[:, 0, 0, 0], named.float())
    assert len(set(first[1].tolist()) | set(second[1].tolist())) == 10
    assert len(next(minibatches(images, labels, 50))[1]) == 12


def test_distortion_moves_every_image_on_its_own_and_zero_leaves_it() -> None:
    images = torch.rand(1, 1, 16, 16, generator=torch.Generator().manual_seed(0)).expand(4, -1, -1, -1)
    torch.testing.assert_close(distort_images(images, 0.0), images, atol=1e-4, rtol=0)
    distorted = distort_images(images, 0.3)
    assert distorted.shape == images.shape
    assert (distorted[0] - distorted[1]).abs().max() > 0.05
    assert (distorted[0] - images[0]).abs().max() > 0.05
