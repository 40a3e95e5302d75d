"""DIGITS: the 1,797 handwritten 8x8 digits inside scikit-learn (UCI's test set). Works with no network."""

from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from torch import Tensor

from configs import DataConfig
from datasets.images import in_memory

TEST_EVERY = 6  # each sixth image is the test split: 1,498 to train on, 299 to test


def read(data: DataConfig, root: Path, train: bool) -> Tensor:
    """The values 0..16 spread over 0..255. `root` is not used."""
    is_test = np.arange(1797) % TEST_EVERY == TEST_EVERY - 1
    images = load_digits().images[~is_test if train else is_test]
    return in_memory(np.round(images * (255 / 16)).astype(np.uint8), data)
