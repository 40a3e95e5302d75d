"""Sampled folders: made through main.py, and read back."""

import numpy as np
from PIL import Image

from support.program import main, sampling


def sample(run, exp, folder, *arguments, mode="--fid", code=0, **options):
    command = sampling(run.config, run.ckpt, exp, "-i", folder, *arguments, mode=mode)
    return main(*command, code=code, **options)


def pixels(folder, name) -> np.ndarray:
    return np.asarray(Image.open(folder / name)).astype(int)


def pngs(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.png")}


def grey_levels(folder, n):
    return np.stack([np.asarray(Image.open(folder / f"{i}.png")).astype(int) for i in range(n)])
