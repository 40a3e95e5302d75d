"""Tensors in a file: torch's pickles, whose code is never run, and safetensors."""

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

# What safetensors, torch.load and its unpickler raise for a damaged file or a file of another kind.
_UNREADABLE = (
    SafetensorError, RuntimeError, pickle.UnpicklingError, EOFError, LookupError, AttributeError, TypeError,
    ValueError, OverflowError, AssertionError, struct.error,
)  # fmt: skip
_CODE = re.compile(r"(?:Unsupported (?:global|class)\S*|GLOBAL)[: ]+(?:GLOBAL )?([\w.]+)")


def read(path: Path) -> Any:
    """What the file holds, on the CPU. Raises Refusal for a file that is damaged or holds code."""
    try:
        return load_file(path) if is_safetensors(path) else torch.load(path, "cpu", weights_only=True)
    except _UNREADABLE as error:
        message = str(error) or "it ends early"
    if code := _CODE.search(message):
        raise Refusal(f"{path} holds code ({code[1]}) besides tensors and plain values; it was not run")
    why = "torch cannot read it" if "Unsupported operand" in message else message.splitlines()[0][:200]
    raise Refusal(f"{path} is damaged or not a checkpoint ({why})")


def is_safetensors(path: Path) -> bool:
    """Whether it is a safetensors file, which begins with the length of a JSON header in 8 bytes."""
    with open(path, "rb") as file:
        return path.suffix == ".safetensors" or file.read(9)[8:] == b"{"


def save(path: Path, content: Any) -> None:
    """Write a torch file; it appears whole. Raises OSError if the disk does not take it."""
    with files.atomic(path) as temporary, open(temporary, "wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # torch's own, raised over the file's
            raise error.__context__ if isinstance(error.__context__, OSError) else error from None


def save_safetensors(path: Path, weights: dict[str, Tensor]) -> None:
    """As `save`, for safetensors, with the metadata that diffusers asks for."""
    contiguous = {name: value.contiguous() for name, value in weights.items()}
    with files.atomic(path) as temporary:
        try:
            save_file(contiguous, temporary, metadata={"format": "pt"})
        except SafetensorError as error:
            raise OSError(f"{path} could not be written: {error}") from None
