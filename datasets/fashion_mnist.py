"""FASHION_MNIST: 28x28 greyscale, padded to 32x32; torchvision's layout, or the four gzipped files side by side."""

import gzip
from pathlib import Path

import numpy as np
from torch import Tensor
from torchvision.datasets import FashionMNIST

from configs import DataConfig
from datasets.download import downloading
from datasets.images import in_memory

PAD = 2
FILES = "train-images-idx3-ubyte.gz and t10k-images-idx3-ubyte.gz"


def read(data: DataConfig, root: Path, train: bool) -> Tensor:
    """60,000 training or 10,000 test images."""
    name = f"{'train' if train else 't10k'}-images-idx3-ubyte"
    places = [root / f"{name}.gz", root / name, root / "FashionMNIST" / "raw" / name, root / "FashionMNIST" / "raw" / f"{name}.gz"]
    there = [place for place in places if place.is_file()]
    if not there:
        with downloading("FASHION_MNIST", root, FILES):
            FashionMNIST(root, download=True)
        there = [place for place in places if place.is_file()]
    return in_memory(_read_idx(there[0]), data, pad=PAD)


def _read_idx(path: Path) -> np.ndarray:
    """The images of an IDX file (a 16-byte header, then bytes): uint8 (n, 28, 28)."""
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        magic, n, height, width = np.frombuffer(content, ">i4", count=4)
        images = np.frombuffer(content, np.uint8, offset=16).reshape(n, height, width)
    except (OSError, EOFError, ValueError) as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    if magic != 0x00000803:
        raise ValueError(f"{path} is damaged: it is not an IDX file of images")
    return images
