"""Each image has its own noise, whatever the batch and the process; timesteps come in pairs."""

import numpy as np
import pytest
import torch

from functions import noise
from functions.noise import STEPS_AHEAD, BatchDraws, initial_noise, slerp, step_noise
from functions.objectives import antithetic_timesteps
from functions.runtime import threads


def test_x_T_is_the_contracts_whatever_the_batch():
    whole = initial_noise(7, range(6), (3, 4, 4))
    assert torch.equal(initial_noise(7, [4, 2], (3, 4, 4)), whole[[4, 2]])
    expected = np.random.default_rng([7, 5]).standard_normal((3, 4, 4), dtype=np.float32)
    assert np.array_equal(whole[5].numpy(), expected)


def test_slerp_keeps_the_norm_of_a_circle():
    z1, z2 = torch.tensor([3.0, 0.0]), torch.tensor([0.0, 3.0])
    torch.testing.assert_close(
        slerp(z1, z2, 1 / 3), 3 * torch.tensor([np.sqrt(3) / 2, 0.5], dtype=torch.float32)
    )


@pytest.mark.parametrize("beside", [True, False])
@pytest.mark.parametrize("steps", [1, STEPS_AHEAD, 2 * STEPS_AHEAD + 3])
def test_noise_drawn_ahead_is_each_images_own_stream(steps, beside, monkeypatch):
    monkeypatch.setattr(noise, "cores_are_idle", lambda device: beside)
    monkeypatch.setattr(threads, "cores_are_idle", lambda device: beside)
    shape, indices = (3, 4, 5), [7, 0, 10**6]
    randn_like = step_noise(2**32 - 1, indices, shape, steps, torch.device("cpu"))
    x = torch.zeros(3, *shape)
    drawn = torch.stack([randn_like(x).clone() for _ in range(steps)])
    for row, i in enumerate(indices):
        generator = np.random.default_rng([2**32 - 1, i, 1])
        for k in range(steps):
            np.testing.assert_array_equal(drawn[k, row], generator.standard_normal(shape, dtype=np.float32))


def test_a_ranks_draws_are_its_rows_of_the_whole_batchs():
    whole, part = (
        BatchDraws(torch.Generator().manual_seed(5), 6, rows) for rows in (slice(0, 6), slice(2, 4))
    )
    for draw in (lambda d: d.normal(1, 2, 2), lambda d: d.uniform(3), lambda d: d.t(100)):
        assert torch.equal(draw(whole)[2:4], draw(part))


def test_timesteps_come_in_pairs_that_cover_the_range_evenly():
    t = antithetic_timesteps(7, 1000, torch.Generator().manual_seed(0))
    assert t.shape == (7,) and t.dtype == torch.int64
    assert torch.equal(t[4:], 999 - t[:3])
    many = antithetic_timesteps(200_000, 10, torch.Generator().manual_seed(0))
    assert torch.bincount(many, minlength=10).sub(20_000).abs().max() < 600
