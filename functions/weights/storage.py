"""Tensors in a file: torch's pickles, which are never run, and safetensors."""

import pickle
import re
import struct
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from configs.refusal import Refusal
from functions.disk import files

# What torch.load and its unpickler raise for a file that is not, or no longer, one of its own.
_UNREADABLE = (
    RuntimeError, pickle.UnpicklingError, EOFError, LookupError, AttributeError, TypeError, ValueError, OverflowError,
    AssertionError, struct.error,
)  # fmt: skip


def read(path: Path) -> Any:
    """What the file holds, on the CPU. Raises Refusal with one sentence for one that is damaged or holds code."""
    if is_safetensors(path):
        return read_safetensors(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        raise Refusal(_why_unreadable(path, str(error))) from None


def read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise Refusal(_why_unreadable(path, str(error))) from None


def is_safetensors(path: Path) -> bool:
    """By its content: a header's length in 8 bytes, then the header, which is JSON."""
    with open(path, "rb") as file:
        return path.suffix == ".safetensors" or file.read(9)[8:] == b"{"


def save(path: Path, content: Any) -> None:
    """Write a torch file; it appears whole. Raises OSError where the disk does not take it."""
    with files.atomic(path) as temporary, open(temporary, "wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # torch's own, raised over the file's
            raise error.__context__ if isinstance(error.__context__, OSError) else error from None


def save_safetensors(path: Path, weights: dict[str, Tensor]) -> None:
    """As `save`, in the order of names that safetensors has; the metadata is what diffusers asks for."""
    with files.atomic(path) as temporary:
        try:
            save_file(
                {name: value.contiguous() for name, value in weights.items()},
                temporary,
                metadata={"format": "pt"},
            )
        except SafetensorError as error:
            raise OSError(f"{path} could not be written: {error}") from None


def _why_unreadable(path: Path, message: str) -> str:
    code = re.search(r"(?:Unsupported (?:global|operand|class)\S*|GLOBAL)[: ]+(?:GLOBAL )?([\w.]+)", message)
    if code:
        return f"{path} holds code ({code[1]}), where a checkpoint holds tensors and plain values; it was not run"
    return f"{path} is damaged or not a checkpoint ({message.splitlines()[0][:200] if message else 'it ends early'})"
