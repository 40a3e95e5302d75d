"""CIFAR10: torchvision's reader, which checks every file."""

from pathlib import Path

from torch import Tensor
from torchvision.datasets import CIFAR10

from configs import DataConfig
from datasets.download import download
from datasets.images import in_memory

BY_HAND = "the folder cifar-10-batches-py, or cifar-10-python.tar.gz,"


def read(data: DataConfig, root: Path, train: bool) -> Tensor:
    """50,000 training or 10,000 test images. Upstream keeps a second copy in {root}_test, which serves too."""
    second = root.with_name(f"{root.name}_test")
    if not train and (second / CIFAR10.base_folder).is_dir():
        root = second
    try:
        dataset = CIFAR10(root, train=train)
    except RuntimeError:  # not there, or not whole
        download("CIFAR10", CIFAR10.url, CIFAR10.tgz_md5, root, BY_HAND)
        dataset = CIFAR10(root, train=train, download=True)  # unpacks it
    return in_memory(dataset.data, data)
