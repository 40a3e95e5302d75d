"""FOLDER: any tree of images."""

from pathlib import Path

from configs import DataConfig
from configs.refusal import Refusal
from datasets.pictures import EXTENSIONS, Files, Pictures, image_files

TEST_SPLIT = "folders train/ and test/ would make one"


def read(data: DataConfig, root: Path, train: bool) -> Pictures | None:
    """All images below `root`, or below the split's folder."""
    if not root.is_dir():
        raise Refusal(f"there is no folder {root}; name the folder of your images with --data")
    folder = split_folder(root, train)
    if folder is None:
        return None
    if not (names := image_files(folder)):
        raise Refusal(f"{folder} holds no images; {', '.join(sorted(EXTENSIONS))} are read")
    return Pictures(Files(folder, names), data.shape).check_some(500)


def split_folder(root: Path, train: bool) -> Path | None:
    """train/ or test/ where `root` has both; else `root` itself for training, and nothing for testing."""
    if (root / "train").is_dir() and (root / "test").is_dir():
        return root / ("train" if train else "test")
    return root if train else None
