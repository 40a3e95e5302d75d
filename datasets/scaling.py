"""From 8-bit images to the model's range and back, with the random part of a training batch."""

from typing import Protocol

import torch
from torch import Tensor

from configs import DataConfig


class Draws(Protocol):
    """Random numbers for the rows of a batch: (rows, *shape)."""

    def uniform(self, *shape: int) -> Tensor: ...
    def normal(self, *shape: int) -> Tensor: ...


def as_trained_on(images: Tensor, data: DataConfig, draws: Draws) -> Tensor:
    """uint8 (b, c, h, w) -> a training batch: flipped where the config says so, in the model's range."""
    return to_model_range(random_flip(images, draws) if data.random_flip else images, data, draws)


def random_flip(images: Tensor, draws: Draws) -> Tensor:
    """Each image mirrored with probability one half. (b, c, h, w)"""
    return torch.where(draws.uniform(1, 1, 1) < 0.5, images.flip(-1), images)


def to_model_range(images: Tensor, data: DataConfig, draws: Draws | None = None) -> Tensor:
    """uint8 (b, c, h, w) -> float32: dequantization, then [-1, 1], logits or [0, 1], as the config says.

    draws: None for no dequantization, as for images that are to come back as they were.
    """
    x = images.float() / 255
    if draws and data.uniform_dequantization:
        x = x * (255 / 256) + draws.uniform(*x.shape[1:]) / 256
    if draws and data.gaussian_dequantization:
        x = x + draws.normal(*x.shape[1:]) * 0.01
    if data.rescaled:
        return 2 * x - 1
    if data.logit_transform:
        x = 1e-6 + (1 - 2e-6) * x  # away from 0 and 1
        return x.log() - (-x).log1p()
    return x


def from_model_range(x: Tensor, data: DataConfig) -> Tensor:
    """The model's range -> [0, 1], clamped as upstream does. (b, c, h, w)"""
    if data.logit_transform:
        x = x.sigmoid()
    elif data.rescaled:
        x = (x + 1) / 2
    return x.clamp(0, 1)
