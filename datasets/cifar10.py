"""CIFAR10: torchvision's reader, which downloads and checks it."""

from pathlib import Path

from torch import Tensor
from torchvision.datasets import CIFAR10

from configs import DataConfig
from datasets.download import downloading
from datasets.images import in_memory

FILES = "the folder cifar-10-batches-py, or cifar-10-python.tar.gz (md5 c58f30108f718f92721af3b95e74349a)"


def read(data: DataConfig, root: Path, train: bool) -> Tensor:
    """50,000 training or 10,000 test images. Upstream keeps a second copy in {root}_test, which serves too."""
    second = root.with_name(f"{root.name}_test")
    place = second if not train and second.is_dir() else root
    with downloading("CIFAR10", place, FILES):
        dataset = CIFAR10(place, train=train, download=True)
    return in_memory(dataset.data, data)
