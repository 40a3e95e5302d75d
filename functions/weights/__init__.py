"""Weights on disk. This package is the only user of torch.save and torch.load; loading never runs code."""

import hashlib
from pathlib import Path

from torch import Tensor, nn

from configs import Config
from configs.refusal import Refusal
from functions.weights import diffusers, diffusers_config, native, storage, upstream
from functions.weights.checkpoint import Checkpoint


def load_checkpoint(path: Path) -> Checkpoint:
    """The program's own checkpoints, upstream's lists, bare state dicts, safetensors and diffusers folders.

    Raises Refusal with one sentence for a file that is missing, truncated, of another kind, or holding code.
    """
    return identify(path)[1]


def identify(path: Path) -> tuple[str, Checkpoint]:
    """The format, in words, and the checkpoint: told by what the file holds, not by its name. Raises as `load_checkpoint`."""
    if diffusers_config.is_folder(path):
        return diffusers.load(path)
    if not path.is_file():
        raise Refusal(f"there is no checkpoint at {path}" + (", which is a folder" if path.is_dir() else ""))
    content = storage.read(path)
    if diffusers.has_its_names(content):
        raise Refusal(
            f"{path} holds a diffusers network: name its folder, {path.parent}, where config.json describes it"
        )
    bare = "a safetensors file of bare weights" if storage.is_safetensors(path) else "a bare state dict"
    if (checkpoint := native.unpack(content)) is not None:
        return "this program's checkpoint", checkpoint
    if (checkpoint := upstream.unpack(content)) is not None:
        return f"upstream's list of {len(content)}" if isinstance(content, list | tuple) else bare, checkpoint
    raise Refusal(
        f"{path} holds a {type(content).__name__}: neither this program's checkpoint, nor upstream's list "
        "[model, optimizer, epoch, step, ema], nor a state dict of tensors"
    )


def load_for(config: Config, path: Path) -> Checkpoint:
    """As `load_checkpoint`; a diffusers folder's own config is held against `config` first."""
    if diffusers_config.is_folder(path):
        diffusers_config.check(path, config)
    return load_checkpoint(path)


def load_into(model: nn.Module, weights: dict[str, Tensor], source: str) -> None:
    """Copy `weights` into `model`. Raises Refusal, naming the first parameter that does not fit and both shapes."""
    check_fit(model, weights, source)
    model.load_state_dict(weights)


def check_fit(model: nn.Module, weights: dict[str, Tensor], source: str) -> None:
    """Raise as `load_into` does, without loading; `source` names the file in the message."""
    expected = model.state_dict()
    for name, param in expected.items():
        if name not in weights:
            raise Refusal(
                f"{source} has no parameter {name} {tuple(param.shape)}, which the config's network has"
            )
        if weights[name].shape != param.shape:
            raise Refusal(
                f"{source} does not fit the config: {name} has shape {tuple(weights[name].shape)} there "
                f"and {tuple(param.shape)} in the config's network"
            )
    for name, value in weights.items():
        if name not in expected:
            raise Refusal(
                f"{source} has a parameter {name} {tuple(value.shape)}, which the config's network has not"
            )


def weights_hash(weights: dict[str, Tensor]) -> str:
    """SHA-256 over names, shapes and float32 values: the same for the same weights in any format."""
    digest = hashlib.sha256()
    for name, value in sorted(weights.items()):
        digest.update(f"{name} {tuple(value.shape)} ".encode())
        digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
