"""8-bit images on disk: the only PNG writer, and contact sheets."""

import math
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from functions.disk import files
from functions.runtime.threads import copy_to_host, cores_are_idle, pool_for, worker_threads

CELL, CELL_MAX = 48, 128  # pixels of a sheet's cell: smaller images are enlarged, larger ones reduced
GAP = 2
PNG_BEGIN = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
PNG_END = b"\0\0\0\0IEND\xaeB`\x82"

Write = Callable[[Sequence[str], Tensor], None]


def to_uint8(images: Tensor) -> Tensor:
    """[0, 1] floats to bytes, rounding half up, as torchvision's save_image does. Any shape, any device."""
    return images.mul(255).add(0.5).clamp(0, 255).to(torch.uint8)


def write_png(path: Path, image: Tensor) -> None:
    """Write one uint8 image (1 or 3, h, w). The file appears whole."""
    with files.atomic(path, durable=False) as temporary:
        _to_pil(image).save(temporary, format="PNG")


@contextmanager
def writer(
    folder: Path, device: torch.device, write_one: Callable[[Path, Tensor], None] | None = None
) -> Iterator[Write]:
    """A function `write(names, images)` that writes images (b, c, h, w) of any device to `folder`.

    write_one: writes one, by default uint8 as a PNG.
    device: where the network runs. If that leaves the cores idle, threads write while the next batch is made,
    at most a batch behind; an error is raised by the next call or at the end of the block. If the block fails
    what still waits is not written. On a CPU the call itself writes, because threads would slow the network.
    """
    write_one = write_one or write_png
    pending: deque[Future[None]] = deque()
    pool = pool_for(device, worker_threads())

    def write_now(names: Sequence[str], images: Tensor) -> None:
        for name, image in zip(names, images, strict=True):
            write_one(folder / name, image)

    def write_later(names: Sequence[str], images: Tensor) -> None:
        host = copy_to_host(images)
        while len(pending) > len(names):
            pending.popleft().result()
        for i, name in enumerate(names):
            pending.append(pool.submit(lambda name, i: write_one(folder / name, host()[i]), name, i))

    try:
        yield write_later if cores_are_idle(device) else write_now
        for future in pending:
            future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def missing(folder: Path, names: Sequence[str]) -> list[str]:
    """Those of `names` that are not in `folder`, or are PNGs that a power cut left empty or half written."""
    present = set(os.listdir(folder)) if folder.is_dir() else set()
    return [name for name in names if name not in present or not _is_whole(folder / name)]


def _is_whole(path: Path) -> bool:
    """Whether a PNG begins and ends as one does. Its pixels are not decoded; other files are not read."""
    if path.suffix != ".png":
        return True
    with suppress(OSError), open(path, "rb") as file:
        begins = file.read(len(PNG_BEGIN)) == PNG_BEGIN
        file.seek(-len(PNG_END), os.SEEK_END)
        return begins and file.read() == PNG_END
    return False


def sheet_of_files(
    path: Path,
    folder: Path,
    rows: Sequence[Sequence[str]],
    row_names: Sequence[str] = (),
    column_names: Sequence[str] = (),
) -> None:
    """A contact sheet of the files `rows` of `folder`, with names at the left and above, if there are any."""

    def cell(name: str) -> Image.Image:
        with Image.open(folder / name) as image:
            return _cell(image)

    _write_sheet(path, [[cell(name) for name in row] for row in rows], row_names, column_names)


def sheet(path: Path, rows: Sequence[Sequence[Tensor]]) -> None:
    """A contact sheet of uint8 images (1 or 3, h, w)."""
    _write_sheet(path, [[_cell(_to_pil(image)) for image in row] for row in rows])


def _write_sheet(
    path: Path,
    cells: Sequence[Sequence[Image.Image]],
    row_names: Sequence[str] = (),
    column_names: Sequence[str] = (),
) -> None:
    first, font = cells[0][0], ImageFont.load_default()
    width, height = first.width + GAP, first.height + GAP
    # Make room for the names.
    left = max((math.ceil(font.getlength(name)) + 2 * GAP for name in row_names), default=0)
    top = math.ceil(font.getbbox("0")[3]) + GAP if column_names else 0
    size = (left + max(map(len, cells)) * width + GAP, top + len(cells) * height + GAP)
    picture = Image.new(first.mode, size, "white")
    for y, row in enumerate(cells):
        for x, cell in enumerate(row):
            picture.paste(cell, (left + GAP + x * width, top + GAP + y * height))

    draw = ImageDraw.Draw(picture)
    for y, name in enumerate(row_names):
        draw.text((left - GAP, top + y * height + height / 2), name, "black", font, anchor="rm")
    for x, name in enumerate(column_names):
        draw.text((left + x * width + width / 2, top), name, "black", font, anchor="mb")
    with files.atomic(path, durable=False) as temporary:
        picture.save(temporary, format="PNG", optimize=True)


def _cell(image: Image.Image) -> Image.Image:
    """Small images are enlarged by a whole factor, without smoothing."""
    factor = -(-CELL // max(image.size))
    cell = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    cell.thumbnail((CELL_MAX, CELL_MAX))
    return cell


def _to_pil(image: Tensor) -> Image.Image:
    array = image.permute(1, 2, 0).cpu().numpy()
    return Image.fromarray(np.ascontiguousarray(array[:, :, 0] if array.shape[2] == 1 else array))
