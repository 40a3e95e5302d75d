"""CELEBA (Liu et al. 2015): 202,599 aligned faces with an official split, cropped as upstream crops them."""

import os
from pathlib import Path

from gdown.exceptions import DownloadError
from torchvision.datasets import CelebA
from torchvision.datasets.utils import check_integrity

from configs import DataConfig, door
from configs.refusal import Refusal
from datasets.download import or_by_hand
from datasets.pictures import Pictures, crop_face
from datasets.tree import Files

SIZES = {"CELEBA": (162_770, 19_962)}
IMAGES, PARTITION = "img_align_celeba", "list_eval_partition.txt"
TABLE = "list_eval_partition.csv"  # Kaggle's copy of PARTITION
TEST_SPLIT = f"images with a 2 in {PARTITION} would make one"


def read(data: DataConfig, root: Path, train: bool) -> Pictures | None:
    """The cropped faces of the split, in the order of the official partition."""
    files = split_files(find(root) or _download(root), train)
    pictures = Pictures(files, data.shape, crop_face, data.background)
    return pictures.check_some(500, data.on_error) if files.keys else None


def find(root: Path) -> Path | None:
    """The partition, .txt or Kaggle's .csv: in torchvision's folder below `root`, in `root`, beside IMAGES.

    Raises Refusal where all official lists are there and the partition, the only one read, has another md5.
    """
    places = [root / CelebA.base_folder, root]
    places += [folder.parent for folder in (root, root.parent) if folder.name == IMAGES]
    tables = (p / name for p in places for name in (PARTITION, TABLE) if (p / IMAGES).is_dir())
    partition = next(filter(Path.is_file, tables), None)
    if partition is None:
        return None
    md5s = {name: md5 for _, md5, name in CelebA.file_list if name.endswith(".txt")}
    official = all((partition.parent / name).is_file() for name in md5s)
    if official and partition.name == PARTITION and not check_integrity(partition, md5s[PARTITION]):
        raise Refusal(f"{partition} is damaged: its md5 is not {md5s[PARTITION]}; fetch it again")
    return partition


def split_files(partition: Path, train: bool) -> Files:
    """The images of a split, in the partition's order. Upstream does not use "1", the validation split."""
    layout = "its lines must be a file's name and 0, 1 or 2"
    text = door.read_text(partition, "CelebA's partition").removeprefix("\ufeff")
    words = text.replace(",", " ").split()
    if words[:2] == ["image_id", "partition"]:
        words = words[2:]
    splits = dict(zip(words[0::2], words[1::2], strict=False))
    if len(words) % 2 or not set(splits.values()) <= {"0", "1", "2"}:
        raise Refusal(f"{partition} is damaged: {layout}")
    chosen = [name for name in splits if splits[name] == ("0" if train else "2")]
    if train and not chosen:
        raise Refusal(f"{partition} names no training images: {layout}")
    images = partition.parent / IMAGES
    images = images / IMAGES if (images / IMAGES).is_dir() else images  # so Kaggle's zip unpacks
    if missing := sorted(set(chosen) - set(os.listdir(images))):
        some = f"{len(missing):,} of the {len(chosen):,} images are missing"
        raise Refusal(f"{images}: {some}, as {missing[0]}")
    return Files(images, chosen)


def _download(root: Path) -> Path:
    """By torchvision and gdown, from Google Drive. Complete files are kept for the next attempt."""
    by_hand = f"the folder {IMAGES} and {PARTITION}, or Kaggle's {TABLE},"
    with or_by_hand("CELEBA", root, by_hand, DownloadError, RuntimeError, below=CelebA.base_folder):
        CelebA(root, target_type=[], download=True)
    return root / CelebA.base_folder / PARTITION
