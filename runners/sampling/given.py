"""The pictures that a task is given: a split of the data, or a folder."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from configs.options import Options
from configs.refusal import Refusal
from datasets.pictures import Pictures, Shape, exact_pictures
from datasets.tree import Files
from functions.disk.files import digest
from functions.metrics.metrics import Number
from runners.diffusion import Diffusion
from runners.evaluation import reference


class Given:
    """The first n of the pictures `what`: train, test or a folder. n is --num_samples, by default all."""

    def __init__(self, what: str, options: Options, diffusion: Diffusion):
        """Raises Refusal where there are none, or fewer than --num_samples."""
        self.diffusion = diffusion
        source = reference.named(what, options, diffusion.config)
        self.images, self.name, self.hash = source.images, source.name, source.hash
        self.n = at_most(options, len(self.images), source.name)

    def __len__(self) -> int:
        return self.n

    def uint8(self, indices: Sequence[int]) -> Tensor:
        """(b, c, h, w). A batch may go beyond the end: it begins again there."""
        return torch.stack([self.images[i % self.n] for i in indices])

    def in_model_range(self, indices: Sequence[int]) -> Tensor:
        """The same, float32, without dequantization."""
        return self.diffusion.from_images(self.uint8(indices))

    def mean_squared_error(self, folder: Path, where: Tensor | None = None) -> Number:
        """Of {i}.png in `folder` against these, on [0, 1] and by dimension: the mean over the images.

        where: bool (c, h, w), the dimensions that count; None for all.
        """
        counted = torch.ones(self.diffusion.image_shape, dtype=torch.bool) if where is None else where
        made = exact_pictures(folder, [f"{i}.png" for i in range(self.n)], self.diffusion.image_shape)
        pairs = ((made[i].double(), self.images[i].double()) for i in range(self.n))
        return Number(sum(((a - b) / 255)[counted].square().mean().item() for a, b in pairs) / self.n)


class OnePicture:
    """A picture's file, fitted to the model's size."""

    def __init__(self, file: str, diffusion: Diffusion):
        """Raises Refusal where it is not one."""
        path, data = Path(file), diffusion.config.data
        if not path.is_file():
            raise Refusal(f"--between {file} is neither a picture's file nor the number of a latent")
        pictures = Pictures(Files(path.parent, [path.name]), data.shape, background=data.background)
        self.image, self.hash, self.diffusion = pictures[0], digest(path, "sha256"), diffusion

    def in_model_range(self, indices: Sequence[int]) -> Tensor:
        """float32 (b, c, h, w), it alone."""
        return self.diffusion.from_images(self.image.expand(len(indices), -1, -1, -1))


def known_pixels(mask: str | None, shape: Shape, *, all_known: bool) -> Tensor:
    """bool (c, h, w), true where a pixel is known: where the picture `mask` is lighter than middle grey.

    Without one all but a square in the middle, of half the size. Raises Refusal where it does not fit.
    """
    known = torch.ones(shape, dtype=torch.bool)
    if all_known:
        return known
    if mask is None:
        middle = slice(shape[1] // 4, shape[1] - shape[1] // 4)
        known[:, middle, middle] = False
        return known
    path = Path(mask)
    if not path.is_file():
        raise Refusal(f"--mask {mask} does not exist")
    known &= exact_pictures(path.parent, [path.name], (1, *shape[1:]))[0] >= 128
    if known.all() or not known.any():
        colour = "white" if known.all() else "black"
        raise Refusal(f"--mask {mask} is all {colour}: white is known, black is to be found")
    return known


def at_most(options: Options, n: int, of: str) -> int:
    """--num_samples, or all n. Raises Refusal where more are asked for."""
    if "num_samples" not in options.given:
        return n
    if options.num_samples > n:
        raise Refusal(f"--num_samples is {options.num_samples}; {of} has {n}")
    return options.num_samples
