"""From pictures to uint8 tensors of the model's size. PIL does it: bilinear with antialiasing, as upstream's data were made."""

from collections.abc import Iterable

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from configs import DataConfig


def to_model_size(image: Image.Image, data: DataConfig) -> Tensor:
    """uint8 (channels, image_size, image_size): the shorter side is resized, then the centre cropped."""
    size = data.image_size
    array = np.array(fit(image.convert("L" if data.channels == 1 else "RGB"), size))
    return torch.from_numpy(array.reshape(size, size, data.channels)).permute(2, 0, 1).contiguous()


def fit(image: Image.Image, size: int) -> Image.Image:
    """size x size: the shorter side is resized, then the centre cropped (torchvision's Resize and CenterCrop)."""
    if image.size == (size, size):
        return image
    shorter = min(image.size)
    width, height = (max(size, int(side * size / shorter)) for side in image.size)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return image.resize((width, height), Image.Resampling.BILINEAR).crop((left, top, left + size, top + size))


def in_memory(arrays: Iterable[np.ndarray], data: DataConfig, pad: int = 0) -> Tensor:
    """uint8 pictures (h, w) or (h, w, 3), padded with black, as one tensor (n, channels, image_size, image_size)."""
    return torch.stack(
        [to_model_size(ImageOps.expand(Image.fromarray(array), pad), data) for array in arrays]
    )
