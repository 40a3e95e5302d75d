"""Checkpoints on disk, in every format. Reading one never runs code that it holds."""

import hashlib
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from configs import Config, door
from configs.refusal import Refusal
from functions.weights import diffusers, diffusers_config, native, storage, upstream, wrappers
from functions.weights.checkpoint import Checkpoint, checkpoint_of, is_weights


def load_checkpoint(path: Path) -> Checkpoint:
    """A checkpoint of any format. Raises Refusal if it is missing, damaged, another thing, or holds code,
    and for weights that are not finite.
    """
    return identify(path)[1]


def identify(path: Path) -> tuple[str, Checkpoint]:
    """The format in words and the checkpoint, by the content, not the name. Raises as `load_checkpoint`."""
    with door.reading(path, "a checkpoint"):
        file_format, checkpoint = _identify(path)
        for kind, weights in (("", checkpoint.model), ("of the EMA ", checkpoint.ema or {})):
            for name, value in weights.items():
                if not value.isfinite().all():
                    raise Refusal(
                        f"{path}: the parameter {name} {kind}is not finite: these weights are of no use"
                    )
        return file_format, checkpoint


def _identify(path: Path) -> tuple[str, Checkpoint]:
    if diffusers_config.is_folder(path):
        return diffusers.load(path)
    if not path.is_file():
        needed = ": the folder has neither a run's ckpt.pth nor diffusers' config.json"
        raise Refusal(f"there is no checkpoint at {path}{needed if path.is_dir() else ''}")
    content = storage.read(path)
    if checkpoint := native.unpack(content):
        return "this program's checkpoint", checkpoint
    if checkpoint := upstream.unpack(content):
        return f"upstream's list of {len(content)}", checkpoint
    if is_weights(content) and diffusers.MARK in content:
        raise Refusal(f"{path} holds a diffusers network: name its folder, {path.parent}, instead")
    found = wrappers.find(content, str(path))
    if found is None and not is_weights(content):
        raise Refusal(
            f"{path} holds {wrappers.describe(content)}: not this program's checkpoint, nor upstream's list "
            "[model, optimizer, epoch, step, ema], nor a state dict of tensors of this network"
        )
    if found is None:
        return "a bare state dict", Checkpoint(content)
    return _in_words(path, content), checkpoint_of(found.raw, found.ema)


def _in_words(path: Path, content: Any) -> str:
    if not is_weights(content):
        return wrappers.describe(content)
    return "a safetensors file of bare weights" if storage.is_safetensors(path) else "a bare state dict"


def load_for(config: Config, path: Path) -> Checkpoint:
    """As `load_checkpoint`. Raises Refusal, too, if a diffusers folder describes another network."""
    if diffusers_config.is_folder(path):
        diffusers_config.check(path, config)
    return load_checkpoint(path)


def load_into(model: nn.Module, weights: dict[str, Tensor], source: str) -> None:
    """Copy `weights` into `model`. Raises as `check_fit`."""
    check_fit(model, weights, source)
    model.load_state_dict(weights)


def check_fit(model: nn.Module, weights: dict[str, Tensor], source: str) -> None:
    """Raise Refusal, naming `source` and the first parameter that is missing, unknown or of another shape."""
    needed, given = ({k: tuple(v.shape) for k, v in w.items()} for w in (model.state_dict(), weights))
    for name in needed | given:
        if name not in given:
            raise Refusal(f"{source} has no parameter {name} {needed[name]}, which the config's network has")
        if name not in needed:
            raise Refusal(f"{source} has a parameter {name} {given[name]}; the config's network has none")
        if given[name] != needed[name]:
            raise Refusal(f"{source} does not fit the config: {name} is {given[name]}, not {needed[name]}")


def weights_hash(weights: dict[str, Tensor]) -> str:
    """SHA-256 over names, shapes and float32 values: the same for the same weights in any format."""
    digest = hashlib.sha256()
    for name, value in sorted(weights.items()):
        digest.update(f"{name} {tuple(value.shape)} ".encode())
        digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
