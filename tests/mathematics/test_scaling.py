"""Pixels to the network's range and back, dequantized and flipped as upstream does it."""

import pytest
import torch
from support.layouts import data_config

from datasets.scaling import from_model_range, random_flip, to_model_range
from functions.noise import BatchDraws


def draws(n=4):
    return BatchDraws(torch.Generator().manual_seed(0), n, slice(0, n))


@pytest.mark.parametrize(
    "changes, tolerance",
    [(dict(), 1e-6), (dict(rescaled=False), 1e-6), (dict(rescaled=False, logit_transform=True), 1e-4),
     (dict(uniform_dequantization=True), 1 / 255), (dict(gaussian_dequantization=True), 0.06)],
)  # fmt: skip
def test_scaling_and_back(changes, tolerance):
    data = data_config("DIGITS", image_size=8, channels=1, **changes)
    images = torch.arange(256, dtype=torch.uint8).reshape(4, 1, 8, 8)
    x = to_model_range(images, data, draws())
    back = from_model_range(x, data)
    assert (back - images / 255).abs().max() <= tolerance
    if not (data.uniform_dequantization or data.gaussian_dequantization):
        expected = {True: lambda y: 2 * y - 1, False: lambda y: y}[data.rescaled]
        if data.logit_transform:
            p = 1e-6 + (1 - 2e-6) * images.double() / 255
            torch.testing.assert_close(x.double(), torch.log(p / (1 - p)), rtol=1e-2, atol=1e-2)
        else:
            torch.testing.assert_close(x, expected(images / 255))


def test_uniform_dequantization_is_ddpms():
    data = data_config("DIGITS", image_size=8, channels=1, uniform_dequantization=True, rescaled=False)
    images = torch.full((2000, 1, 8, 8), 255, dtype=torch.uint8)
    x = to_model_range(images, data, draws(2000))
    assert x.min() >= 255 / 256 and x.max() < 1 and abs(x.mean() - 255.5 / 256) < 1e-4


def test_half_of_the_images_are_flipped_whole():
    images = torch.arange(8).repeat(2000, 1, 8, 1)
    flipped = random_flip(images, draws(2000))
    first = flipped[:, 0, 0, 0]
    assert set(first.tolist()) == {0, 7} and abs((first == 7).float().mean() - 0.5) < 0.05
    assert torch.equal(flipped[first == 7], images[first == 7].flip(-1))
