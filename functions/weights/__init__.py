"""Weights on disk. This package is the only user of torch.save and torch.load; loading never runs code."""

import hashlib
import pickle
import re
import struct
from pathlib import Path

import torch
from torch import Tensor, nn

from functions.weights import native, upstream
from functions.weights.checkpoint import Checkpoint

# What torch.load and its unpickler raise for a file that is not, or no longer, one of its own.
_UNREADABLE = (
    RuntimeError, pickle.UnpicklingError, EOFError, LookupError, AttributeError, TypeError, ValueError, OverflowError,
    AssertionError, struct.error,
)  # fmt: skip


def load_checkpoint(path: Path) -> Checkpoint:
    """The program's own checkpoints, upstream's lists, and bare state dicts, by what the file holds.

    Raises ValueError with one sentence for a file that is missing, truncated, of another kind, or holding code.
    """
    if not path.is_file():
        raise ValueError(f"there is no checkpoint at {path}" + (", which is a folder" if path.is_dir() else ""))
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        raise ValueError(_why_unreadable(path, str(error))) from None
    for reader in (native, upstream):
        checkpoint = reader.unpack(content)
        if checkpoint is not None:
            return checkpoint
    raise ValueError(
        f"{path} holds a {type(content).__name__}: neither this program's checkpoint, nor upstream's list "
        "[model, optimizer, epoch, step, ema], nor a state dict of tensors"
    )


def load_into(model: nn.Module, weights: dict[str, Tensor], source: str) -> None:
    """Copy `weights` into `model`. Raises ValueError, naming the first parameter that does not fit and both shapes."""
    check_fit(model, weights, source)
    model.load_state_dict(weights)


def check_fit(model: nn.Module, weights: dict[str, Tensor], source: str) -> None:
    """Raise as `load_into` does, without loading; `source` names the file in the message."""
    expected = model.state_dict()
    for name, param in expected.items():
        if name not in weights:
            raise ValueError(f"{source} has no parameter {name} {tuple(param.shape)}, which the config's network has")
        if weights[name].shape != param.shape:
            raise ValueError(
                f"{source} does not fit the config: {name} has shape {tuple(weights[name].shape)} there "
                f"and {tuple(param.shape)} in the config's network"
            )
    for name, value in weights.items():
        if name not in expected:
            raise ValueError(f"{source} has a parameter {name} {tuple(value.shape)}, which the config's network has not")


def weights_hash(weights: dict[str, Tensor]) -> str:
    """SHA-256 over names, shapes and float32 values: the same for the same weights in any format."""
    digest = hashlib.sha256()
    for name, value in sorted(weights.items()):
        digest.update(f"{name} {tuple(value.shape)} ".encode())
        digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _why_unreadable(path: Path, message: str) -> str:
    code = re.search(r"(?:Unsupported (?:global|operand|class)\S*|GLOBAL)[: ]+(?:GLOBAL )?([\w.]+)", message)
    if code:
        return f"{path} holds code ({code[1]}), where a checkpoint holds tensors and plain values; it was not run"
    return f"{path} is damaged or not a checkpoint ({message.splitlines()[0][:200] if message else 'it ends early'})"
