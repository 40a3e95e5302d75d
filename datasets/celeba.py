"""CELEBA: 202,599 aligned faces with an official split (Liu et al. 2015); the crop of the face is upstream's."""

import os
from pathlib import Path
from zipfile import BadZipFile

from gdown.exceptions import DownloadError
from torchvision.datasets import CelebA
from torchvision.datasets.utils import check_integrity

from configs import DataConfig
from configs.refusal import Refusal
from datasets.download import or_by_hand
from datasets.pictures import Pictures, crop_face, sound
from datasets.sources import Files

IMAGES, PARTITION = "img_align_celeba", "list_eval_partition.txt"
BY_HAND = f"the folder {IMAGES} and {PARTITION}"
TRAIN, TEST = "0", "2"  # "1" is the validation split, which upstream does not use
CHECKED_AT_START = 500


def read(data: DataConfig, root: Path, train: bool) -> Pictures | None:
    """162,770 training or 19,962 test images."""
    files = split_files(find(root) or _download(root), TRAIN if train else TEST)
    return sound(Pictures(files, data, crop_face), CHECKED_AT_START) if files.keys else None


def find(root: Path) -> Path | None:
    """The folder that holds the images and the partition: torchvision's below root, root, or what a folder of images is in.

    Where all files of the official layout are there, torchvision's md5 of each must hold.
    """
    places = (
        [root / CelebA.base_folder, root, root.parent]
        if root.name == IMAGES
        else [root / CelebA.base_folder, root]
    )
    for place in places:
        if (place / IMAGES).is_dir() and (place / PARTITION).is_file():
            lists = {place / name: md5 for _, md5, name in CelebA.file_list if name.endswith(".txt")}
            if all(path.is_file() for path in lists):
                for path, md5 in lists.items():
                    if not check_integrity(path, md5):
                        raise Refusal(f"{path} is damaged: its md5 is not {md5}; fetch it again")
            return place
    return None


def split_files(place: Path, split: str) -> Files:
    """The images of a split ("0" train, "1" validation, "2" test), in the order of the partition."""
    partition = place / PARTITION
    words = partition.read_text(encoding="utf-8", errors="replace").split()
    names, splits = words[0::2], words[1::2]
    if len(names) != len(splits) or not set(splits) <= {"0", "1", "2"}:
        raise Refusal(f"{partition} is damaged: its lines must be a file's name and 0, 1 or 2")
    there = set(os.listdir(place / IMAGES))
    chosen = [name for name, its in zip(names, splits, strict=True) if its == split]
    gone = [name for name in chosen if name not in there]
    if gone:
        raise Refusal(
            f"{place / IMAGES} is not whole: {len(gone):,} of the {len(chosen):,} images are missing, as {gone[0]}"
        )
    if split == TRAIN and not chosen:
        raise Refusal(f"{partition} names no training images: its lines must be a file's name and 0, 1 or 2")
    return Files(place / IMAGES, chosen)


def _download(root: Path) -> Path:
    """By torchvision and gdown, from Google Drive; what came whole is kept for the next attempt."""
    # torchvision raises RuntimeError for a file whose md5 is wrong.
    with or_by_hand(
        "CELEBA", root, BY_HAND, DownloadError, RuntimeError, BadZipFile, below=CelebA.base_folder
    ):
        CelebA(root, target_type=[], download=True)
    return root / CelebA.base_folder
