"""FASHION_MNIST: 28x28 greyscale, padded to 32x32; torchvision's layout, or the gzipped files side by side."""

import gzip
import zlib
from pathlib import Path

import numpy as np
from torch import Tensor

from configs import DataConfig
from configs.refusal import Refusal
from datasets.download import download
from datasets.images import in_memory

PAD = 2
ADDRESS = (
    "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/"  # its authors' own
)
MD5 = {"train": "8d4fb7e6c68d591d4c3dfef9ec88bf0d", "t10k": "bef4ecab320f06d8554ea6380940ec79"}


def read(data: DataConfig, root: Path, train: bool) -> Tensor:
    """60,000 training or 10,000 test images."""
    split = "train" if train else "t10k"
    name = f"{split}-images-idx3-ubyte"
    places = [
        folder / file for folder in (root, root / "FashionMNIST" / "raw") for file in (f"{name}.gz", name)
    ]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        path = download("FASHION_MNIST", f"{ADDRESS}{name}.gz", MD5[split], root, "the four *-ubyte.gz files")
    return in_memory(_read_idx(path), data, pad=PAD)


def _read_idx(path: Path) -> np.ndarray:
    """The images of an IDX file (a 16-byte header, then bytes): uint8 (n, 28, 28)."""
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        magic, n, height, width = np.frombuffer(content, ">i4", count=4)
        images = np.frombuffer(content, np.uint8, offset=16).reshape(n, height, width)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise Refusal(f"{path} is damaged: {error}") from None
    if magic != 0x00000803:
        raise Refusal(f"{path} is damaged: it is not an IDX file of images")
    return images
