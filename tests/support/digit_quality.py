"""How good are sampled digits? Judged by nearest neighbours among the real ones, in pixels on [0, 1]."""

from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.neighbors import NearestNeighbors


def quality(folder: Path) -> tuple[float, int]:
    """A ratio of squared distances, and how many of the ten classes the samples' nearest digits have.

    The ratio: the median distance of a sample to its nearest digit over that of a digit to its nearest other.
    """
    digits = load_digits()
    real = (np.round(digits.images * (255 / 16)) / 255).reshape(len(digits.images), -1)
    paths = sorted(folder.glob("*.png"))
    made = (
        np.stack([np.asarray(Image.open(path), np.float64) for path in paths]).reshape(len(paths), -1) / 255
    )
    neighbours = NearestNeighbors(n_neighbors=2).fit(real)
    distance, nearest = neighbours.kneighbors(made, 1)
    own = np.median(neighbours.kneighbors(real)[0][:, 1] ** 2)
    return float(np.median(distance**2) / own), len(set(digits.target[nearest[:, 0]]))
