"""FOLDER: any tree of images, one's own."""

from pathlib import Path

from configs import DataConfig
from configs.refusal import Refusal
from datasets.pictures import Pictures, sound
from datasets.sources import EXTENSIONS, Files, image_files

CHECKED_AT_START = 500


def read(data: DataConfig, root: Path, train: bool) -> Pictures | None:
    """All images below root; where it has folders train/ and test/, each is a split, else there is no test split."""
    if not root.is_dir():
        raise Refusal(f"there is no folder {root}; name the folder of your images with --data")
    folder = split_folder(root, train)
    if folder is None:
        return None
    names = image_files(folder)
    if not names:
        raise Refusal(f"{folder} holds no images; {', '.join(sorted(EXTENSIONS))} are read")
    return sound(Pictures(Files(folder, names), data), CHECKED_AT_START)


def split_folder(root: Path, train: bool) -> Path | None:
    """`root` itself for training and nothing for testing, unless it has folders train/ and test/."""
    if (root / "train").is_dir() and (root / "test").is_dir():
        return root / ("train" if train else "test")
    return root if train else None
