"""The folder that others are held against."""

import pytest
from support.images import sample


@pytest.fixture(scope="session")
def ten(run, tmp_path_factory):
    """Ten images in batches of 4, η 1, ten steps: the folder that others are held against."""
    exp = tmp_path_factory.mktemp("ten")
    process = sample(run, exp, "ten", "--num_samples", 10, "--timesteps", 10, "--eta", 1, fresh=True)
    return exp, exp / "image_samples" / "ten", process
