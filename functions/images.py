"""8-bit images on disk: the only PNG writer, which of a set are missing, and contact sheets."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from functions import files

SHEET_CELL = 48  # pixels: smaller images are enlarged by a whole factor


def to_uint8(images: Tensor) -> Tensor:
    """[0, 1] floats to bytes, rounding half up, as torchvision's save_image does. Any shape, any device."""
    return images.mul(255).add(0.5).clamp(0, 255).to(torch.uint8)


def write_png(path: Path, image: Tensor) -> None:
    """Write one uint8 image (1 or 3, h, w); it appears whole."""
    with files.atomic(path, durable=False) as temporary:
        _to_pil(image).save(temporary, format="PNG")


def missing(folder: Path, names: Sequence[str]) -> list[int]:
    """The positions of `names` that are not files of `folder`."""
    there = set(os.listdir(folder)) if folder.is_dir() else set()
    return [i for i, name in enumerate(names) if name not in there]


def contact_sheet(path: Path, folder: Path, rows: Sequence[Sequence[str]]) -> None:
    """One picture of the files `rows` of `folder`, small images enlarged without smoothing."""
    cells = [[Image.open(folder / name).copy() for name in row] for row in rows]
    first = cells[0][0]
    factor = -(-SHEET_CELL // max(first.size))
    width, height, gap = first.width * factor, first.height * factor, 2
    sheet = Image.new(first.mode, (max(map(len, cells)) * (width + gap) + gap, len(cells) * (height + gap) + gap), _white(first))
    for y, row in enumerate(cells):
        for x, cell in enumerate(row):
            enlarged = cell.resize((width, height), Image.Resampling.NEAREST)
            sheet.paste(enlarged, (gap + x * (width + gap), gap + y * (height + gap)))
    with files.atomic(path, durable=False) as temporary:
        sheet.save(temporary, format="PNG", optimize=True)


def _to_pil(image: Tensor) -> Image.Image:
    array = image.permute(1, 2, 0).cpu().numpy()
    return Image.fromarray(np.ascontiguousarray(array[:, :, 0] if array.shape[2] == 1 else array))


def _white(image: Image.Image) -> int | tuple[int, int, int]:
    return 255 if image.mode == "L" else (255, 255, 255)
