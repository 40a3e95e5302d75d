"""FOLDER: any tree of images, or a zip file of one."""

from pathlib import Path

from configs import DataConfig
from configs.refusal import Refusal
from datasets.pictures import Pictures
from datasets.tree import split_files

TEST_SPLIT = "folders train/ and test/, or val/, would make one"


def read(data: DataConfig, root: Path, train: bool) -> Pictures | None:
    """All images below `root`, or those of the split, as `datasets.tree.split_files` takes them."""
    if not root.exists():
        raise Refusal(f"there is no folder {root}; name the folder of your images with --data")
    files = split_files(root, train)
    if files is None:
        return None
    if not files.keys:
        raise Refusal(f"{root} holds no images that are read; docs/data.md lists the formats")
    return Pictures(files, data.shape, background=data.background).check_some(500, data.on_error)
