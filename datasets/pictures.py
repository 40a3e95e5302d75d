"""A data set of encoded pictures, each decoded when it is asked for, by the loader's workers."""

import io
import struct
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from configs import DataConfig
from configs.refusal import Refusal
from datasets.images import to_model_size
from datasets.sources import Source

Crop = Callable[[Image.Image], Image.Image]

# What PIL raises for bytes that are no picture, or half of one.
_UNDECODABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)


class Pictures:
    """The pictures of `source` at the model's size, after `crop` where one is given."""

    def __init__(self, source: Source, data: DataConfig, crop: Crop | None = None):
        self.source, self.data, self.crop = source, data, crop

    def __len__(self) -> int:
        return len(self.source.keys)

    def __getitem__(self, i: int) -> Tensor:
        """uint8 (channels, image_size, image_size). Raises Refusal, naming the picture, where it can't be had."""
        return to_model_size(decode(self.source, i, self.crop), self.data)


def decode(source: Source, i: int, crop: Crop | None = None) -> Image.Image:
    """Picture i of `source`, 8-bit, turned as its EXIF says and cropped. Raises Refusal, naming it."""
    try:
        with Image.open(io.BytesIO(source.read(i))) as image:
            ImageOps.exif_transpose(image, in_place=True)
            picture = _eight_bit(image)
    except UnidentifiedImageError:
        raise Refusal(
            f"the image {source.describe(i)} cannot be decoded (it is no image); mend or remove it"
        ) from None
    except _UNDECODABLE as error:
        raise Refusal(
            f"the image {source.describe(i)} cannot be decoded ({error}); mend or remove it"
        ) from None
    try:
        return crop(picture) if crop else picture
    except Refusal as error:
        raise Refusal(f"the image {source.describe(i)} {error}") from None


def sound(pictures: Pictures, checked: int) -> Pictures:
    """The same, after `checked` of them, spread over all, were decoded: better now than in a run that has begun."""
    for i in np.linspace(0, len(pictures) - 1, min(len(pictures), checked)).astype(int):
        pictures[i]
    return pictures


def crop_face(image: Image.Image) -> Image.Image:
    """CelebA's aligned picture, 178 wide and 218 high -> the 128 x 128 around the face that upstream trains on."""
    left, top, side = 25, 57, 128  # centre (121, 89), half-width 64
    if image.width < left + side or image.height < top + side:
        raise Refusal(
            f"is {image.width} x {image.height}; CelebA's crop is for its aligned pictures, 178 x 218"
        )
    return image.crop((left, top, left + side, top + side))


def _eight_bit(image: Image.Image) -> Image.Image:
    """16-bit greyscale as its upper byte (PIL would clip it); palettes by way of their colours; the rest as it is."""
    if image.mode in ("I", "I;16", "I;16B", "I;16L"):
        return Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8))
    if image.mode == "P":
        return image.convert("RGBA")
    image.load()
    return image
