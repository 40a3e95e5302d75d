"""Picture files, from finding them to uint8 tensors of the model's size. The program opens them only here."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from configs import door
from configs.refusal import Refusal
from datasets import depths
from datasets.lmdb_files import LmdbValues
from datasets.tree import Files

Shape = tuple[int, int, int]  # channels, size, size
Colour = tuple[int, ...]  # red, green, blue
WHITE = (255, 255, 255)
Source = Files | LmdbValues


class Pictures:
    """The pictures of `source` as uint8 `shape`, each decoded when it is asked for.

    background: the colour under transparent ones.
    """

    def __init__(
        self, source: Source, shape: Shape, crop: Callable | None = None, background: Colour = WHITE
    ):
        self.source, self.shape, self.crop, self.background = source, shape, crop, background

    def __len__(self) -> int:
        return len(self.source.keys)

    def __getitem__(self, i: int) -> Tensor:
        """Raises Refusal, naming the picture, where it cannot be decoded or cropped."""
        return to_tensor(decode(self.source, i, self.crop, self.background), self.shape)

    def describe(self, i: int) -> str:
        """The picture's file, or its key and LMDB."""
        return self.source.describe(i)

    def __iter__(self) -> Iterator[Tensor]:
        return (self[i] for i in range(len(self)))

    def check_some(self, n: int, on_error: str = "stop") -> "Pictures":
        """As `check_some`. Returns itself."""
        check_some(self.source, n, self.crop, self.background, skip_broken=on_error == "skip")
        return self

    def identity(self) -> str:
        """A hash over all that is read and how: what the same pixels have in common."""
        return f"{self.source.identity()} on {self.background}"


def exact_pictures(folder: Path, names: Sequence[str], shape: Shape, background: Colour = WHITE) -> Pictures:
    """Files of a folder, all of the size of `shape`. Raises Refusal for another, by reading its header."""
    files = Files(folder, names)
    for i, name in enumerate(names):
        with _naming(folder / name), depths.open_picture(files.read(i)) as image:
            width, height = image.size
        if (height, width) != shape[1:]:
            raise Refusal(
                f"the image {folder / name} has {width} x {height} pixels, not {shape[2]} x {shape[1]}"
            )
    return Pictures(files, shape, background=background)


def decode(source: Source, i: int, crop: Callable | None = None, background: Colour = WHITE) -> Image.Image:
    """Picture i of `source`, L or RGB, turned as its EXIF says and cropped. Raises Refusal, naming it."""
    with _naming(source.describe(i)), depths.open_picture(source.read(i)) as image:
        picture = depths.flatten(depths.eight_bits(image), background)
    return crop(picture, source.describe(i)) if crop else picture


def check_some(
    source: Source,
    n: int,
    crop: Callable | None = None,
    background: Colour = WHITE,
    skip_broken: bool = False,
) -> None:
    """Decode n pictures, evenly spread, before a run begins, and say what is not read as it is.

    Raises Refusal for a broken one unless `skip_broken`, and where no 16-bit one has a value above 4095.
    """
    chosen = np.linspace(0, len(source.keys) - 1, min(len(source.keys), n)).astype(int)
    looks: dict[int, _Look] = {}
    for i in map(int, chosen):
        try:
            looks[i] = _look(source, i, crop, background)
        except Refusal:
            if not skip_broken:
                raise
    tops = {i: look.top for i, look in looks.items() if look.top is not None}
    if tops and max(tops.values()) < 16:
        raise Refusal(
            f"the image {source.describe(min(tops))} has 16 bits and no value above 4095, as all {len(tops)} "
            "such ones looked at: their range is not known; scale them to 0 to 65535, or to 8 bits"
        )
    for what, found, done in (
        ("transparent parts", [i for i in looks if looks[i].transparent],
         f"they are laid on the colour {list(background)} (data.background)"),
        ("several pages or frames", [i for i in looks if looks[i].pages > 1], "the first is read"),
    ):  # fmt: skip
        if found:
            some = f"{len(found):,} of the {len(chosen):,} images looked at have {what}"
            logging.info(f"{some}, as {source.describe(found[0])}: {done}")


class _Look(NamedTuple):
    """What is worth knowing of a picture beside its pixels."""

    pages: int
    transparent: bool
    top: int | None  # of 16 bits: the upper 8 bits of the largest value in the file


def _look(source: Source, i: int, crop: Callable | None, background: Colour) -> _Look:
    with _naming(source.describe(i)), depths.open_picture(source.read(i)) as image:
        pages, deep = getattr(image, "n_frames", 1), depths.is_deep(image)
        turned = depths.is_white_is_zero(image)
        picture = depths.eight_bits(image)
    if crop:
        crop(depths.flatten(picture, background), source.describe(i))
    values = np.asarray(picture.convert("RGB")) if deep else None
    top = None if values is None else int(255 - values.min() if turned else values.max())
    return _Look(pages, depths.has_transparency(picture), top)


@contextmanager
def _naming(picture: object) -> Iterator[None]:
    """Read a picture in the block. Raises Refusal that names it where it is damaged or not read."""
    try:
        with door.reading(f"the image {picture}", "a picture"):
            yield
    except depths.Unsupported as error:
        raise Refusal(f"the image {picture} {error}") from None


def crop_face(image: Image.Image, name: str = "") -> Image.Image:
    """CelebA's aligned picture, 178 x 218 -> the 128 x 128 around the face that upstream trains on."""
    left, top, right, bottom = 25, 57, 153, 185  # centre (89, 121), half-width 64
    if image.size != (178, 218):
        raise Refusal(
            f"the image {name} is {image.width} x {image.height}, not CelebA's 178 x 218: its face is "
            "elsewhere; take the aligned pictures, or data.dataset FOLDER, which crops the centre"
        )
    return image.crop((left, top, right, bottom))


def fit(image: Image.Image, size: int, squeeze: bool = False) -> Image.Image:
    """size x size: the shorter side resized and the centre cropped, as by torchvision; or squeezed."""
    shorter = min(image.size)
    width, height = (size if squeeze else max(size, int(side * size / shorter)) for side in image.size)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return image.resize((width, height), Image.Resampling.BILINEAR).crop((left, top, left + size, top + size))


def to_tensor(picture: Image.Image, shape: Shape) -> Tensor:
    """uint8 `shape`, by `fit`."""
    channels, size, _ = shape
    array = np.array(fit(picture.convert("L" if channels == 1 else "RGB"), size))
    return torch.from_numpy(array.reshape(size, size, channels)).permute(2, 0, 1).contiguous()


def in_memory(arrays: Iterable[np.ndarray], shape: Shape, pad: int = 0) -> Tensor:
    """uint8 pictures (h, w) or (h, w, 3), padded with black, as one tensor (n, *shape)."""
    return torch.stack([to_tensor(ImageOps.expand(Image.fromarray(array), pad), shape) for array in arrays])
