"""FOLDER: any tree of images, one's own. Decoded when asked for, by the loader's workers."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from torch import Tensor

from configs import DataConfig
from datasets.images import to_model_size

EXTENSIONS = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"}


CHECKED_AT_START = 500


class ImageFolder:
    """The image files below `root`, in the order of their paths."""

    def __init__(self, root: Path, data: DataConfig):
        self.paths = sorted(_image_files(root))
        self.data = data

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> Tensor:
        """Raises ValueError, naming the file, for an image that can't be decoded."""
        try:
            with Image.open(self.paths[i]) as image:
                picture = _eight_bit(ImageOps.exif_transpose(image))
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise ValueError(f"the image {self.paths[i]} cannot be decoded ({error}); mend or remove it") from None
        return to_model_size(picture, self.data)


def read(data: DataConfig, root: Path, train: bool) -> ImageFolder | None:
    """All images below root; where it has folders train/ and test/, each is a split, else there is no test split."""
    if not root.is_dir():
        raise ValueError(f"there is no folder {root}; name the folder of your images with --data")
    if (root / "train").is_dir() and (root / "test").is_dir():
        root = root / ("train" if train else "test")
    elif not train:
        return None
    dataset = ImageFolder(root, data)
    if not len(dataset):
        raise ValueError(f"{root} holds no images; {', '.join(sorted(EXTENSIONS))} are read")
    for i in np.linspace(0, len(dataset) - 1, min(len(dataset), CHECKED_AT_START)).astype(int):
        dataset[i]  # an image that can't be decoded is better found now than in a run that has begun
    return dataset


def _image_files(root: Path) -> Iterator[str]:
    """Their paths, through links to folders too, each folder once."""
    seen = set()
    for folder, subfolders, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            subfolders.clear()
            continue
        seen.add(real)
        for name in names:
            if os.path.splitext(name)[1].lower() in EXTENSIONS and not name.startswith("."):  # "._x.jpg" is no picture
                yield os.path.join(folder, name)


def _eight_bit(image: Image.Image) -> Image.Image:
    """16-bit greyscale as its upper byte (PIL would clip it); palettes by way of their colours; the rest as it is."""
    if image.mode in ("I", "I;16", "I;16B", "I;16L"):
        return Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8))
    if image.mode == "P":
        return image.convert("RGBA")
    image.load()
    return image
