"""CIFAR10 (Krizhevsky 2009), by torchvision's reader, which checks the md5 of every file."""

from pathlib import Path

from torch import Tensor
from torchvision.datasets import CIFAR10

from configs import DataConfig
from datasets.download import download
from datasets.pictures import in_memory

SIZES = {"CIFAR10": (50_000, 10_000)}


def read(data: DataConfig, root: Path, train: bool) -> Tensor:
    """The test split may also lie in {root}_test, upstream's second copy."""
    copy = root.with_name(f"{root.name}_test")
    if not train and (copy / CIFAR10.base_folder).is_dir():
        root = copy
    try:
        dataset = CIFAR10(root, train=train)
    except RuntimeError:  # files are missing or damaged
        by_hand = "the folder cifar-10-batches-py, or cifar-10-python.tar.gz,"
        download("CIFAR10", CIFAR10.url, CIFAR10.tgz_md5, root, by_hand)
        dataset = CIFAR10(root, train=train, download=True)  # unpacks it
    return in_memory(dataset.data, data.shape)
