"""Images to train on. A data set is what has a length and gives uint8 (c, h, w) tensors: nothing in it is random."""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, overload

from configs import DataConfig

if TYPE_CHECKING:  # what needs no torch is not to wait for it
    from torch import Tensor


class Images(Protocol):
    """n images of (c, h, w), uint8. A Tensor (n, c, h, w) is one, and is read without workers."""

    def __len__(self) -> int: ...
    def __getitem__(self, i: int) -> "Tensor": ...


# The folders under {exp}/datasets, as upstream names them where it has them.
_FOLDERS = {"CELEBA": "celeba", "LSUN": "lsun", "FFHQ": "FFHQ"}


def dataset_root(data: DataConfig, exp: str, given: str | None) -> Path:
    """The data set's own folder: what --data names, else its place under {exp}/datasets."""
    if given is not None:
        return Path(given)
    return Path(exp, "datasets", _FOLDERS.get(data.dataset, data.dataset.lower()))


@overload
def get_dataset(data: DataConfig, root: Path, train: Literal[True]) -> Images: ...
@overload
def get_dataset(data: DataConfig, root: Path, train: bool) -> Images | None: ...
def get_dataset(data: DataConfig, root: Path, train: bool) -> Images | None:
    """The training or the test split of `data.dataset`; None for a test split that the data do not have.

    Raises Refusal, saying which files go where, for data that are missing and can't be downloaded.
    """
    # A module each, imported when needed: they import slow libraries.
    reader = import_module(f"datasets.{data.dataset.lower()}")
    return reader.read(data, root, train)


def test_split_would_be(data: DataConfig, root: Path) -> str:
    """What would give these data the test split that they do not have."""
    if data.dataset == "LSUN":
        return f"the LMDB {root / f'{data.category}_val_lmdb'} would be one"
    if data.dataset in ("FOLDER", "LMDB"):
        return "folders train/ and test/ would make one"
    return "there are too few images, or none of the split"
