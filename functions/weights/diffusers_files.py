"""The files of a diffusers folder that hold its network and an average: whole, in half precision, shards."""

import logging
import re
from pathlib import Path

from torch import Tensor

from configs import door
from configs.refusal import Refusal
from functions.weights import storage, wrappers
from functions.weights.checkpoint import is_weights

STEM = "diffusion_pytorch_model"
SAFETENSORS, BIN = f"{STEM}.safetensors", f"{STEM}.bin"
_VARIANTS = ("", ".fp16", ".bf16", ".fp32", ".non_ema")  # in the order in which they are taken
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
_EMA = re.compile(r"(?:^|[._-])ema(?:$|[._-])")


def network(folder: Path) -> dict[str, Tensor]:
    """The weights of the network. Raises Refusal where there are none, or a shard is missing."""
    found = _in(folder, ("unet", ""))
    if found is None:
        raise Refusal(
            f"{folder} holds no weights: neither {SAFETENSORS} nor {BIN}, nor a variant or shards of them"
        )
    return found


def average(folder: Path) -> dict[str, Tensor] | None:
    """The average beside the network: in a folder such as unet_ema/, or in a file such as ema.safetensors.

    Raises Refusal where there are several.
    """
    places = [path for path in (folder, folder / "unet") if path.is_dir()]
    entries = sorted(entry for place in places for entry in place.iterdir())
    names = [entry for entry in entries if _EMA.search(entry.name.lower()) and "non_ema" not in entry.name]
    folders = [entry for entry in names if entry.is_dir() and _file_in(entry, ("",)) is not None]
    single = [entry for entry in names if entry.is_file() and entry.suffix in _WEIGHTS]
    if len(folders + single) > 1:
        several = ", ".join(str(path.relative_to(folder)) for path in folders + single)
        raise Refusal(f"{folder} holds several averages, {several}; leave the one you mean")
    if folders:
        return _in(folders[0], ("",))
    return _state_dict(single[0]) if single else None


def _in(folder: Path, parts: tuple[str, ...]) -> dict[str, Tensor] | None:
    path = _file_in(folder, parts)
    if path is None:
        return None
    if path.name not in (SAFETENSORS, BIN):
        logging.info(f"weights of {folder}: {path.name}")
    return _shards(path) if path.suffix == ".json" else _state_dict(path)


def _file_in(folder: Path, parts: tuple[str, ...]) -> Path | None:
    """A whole file or the index of shards, the full precision first."""
    for variant in _VARIANTS:
        for kind in ("safetensors", "bin"):
            whole, index = f"{STEM}{variant}.{kind}", f"{STEM}.{kind}.index{variant}.json"
            for path in (folder / part / name for name in (whole, index) for part in parts):
                if path.is_file():
                    return path
    return None


def _shards(index: Path) -> dict[str, Tensor]:
    """The weights of all files that an index names."""
    with door.reading(index, "an index of shards"):
        files = sorted(set(door.read_json(index, "an index of shards")["weight_map"].values()))
    weights: dict[str, Tensor] = {}
    for name in files:
        path = index.parent / Path(str(name)).name  # beside the index, nowhere else
        if not path.is_file():
            raise Refusal(f"{index} names the shard {path.name}, which is missing; download it again")
        weights |= _state_dict(path)
    return weights


def _state_dict(path: Path) -> dict[str, Tensor]:
    content = storage.read(path)
    if not is_weights(content):
        raise Refusal(f"{path} holds {wrappers.describe(content)}, where a state dict of tensors must be")
    return content
