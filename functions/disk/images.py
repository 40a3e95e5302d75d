"""8-bit images on disk: the only PNG writer, which of a set are missing, and contact sheets."""

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from configs.refusal import Refusal
from functions.disk import files
from functions.runtime.threads import thread_count, to_host

SHEET_CELL, SHEET_CELL_MAX = (
    48,
    128,
)  # pixels: smaller images are enlarged by a whole factor, larger ones reduced


def to_uint8(images: Tensor) -> Tensor:
    """[0, 1] floats to bytes, rounding half up, as torchvision's save_image does. Any shape, any device."""
    return images.mul(255).add(0.5).clamp(0, 255).to(torch.uint8)


def write_png(path: Path, image: Tensor) -> None:
    """Write one uint8 image (1 or 3, h, w); it appears whole."""
    with files.atomic(path, durable=False) as temporary:
        _to_pil(image).save(temporary, format="PNG")


@contextmanager
def png_writer(folder: Path, *, beside: bool) -> Iterator[Callable[[Sequence[str], Tensor], None]]:
    """A function that has uint8 images (b, c, h, w), of any device, written to `folder` under b names.

    beside: by threads, for a network that runs elsewhere than on the cores. While one batch waits to be written, the next
    may be made; who is faster than that waits. An error is raised by the next call or at the end of the block; then, or
    when the block fails, what still waits is not written. Otherwise the call itself writes: threads would cost more time
    than they save where the network takes all cores.
    """
    pending: deque[Future[None]] = deque()
    pool = ThreadPoolExecutor(thread_count())

    def write(names: Sequence[str], images: Tensor) -> None:
        if not beside:
            for name, image in zip(names, images, strict=True):
                write_png(folder / name, image)
            return
        host = to_host(images)
        while len(pending) > len(names):
            pending.popleft().result()
        pending.extend(
            pool.submit(lambda name, i: write_png(folder / name, host()[i]), name, i)
            for i, name in enumerate(names)
        )

    try:
        yield write
        for future in pending:
            future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def read_png(path: Path, shape: tuple[int, int, int]) -> Tensor:
    """A picture as uint8 (c, h, w). Raises Refusal where it can't be decoded, or has another size than `shape`."""
    channels, height, width = shape
    check_size(path, shape)
    try:
        with Image.open(path) as image:
            array = np.array(image.convert("L" if channels == 1 else "RGB"))
    except (OSError, SyntaxError, ValueError) as error:
        raise Refusal(f"the image {path} cannot be decoded ({error})") from None
    return torch.from_numpy(array.reshape(height, width, channels)).permute(2, 0, 1)


def check_size(path: Path, shape: tuple[int, int, int]) -> None:
    """Raise Refusal where the picture is not one of `shape` (c, h, w); only its header is read."""
    _, height, width = shape
    try:
        with Image.open(path) as image:
            size = image.size
    except OSError as error:
        raise Refusal(f"the image {path} cannot be decoded ({error})") from None
    if size != (width, height):
        raise Refusal(
            f"the image {path} has {size[0]} x {size[1]} pixels; all must have {width} x {height}, the config's size"
        )


def missing(folder: Path, names: Sequence[str]) -> list[int]:
    """The positions of `names` that are not files of `folder`."""
    there = set(os.listdir(folder)) if folder.is_dir() else set()
    return [i for i, name in enumerate(names) if name not in there]


def contact_sheet(path: Path, folder: Path, rows: Sequence[Sequence[str]]) -> None:
    """One picture of the files `rows` of `folder`, small images enlarged without smoothing."""
    _write_sheet(path, [[_cell_of_file(folder / name) for name in row] for row in rows])


def sheet(path: Path, rows: Sequence[Sequence[Tensor]]) -> None:
    """One picture of uint8 images (1 or 3, h, w), small ones enlarged without smoothing."""
    _write_sheet(path, [[_cell(_to_pil(image)) for image in row] for row in rows])


def _write_sheet(path: Path, cells: Sequence[Sequence[Image.Image]]) -> None:
    first, gap = cells[0][0], 2
    width, height = first.width + gap, first.height + gap
    sheet = Image.new(first.mode, (max(map(len, cells)) * width + gap, len(cells) * height + gap), "white")
    for y, row in enumerate(cells):
        for x, cell in enumerate(row):
            sheet.paste(cell, (gap + x * width, gap + y * height))
    with files.atomic(path, durable=False) as temporary:
        sheet.save(temporary, format="PNG", optimize=True)


def _cell_of_file(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return _cell(image)


def _cell(image: Image.Image) -> Image.Image:
    factor = -(-SHEET_CELL // max(image.size))
    cell = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    cell.thumbnail((SHEET_CELL_MAX, SHEET_CELL_MAX))
    return cell


def _to_pil(image: Tensor) -> Image.Image:
    array = image.permute(1, 2, 0).cpu().numpy()
    return Image.fromarray(np.ascontiguousarray(array[:, :, 0] if array.shape[2] == 1 else array))
