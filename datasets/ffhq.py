"""FFHQ (Karras et al. 2019): 70,000 faces, in an LMDB with keys `{resolution}-{index:05d}` and `length`."""

from pathlib import Path

import numpy as np

from configs import DataConfig
from configs.refusal import Refusal
from datasets.lmdb_files import Lmdb, LmdbValues, is_lmdb
from datasets.pictures import Pictures

FOLDER = "FFHQ"
SIZES = {"FFHQ": (63_000, 7_000)}
LENGTH = b"length"
LARGEST = 16_383  # pixels on a side, WebP's limit


def read(data: DataConfig, root: Path, train: bool) -> Pictures:
    """The images at the model's resolution, split as upstream splits them."""
    order = np.arange(count(root, data))
    np.random.RandomState(2019).shuffle(order)
    cut = int(len(order) * 0.9)
    return pictures(root, data, order[:cut] if train else order[cut:])


def pictures(path: Path, data: DataConfig, indices: np.ndarray) -> Pictures:
    """The images `indices` of an LMDB in this layout, at the model's resolution."""
    keys = np.char.add(f"{data.image_size}-".encode(), np.char.zfill(indices.astype(bytes), 5))
    return Pictures(LmdbValues(path, keys, indices), data.shape, background=data.background).check_some(
        2, data.on_error
    )


def count(path: Path, data: DataConfig) -> int:
    """How many images of the model's resolution the LMDB `path` has. Raises Refusal where it has none."""
    size = data.image_size
    if not is_lmdb(path):
        how = f"put its data.mdb there, or make it: python -m datasets.pack IMAGES {path} --size {size}"
        raise Refusal(f"{data.dataset} is not in {path}: {how}")
    opened = Lmdb(path)
    length = opened.get(LENGTH) or b""
    if not length.isdigit() or int(length) < 1:
        raise Refusal(f"{path} is not in FFHQ's layout: it has no key length with the number of images")
    if opened.get(key(size, 0)) is None:
        sizes = [s for s in range(1, LARGEST + 1) if opened.get(key(s, 0)) is not None]
        found = ", ".join(map(str, sizes)) or "none"
        raise Refusal(f"data.image_size is {size}, and {path} has no such images; it has {found}")
    n, last = int(length), key(size, int(length) - 1)
    if opened.get(last) is None:
        raise Refusal(f"{path} is not complete: its length is {n}, but it has no {last.decode()}")
    return n


def key(size: int, i: int) -> bytes:
    return f"{size}-{i:05d}".encode()
