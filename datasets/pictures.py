"""Picture files, from finding them to uint8 tensors of the model's size. The program opens them only here."""

import io
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from configs.refusal import Refusal
from datasets.lmdb_files import LmdbValues

EXTENSIONS = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"}
Shape = tuple[int, int, int]  # channels, size, size


class Files:
    """The pictures `keys` of a folder or a zip file."""

    def __init__(self, place: Path, keys: Sequence[str]):
        self.place, self.keys = place, keys

    def describe(self, i: int) -> str:
        return os.path.join(self.place, self.keys[i])

    def read(self, i: int) -> bytes:
        if self.place.is_dir():
            return Path(self.place, self.keys[i]).read_bytes()
        try:
            return _zip(self.place, os.getpid()).read(self.keys[i])
        except (zipfile.BadZipFile, zlib.error, RuntimeError) as error:  # RuntimeError: it needs a password
            raise Refusal(str(error)) from None


def image_files(place: Path) -> list[str]:
    """The images below a folder or in a zip file, sorted. Links to folders are followed, each folder once."""
    if not place.is_dir():
        return sorted(filter(_is_image, _zip(place, os.getpid()).namelist()))
    found, seen = [], set()
    for folder, subfolders, names in os.walk(place, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            subfolders.clear()
        else:
            found += [os.path.relpath(f"{folder}/{name}", place) for name in names if _is_image(name)]
        seen.add(real)
    return sorted(found)


def _is_image(name: str) -> bool:
    hidden = os.path.basename(name).startswith(".") or "__MACOSX/" in name
    return os.path.splitext(name)[1].lower() in EXTENSIONS and not hidden


@lru_cache(maxsize=1)
def _zip(path: Path, pid: int) -> zipfile.ZipFile:
    """Opened once in each process: sharing a file's position, processes would read each other's bytes."""
    return zipfile.ZipFile(path)


class Pictures:
    """The pictures of `source` as uint8 `shape`, each decoded when it is asked for."""

    def __init__(self, source: Files | LmdbValues, shape: Shape, crop: Callable | None = None):
        self.source, self.shape, self.crop = source, shape, crop

    def __len__(self) -> int:
        return len(self.source.keys)

    def __getitem__(self, i: int) -> Tensor:
        """Raises Refusal, naming the picture, where it cannot be decoded or cropped."""
        return to_tensor(decode(self.source, i, self.crop), self.shape)

    def __iter__(self) -> Iterator[Tensor]:
        return (self[i] for i in range(len(self)))

    def check_some(self, n: int) -> "Pictures":
        """Decode n of them, evenly spread, to find a broken one before a run begins. Returns itself."""
        for i in np.linspace(0, len(self) - 1, min(len(self), n)).astype(int):
            self[i]
        return self


def exact_pictures(folder: Path, names: Sequence[str], shape: Shape) -> Pictures:
    """Files of a folder, all of the size of `shape`. Raises Refusal for another, by reading its header."""
    for name in names:
        with _naming(folder / name), Image.open(folder / name) as image:
            width, height = image.size
        if (height, width) != shape[1:]:
            raise Refusal(
                f"the image {folder / name} has {width} x {height} pixels, not {shape[2]} x {shape[1]}"
            )
    return Pictures(Files(folder, names), shape)


def decode(source: Files | LmdbValues, i: int, crop: Callable | None = None) -> Image.Image:
    """Picture i of `source`, 8-bit, turned as its EXIF says and cropped. Raises Refusal, naming it."""
    with _naming(source.describe(i)), Image.open(io.BytesIO(source.read(i))) as image:
        ImageOps.exif_transpose(image, in_place=True)
        if image.mode in ("I", "I;16", "I;16B", "I;16L"):  # PIL would clip
            upper = np.asarray(image).astype(np.uint32) >> 8
            picture = Image.fromarray(upper.clip(0, 255).astype(np.uint8))
        else:
            picture = image.convert("RGBA" if image.mode == "P" else image.mode)
    return crop(picture, source.describe(i)) if crop else picture


@contextmanager
def _naming(picture: object) -> Iterator[None]:
    """Turn what PIL raises for bytes that are not a picture, or half of one, into a Refusal that names it."""
    try:
        yield
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError) as error:
        why = "it is not an image" if isinstance(error, UnidentifiedImageError) else error
        raise Refusal(f"the image {picture} cannot be decoded ({why}); fix or remove it") from None


def crop_face(image: Image.Image, name: str = "") -> Image.Image:
    """CelebA's aligned picture, 178 x 218 -> the 128 x 128 around the face that upstream trains on."""
    left, top, right, bottom = 25, 57, 153, 185  # centre (89, 121), half-width 64
    if image.width < right or image.height < bottom:
        raise Refusal(f"the image {name} is {image.width} x {image.height}, not CelebA's 178 x 218")
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
