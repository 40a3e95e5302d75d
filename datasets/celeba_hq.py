"""CELEBA_HQ (Karras et al. 2018): 30,000 faces of 256² and more, as a folder, a zip file or a packed LMDB."""

from pathlib import Path

from configs import DataConfig
from datasets import folder, lmdb
from datasets.lmdb_files import is_lmdb
from datasets.pictures import Pictures

TEST_SPLIT = folder.TEST_SPLIT


def read(data: DataConfig, root: Path, train: bool) -> Pictures | None:
    """The images below `root`, or those of the split: as LMDB or FOLDER reads them."""
    packed = is_lmdb(root) or any(is_lmdb(root / split) for split in ("train", "test"))
    return (lmdb if packed else folder).read(data, root, train)
