"""Latents on disk: x_T of one image in an .npy file, of many in an .npz file with what made them."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from configs import door
from configs.refusal import Refusal
from functions.disk import files


def write_npy(path: Path, x: Tensor) -> None:
    """x (c, h, w) as float32. The file appears whole."""
    with files.atomic(path, durable=False) as temporary, open(temporary, "wb") as file:
        np.save(file, x.cpu().contiguous().numpy())


def write_latents(path: Path, parts: Sequence[Path], manifest: Path) -> None:
    """The arrays of `parts` as one, "latents" (n, c, h, w), and the text of their manifest, "manifest"."""
    latents = np.stack([np.load(part) for part in parts])
    with files.atomic(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, latents=latents, manifest=manifest.read_text(encoding="utf-8"))


def read_latents(path: Path, shape: tuple[int, int, int], t: float) -> Tensor:
    """float32 (n, *shape). A file without a manifest will do. Raises Refusal where it is another thing.

    t: the timestep that sampling begins at; latents that were encoded to another are mentioned.
    """
    with door.reading(path, "an .npz file of latents, as --encode writes it"):
        with np.load(door.regular(path), allow_pickle=False) as content:
            latents = content["latents"]
            text = str(content["manifest"]) if "manifest" in content else ""
        made = json.loads(text)["decides"]["timesteps"][-1] if text else t
        found = torch.from_numpy(latents).float()
    if found.shape[1:] != shape or not len(found):
        has = f"latents {tuple(found.shape)}"
        raise Refusal(f"{path} has {has}; this network takes n of {shape}")
    if not found.isfinite().all():
        raise Refusal(f"{path} holds numbers that are not finite")
    if made != t:
        logging.warning(
            f"{path} was encoded to t = {made}, and sampling begins at t = {t}: --timesteps differ"
        )
    return found
