"""LMDB: images that `python -m datasets.pack` packed, at the size they were packed in."""

from pathlib import Path

import numpy as np

from configs import DataConfig
from datasets import ffhq
from datasets.pictures import Pictures
from datasets.tree import split_folder

TEST_SPLIT = "folders train/ and test/, or val/, would make one"


def read(data: DataConfig, root: Path, train: bool) -> Pictures | None:
    """All images of the LMDB `root`, or of the split's LMDB below it."""
    path = split_folder(root, train)
    return ffhq.pictures(path, data, np.arange(ffhq.count(path, data))) if path else None
