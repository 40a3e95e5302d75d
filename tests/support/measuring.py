"""Commands that measure samples, what they wrote, and feature extractors as exported programs."""

import json
from pathlib import Path

import torch

from support.program import sampling

N, STEPS = 30, 5


def command(run, exp, *arguments, folder="f", n=N) -> list:
    fixed = ("-i", folder, "--num_samples", n, "--timesteps", STEPS)
    return sampling(run.config, run.ckpt, exp, *fixed, *arguments)


def measurements(exp, folder="f") -> list[dict]:
    return json.loads((exp / "image_samples" / f"{folder}.metrics.json").read_text())["measurements"]


def results(exp, folder="f") -> dict:
    return measurements(exp, folder)[0]["metrics"]


class Projection(torch.nn.Module):
    """uint8 (n, 3, size, size) to 16 features, with seeded random weights."""

    def __init__(self, size: int):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = torch.nn.Parameter(torch.randn(3 * size * size, 16, generator=generator) / 8)

    def forward(self, images):
        return torch.tanh((images.float() / 255).flatten(1) @ self.weight)


def export(path: Path, module: torch.nn.Module, size: int, any_n: bool = True) -> Path:
    """Save a module as an exported program for --features, of images of size x size."""
    example = torch.zeros(4, 3, size, size, dtype=torch.uint8)
    shapes = ({0: torch.export.Dim("n")},) if any_n else None
    torch.export.save(torch.export.export(module, (example,), dynamic_shapes=shapes), path)
    return path


class Constant(torch.nn.Module):
    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, images):
        return images.float().flatten(1)[:, :4] * self.value
