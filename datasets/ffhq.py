"""FFHQ (Karras et al. 2019): one LMDB of 70,000 faces by resolution; upstream's 90 / 10 split."""

from pathlib import Path

import numpy as np

from configs import DataConfig
from configs.refusal import Refusal
from datasets import resolutions
from datasets.lmdb_files import is_lmdb
from datasets.pictures import Pictures

SPLIT_SEED, TRAIN_PART = 2019, 0.9


def read(data: DataConfig, root: Path, train: bool) -> Pictures | None:
    """63,000 training or 7,000 test images of the model's resolution."""
    if not is_lmdb(root):
        raise Refusal(
            f"FFHQ is not in {root}: put the LMDB of its images there (data.mdb, keys {data.image_size}-00000 … and length); "
            f"python -m datasets.pack IMAGES {root} --size {data.image_size} makes it from the images"
        )
    n = resolutions.count(root, data.image_size)
    order = np.arange(n)
    np.random.RandomState(SPLIT_SEED).shuffle(order)
    cut = int(n * TRAIN_PART)
    indices = order[:cut] if train else order[cut:]
    return resolutions.pictures(root, data, indices) if len(indices) else None
