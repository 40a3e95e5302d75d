"""Images to train on. Each data set is a module, as datasets/cifar10.py of CIFAR10. It has, where they apply,

read        what `get_dataset` returns
FOLDER      its folder below {exp}/datasets, where that is not its own name in small letters
SIZES       how many training and test images were published, by `DataConfig.name`; needed if it can download
TEST_SPLIT  what would make a test split, if it can lack one; {root} and {category} are filled in
"""

from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Literal, Protocol, overload

from configs import DataConfig

if TYPE_CHECKING:  # torch is slow to import
    from torch import Tensor


class Images(Protocol):
    """n images, each uint8 (c, h, w), with nothing random in them. A Tensor (n, c, h, w) of them will do."""

    def __len__(self) -> int: ...
    def __getitem__(self, i: int) -> "Tensor": ...


def dataset_root(data: DataConfig, exp: str, given: str | None) -> Path:
    """The data set's own folder: what --data names, else its place below {exp}/datasets."""
    if given is not None:
        return Path(given)
    return Path(exp, "datasets", getattr(_module(data), "FOLDER", data.dataset.lower()))


@overload
def get_dataset(data: DataConfig, root: Path, train: Literal[True]) -> Images: ...
@overload
def get_dataset(data: DataConfig, root: Path, train: bool) -> Images | None: ...
def get_dataset(data: DataConfig, root: Path, train: bool) -> Images | None:
    """The training or the test split, None without a test split. Raises Refusal where files are missing."""
    return _module(data).read(data, root, train)


def published_size(data: DataConfig, train: bool) -> int | None:
    """How many images the split has, without fetching any; None where that must be counted."""
    sizes = getattr(_module(data), "SIZES", {}).get(data.name)
    return sizes[0 if train else 1] if sizes else None


def test_split_would_be(data: DataConfig, root: Path) -> str:
    """What would give these data the test split that they do not have."""
    return _module(data).TEST_SPLIT.format(root=root, category=data.category)


def _module(data: DataConfig) -> ModuleType:
    return import_module(f"datasets.{data.dataset.lower()}")  # only when needed: some import slow libraries
