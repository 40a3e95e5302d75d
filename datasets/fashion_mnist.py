"""FASHION_MNIST (Xiao et al. 2017): 28x28 greyscale, padded to 32x32."""

import gzip
import zlib
from pathlib import Path

import numpy as np
from torch import Tensor

from configs import DataConfig
from configs.refusal import Refusal
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
    try:
        content = path.read_bytes() if path.suffix != ".gz" else gzip.decompress(path.read_bytes())
        magic, n, height, width = np.frombuffer(content, ">i4", count=4)
        images = np.frombuffer(content, np.uint8, offset=16).reshape(n, height, width)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise Refusal(f"{path} is damaged: {error}") from None
    if magic != 0x00000803:
        raise Refusal(f"{path} is damaged: it is not an IDX file of images")
    return in_memory(images, data.shape, pad=2)
