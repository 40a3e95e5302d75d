"""CELEBA (Liu et al. 2015): 202,599 aligned faces with an official split, cropped as upstream crops them."""

import os
from pathlib import Path

from gdown.exceptions import DownloadError
from torchvision.datasets import CelebA
from torchvision.datasets.utils import check_integrity

from configs import DataConfig
from configs.refusal import Refusal
from datasets.download import or_by_hand
from datasets.pictures import Files, Pictures, crop_face

SIZES = {"CELEBA": (162_770, 19_962)}
IMAGES, PARTITION = "img_align_celeba", "list_eval_partition.txt"
TEST_SPLIT = f"images with a 2 in {PARTITION} would make one"


def read(data: DataConfig, root: Path, train: bool) -> Pictures | None:
    """The cropped faces of the split, in the order of the official partition."""
    files = split_files(find(root) or _download(root), train)
    return Pictures(files, data.shape, crop_face).check_some(500) if files.keys else None


def find(root: Path) -> Path | None:
    """The folder of IMAGES and PARTITION: torchvision's below `root`, `root`, or the parent of IMAGES.

    Raises Refusal where it has all official lists and one does not have its md5.
    """
    places = [root / CelebA.base_folder, root, *([root.parent] if root.name == IMAGES else [])]
    place = next((p for p in places if (p / IMAGES).is_dir() and (p / PARTITION).is_file()), None)
    lists = {place / name: md5 for _, md5, name in CelebA.file_list if place and name.endswith(".txt")}
    for path, md5 in lists.items():
        if all(map(Path.is_file, lists)) and not check_integrity(path, md5):
            raise Refusal(f"{path} is damaged: its md5 is not {md5}; fetch it again")
    return place


def split_files(place: Path, train: bool) -> Files:
    """The images of a split, in the partition's order. Upstream does not use "1", the validation split."""
    partition, layout = place / PARTITION, "its lines must be a file's name and 0, 1 or 2"
    words = partition.read_text(encoding="utf-8", errors="replace").split()
    splits = dict(zip(words[0::2], words[1::2], strict=False))
    if len(words) % 2 or not set(splits.values()) <= {"0", "1", "2"}:
        raise Refusal(f"{partition} is damaged: {layout}")
    chosen = [name for name in splits if splits[name] == ("0" if train else "2")]
    if train and not chosen:
        raise Refusal(f"{partition} names no training images: {layout}")
    if missing := sorted(set(chosen) - set(os.listdir(place / IMAGES))):
        some = f"{len(missing):,} of the {len(chosen):,} images are missing"
        raise Refusal(f"{place / IMAGES}: {some}, as {missing[0]}")
    return Files(place / IMAGES, chosen)


def _download(root: Path) -> Path:
    """By torchvision and gdown, from Google Drive. Complete files are kept for the next attempt."""
    by_hand = f"the folder {IMAGES} and {PARTITION}"
    with or_by_hand("CELEBA", root, by_hand, DownloadError, RuntimeError, below=CelebA.base_folder):
        CelebA(root, target_type=[], download=True)
    return root / CelebA.base_folder
