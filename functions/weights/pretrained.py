"""The published DDPM weights: where they lie, what they hash to, and fetching them into the user's cache."""

import logging
import os
from dataclasses import dataclass
from pathlib import Path

import pooch
import requests

from configs import DataConfig
from functions import files


@dataclass(frozen=True)
class Published:
    """One converted file; `heibox` is its id at heibox.uni-heidelberg.de."""

    name: str
    step: int
    heibox: str
    md5: str

    @property
    def url(self) -> str:
        return f"https://heibox.uni-heidelberg.de/f/{self.heibox}/?dl=1"

    @property
    def path(self) -> Path:
        """Where earlier tools keep the file too, so that theirs are found."""
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        return cache / "diffusion_models_converted" / f"ema_diffusion_{self.name}_model" / f"model-{self.step}.ckpt"


EMA_WEIGHTS = {
    "CIFAR10": Published("cifar10", 790000, "2e4f01e2d9ee49bab1d5", "1fa350b952534ae442b1d5235cce5cd3"),
    "bedroom": Published("lsun_bedroom", 2388000, "b95206528f384185889b", "1921fa46b66a3665e450e42f36c2720f"),
    "cat": Published("lsun_cat", 1761000, "0701aac3aa69457bbe34", "646f23f4821f2459b8bafc57fd824558"),
    "church_outdoor": Published("lsun_church", 4432000, "44ccb50ef3c6436db52e", "fdc68a23938c2397caba4a260bc2445f"),
}


def published_weights(data: DataConfig) -> Published:
    """The EMA weights that were trained on the config's data set. Raises ValueError where none were published."""
    key = data.category if data.dataset == "LSUN" else data.dataset
    if key not in EMA_WEIGHTS:
        there = "CIFAR10, and LSUN's bedroom, cat and church_outdoor"
        raise ValueError(f"no DDPM weights were published for {key}; there are {there}; name your own with --ckpt")
    return EMA_WEIGHTS[key]


def fetch(weights: Published) -> Path:
    """The verified file, from the cache or downloaded into it. Raises ValueError where it can't be had."""
    path = weights.path
    if path.exists() and files.md5(path) != weights.md5:
        [(_, aside)] = files.move_aside(path)
        logging.warning(f"{path} does not have the published md5 and was moved to {aside}")
    try:
        pooch.retrieve(weights.url, f"md5:{weights.md5}", fname=path.name, path=path.parent, progressbar=True)
    except (requests.RequestException, OSError, ValueError) as error:
        raise ValueError(
            f"the weights could not be downloaded ({type(error).__name__}): fetch {weights.url} by hand "
            f"to {path}; its md5 must be {weights.md5}"
        ) from None
    return path
