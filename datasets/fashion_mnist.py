"""FASHION_MNIST (Xiao et al. 2017): 28x28 greyscale, padded to 32x32."""

import gzip
from pathlib import Path

import numpy as np
from torch import Tensor

from configs import DataConfig, door
from datasets.download import download
from datasets.pictures import in_memory

SIZES = {"FASHION_MNIST": (60_000, 10_000)}
URL = "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/"  # its authors'
MD5 = {True: "8d4fb7e6c68d591d4c3dfef9ec88bf0d", False: "bef4ecab320f06d8554ea6380940ec79"}  # by `train`


def read(data: DataConfig, root: Path, train: bool) -> Tensor:
    """From IDX files, a 16-byte header and then bytes, in `root` or in torchvision's folder below it."""
    name = f"{'train' if train else 't10k'}-images-idx3-ubyte"
    places = [place / file for place in (root, root / "FashionMNIST/raw") for file in (f"{name}.gz", name)]
    path = next(filter(Path.is_file, places), None)
    if path is None:
        path = download("FASHION_MNIST", f"{URL}{name}.gz", MD5[train], root, "the four *-ubyte.gz files")
    with door.reading(path, "an IDX file of images"):
        content = door.regular(path).read_bytes()
        content = gzip.decompress(content) if path.suffix == ".gz" else content
        magic, n, height, width = np.frombuffer(content, ">i4", count=4)
        if magic != 0x00000803:
            raise ValueError(f"it begins with {magic:#x}")
        images = np.frombuffer(content, np.uint8, offset=16).reshape(n, height, width)
        return in_memory(images, data.shape, pad=2)
