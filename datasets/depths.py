"""From a file to 8 bits a channel, where the range of its values is known. The rest is refused by name."""

import io
import math
from typing import NoReturn

import numpy as np
from PIL import Image, ImageOps, TiffImagePlugin, UnidentifiedImageError, features

from configs.refusal import Refusal

Image.init()  # loads every plugin
# Formats that Pillow only names, that another program would decode, or whose numbers have no known range.
_NOT_READ = {"BUFR", "GRIB", "HDF5", "MPEG", "EPS", "WMF", "FITS", "IPTC"}
_NEEDS = {
    "AVIF": "avif",
    "JPEG2000": "jpg_2000",
    "WEBP": "webp",
}  # by format: what Pillow may be built without
FORMATS = [
    name
    for name in Image.OPEN
    if name not in _NOT_READ and (name not in _NEEDS or features.check(_NEEDS[name]))
]
EXTENSIONS = {extension for extension, name in Image.registered_extensions().items() if name in FORMATS}

_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_BITS, _PHOTOMETRIC, _PLANES, _SAMPLES = 258, 262, 284, 339  # TIFF's tags
_WHITE_IS_ZERO, _LAB = 0, (8, 9, 10)
_KINDS = {2: "signed integers", 3: "floating-point numbers", 5: "complex integers", 6: "complex numbers"}
_SCALE = "write them as 8 or 16 bits, scaled to the whole range"
_FEW_BITS = {"1": 255, "L;2": 85, "L;4": 17}  # Pillow's raw mode of a PNG: what it multiplies greys by
_PLAIN = {"1": "L", "L": "L", "LA": "LA", "La": "LA", "P": "RGBA", "PA": "RGBA", "RGB": "RGB", "RGBX": "RGB",
          "RGBA": "RGBA", "RGBa": "RGBA", "CMYK": "RGB", "YCbCr": "RGB"}  # fmt: skip


LONGEST = 256  # times the shorter side: scaling a longer picture to the model's size could take gigabytes


class Unsupported(Refusal):
    """A picture whose pixels have no defined range or colour here; the sentence goes on after its name."""


def open_picture(content: bytes) -> Image.Image:
    """The picture of a file. Raises Unsupported, or what Pillow raises for what is not a picture."""
    tiff = _tiff_tags(content)
    if tiff is not None:
        _check_tiff(tiff)
    try:
        image = Image.open(io.BytesIO(content), formats=FORMATS)
    except UnidentifiedImageError:
        if tiff is not None:
            kind = f"{tiff.get(_BITS, (1,))} bits, photometric interpretation {tiff.get(_PHOTOMETRIC)}"
            raise Unsupported(f"is a TIFF that Pillow does not read ({kind}); write it as PNG") from None
        raise ValueError("Pillow does not know its format") from None
    if max(image.size) > LONGEST * min(image.size):
        raise Unsupported(f"is {image.width} x {image.height}: one side is over {LONGEST} times the other")
    return image


def is_deep(image: Image.Image) -> bool:
    """Whether the file has 16 bits a channel."""
    return image.mode.startswith("I") or "16" in _raw_mode(image)


def is_white_is_zero(image: Image.Image) -> bool:
    """Whether it is a TIFF of more than 8 bits with white at 0: for fewer bits Pillow turns it itself."""
    tags = getattr(image, "tag_v2", {})
    return image.mode == "I;16" and tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO


def eight_bits(image: Image.Image) -> Image.Image:
    """L, LA, RGB or RGBA, turned as its EXIF says; of 16 bits the upper 8. Raises Unsupported."""
    raw, inverted, mode = _raw_mode(image), is_white_is_zero(image), image.mode
    ImageOps.exif_transpose(image, in_place=True)
    key = image.info.get("transparency")
    if mode.startswith("I;16") or (mode == "I" and image.format in ("PNG", "PPM")):
        values = np.asarray(image).astype(np.uint32)
        grey = (values >> (4 if raw.startswith("I;12") else 8)).clip(0, 255).astype(np.uint8)
        picture = Image.fromarray(255 - grey if inverted else grey)
        return picture if key is None else _with_alpha(picture, values != key)
    if mode not in _PLAIN:
        _refuse_mode(mode)
    picture = image.convert(_PLAIN[mode])
    if key is None or mode in ("P", "PA"):
        return picture
    if "16" in raw:
        raise Unsupported("has 16 bits and one transparent colour; write it with an alpha channel instead")
    pixels = np.asarray(picture)
    if picture.mode == "L":
        return _with_alpha(picture, pixels != key * _FEW_BITS.get(raw, 1))
    return _with_alpha(picture, (pixels != np.array(key)).any(-1))


def has_transparency(picture: Image.Image) -> bool:
    return picture.mode in ("LA", "RGBA") and picture.getchannel("A").histogram()[255] < math.prod(
        picture.size
    )


def flatten(picture: Image.Image, background: tuple[int, ...]) -> Image.Image:
    """Without alpha: laid on `background`, as viewers show it. Hidden colours do not come through."""
    if picture.mode not in ("LA", "RGBA"):
        return picture
    rgba, ground = picture.convert("RGBA"), Image.new("RGB", picture.size, background)
    ground.paste(rgba.convert("RGB"), mask=rgba.getchannel("A"))
    return ground


def _with_alpha(picture: Image.Image, opaque: np.ndarray) -> Image.Image:
    picture = picture.copy()
    picture.info.pop("transparency", None)
    picture.putalpha(Image.fromarray(opaque.astype(np.uint8) * np.uint8(255)))
    return picture


def _raw_mode(image: Image.Image) -> str:
    """How Pillow names the file's own layout of a pixel; "" where it does not say."""
    tile = getattr(image, "tile", None)
    how = tile[0][3] if tile else ""
    return str((how[0] if how else "") if isinstance(how, tuple) else how)


def _tiff_tags(content: bytes) -> TiffImagePlugin.ImageFileDirectory_v2 | None:
    """The tags of the first page; None for another format."""
    if content[:4] not in _TIFF:
        return None
    if content.startswith(b"MM\0+"):
        raise Unsupported("is a big-endian BigTIFF, which Pillow does not read; write it as PNG")
    tags = TiffImagePlugin.ImageFileDirectory_v2(content[: 16 if b"+" in content[:4] else 8])
    file = io.BytesIO(content)
    file.seek(tags.next)
    tags.load(file)
    return tags


def _check_tiff(tags: TiffImagePlugin.ImageFileDirectory_v2) -> None:
    """Raise Unsupported for numbers without a defined range, and for CIELAB."""
    bits, kind = max(tags.get(_BITS, (1,))), max(tags.get(_SAMPLES, (1,)))
    if kind in _KINDS:
        raise Unsupported(f"has {bits}-bit {_KINDS[kind]}, whose range is not defined; {_SCALE}")
    if bits > 16:
        raise Unsupported(f"has {bits}-bit integers, whose range is not defined; {_SCALE}")
    if bits > 8 and tags.get(_PLANES, 1) == 2:  # Pillow would mix its channels up
        raise Unsupported(f"has {bits} bits in separate planes; write its channels pixel by pixel")
    if tags.get(_PHOTOMETRIC) in _LAB:
        raise Unsupported("is in CIELAB; convert it to RGB")


def _refuse_mode(mode: str) -> NoReturn:
    if mode in ("I", "F"):
        kind = "32-bit integers" if mode == "I" else "floating-point numbers"
        raise Unsupported(f"has {kind}, whose range is not defined; {_SCALE}")
    raise Unsupported(f"is in {mode}; convert it to RGB")
