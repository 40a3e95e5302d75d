"""LMDB: images that `python -m datasets.pack` packed, at the size they were packed in."""

from pathlib import Path

import numpy as np

from configs import DataConfig
from configs.refusal import Refusal
from datasets import resolutions
from datasets.folder import split_folder
from datasets.lmdb_files import is_lmdb
from datasets.pictures import Pictures


def read(data: DataConfig, root: Path, train: bool) -> Pictures | None:
    """All images of the LMDB root; where root has two in train/ and test/, each is a split, else there is no test split."""
    path = split_folder(root, train)
    if path is None:
        return None
    if not is_lmdb(path):
        raise Refusal(
            f"there is no LMDB {path}; python -m datasets.pack IMAGES {path} --size {data.image_size} makes one"
        )
    return resolutions.pictures(path, data, np.arange(resolutions.count(path, data.image_size)))
