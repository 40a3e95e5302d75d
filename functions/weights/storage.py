"""Tensors in a file: torch's pickles, whose code is never run, and safetensors."""

import pickle
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from configs import door
from configs.refusal import Refusal, short
from functions.disk import files

# numpy's numbers, types and arrays are data. Before numpy 2 their module had another name.
_OF_NUMPY: list[Any] = [np.dtype, np.ndarray, *{type(np.dtype(code)) for code in np.typecodes["All"]}]
_OF_NUMPY += [
    (builder, f"numpy.{core}.multiarray.{name}")
    for name, builder in (
        ("scalar", np.float64().__reduce__()[0]),
        ("_reconstruct", np.zeros(1).__reduce__()[0]),
    )
    for core in ("core", "_core")
]
# How files begin that are not checkpoints, in small letters, and what they are.
_MISTAKEN: list[tuple[tuple[bytes, ...], str]] = [
    ((b"<!doctype html", b"<html"), "a web page, not a checkpoint: its download failed; fetch it again"),
    ((b"version https://git-lfs",), "a pointer of git LFS, not the file itself: git lfs pull fetches it"),
    ((b"\x89png", b"\xff\xd8\xff", b"gif8", b"riff"), "a picture, not a checkpoint"),
    ((b"\x89hdf",), "an HDF5 file, as Keras writes; the network here is PyTorch's"),
    ((b"gguf",), "a GGUF file, which holds a language model"),
]
# Of zip files: how some name in them ends, and what they are.
_ARCHIVES: list[tuple[tuple[str, ...], str]] = [
    (
        ("models/model.json", "serialized_exported_program.json"),
        "an exported program, not weights: --features takes it",
    ),
    (("/constants.pkl",), "a TorchScript program, not weights: save the state_dict() of its module"),
    ((".npy",), "numpy's arrays, not weights: --reference takes mu and sigma, --decode takes latents"),
]
_CODE = re.compile(r"(?:Unsupported (?:global|class)\S*|GLOBAL)[: ]+(?:GLOBAL )?([\w.]+)")


def read(path: Path) -> Any:
    """What the file holds, on the CPU. Raises Refusal for a file that is damaged or holds code."""
    with door.reading(path, "a checkpoint"):
        door.regular(path)
        _check_kind(path)
        if is_safetensors(path):
            return load_file(path)
        _check_archive(path)
        try:
            with warnings.catch_warnings(), torch.serialization.safe_globals(_OF_NUMPY):
                warnings.simplefilter("ignore")  # of how other programs pickled
                return torch.load(path, "cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError) as error:  # what torch says of the unpickling
            if code := _CODE.search(str(error)):
                holds = f"holds code ({code[1]}) besides tensors and plain values"
                raise Refusal(f"{path} {holds}; it was not run") from None
            if "Unsupported operand" in str(error):
                raise ValueError("it is neither torch's nor safetensors") from None
            raise


def _check_kind(path: Path) -> None:
    """Raise Refusal for what people name by mistake, and say what it is."""
    with open(path, "rb") as file:
        begin = file.read(64)
    if not begin:
        raise Refusal(f"{path} is damaged: it is empty; its download, or the copy, failed")
    for signatures, what in _MISTAKEN:
        if begin.lstrip().lower().startswith(signatures):
            raise Refusal(f"{path} is {what}")
    if begin.isascii() and begin.decode().replace("\n", "").replace("\t", "").isprintable():
        raise Refusal(f"{path} is a text file, not a checkpoint")
    names = _names_in_zip(path)
    for endings, what in _ARCHIVES:
        if any(name.endswith(endings) for name in names):
            raise Refusal(f"{path} is {what}")
    if names and not any(name.endswith("data.pkl") for name in names):
        raise Refusal(f"{path} is a zip file without a checkpoint of torch's in it")


def is_program(path: Path) -> bool:
    """Whether `path` is an archive of torch.export, by the graph in it."""
    return any(name.endswith(_ARCHIVES[0][0]) for name in _names_in_zip(path))


def _names_in_zip(path: Path) -> list[str]:
    """Of what is in it; none where it is not a zip file."""
    if not zipfile.is_zipfile(path):
        return []
    with zipfile.ZipFile(path) as archive:
        return archive.namelist()


def _check_archive(path: Path) -> None:
    """Raise Refusal where a tensor in torch's zip file is not as it was written. torch.load does not look."""
    if not zipfile.is_zipfile(path):
        return  # torch's format before 1.6 has no checksums
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise Refusal(f"{path} is damaged: the checksum of {short(damaged)} in it is wrong")


def is_safetensors(path: Path) -> bool:
    """Whether it is a safetensors file, which begins with the length of a JSON header in 8 bytes."""
    with open(path, "rb") as file:
        return path.suffix == ".safetensors" or file.read(9)[8:] == b"{"


def save(path: Path, content: Any, new: bool = False) -> None:
    """Write a torch file; it appears whole. Raises OSError if the disk does not take it, and as `atomic`."""
    with files.atomic(path, new=new) as temporary, open(temporary, "wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # torch's own, raised over the file's
            raise error.__context__ if isinstance(error.__context__, OSError) else error from None


def save_safetensors(path: Path, weights: dict[str, Tensor]) -> None:
    """As `save`, for a new file of safetensors, with the metadata that diffusers asks for."""
    contiguous = {name: value.contiguous() for name, value in weights.items()}
    with files.atomic(path, new=True) as temporary:
        try:
            save_file(contiguous, temporary, metadata={"format": "pt"})
        except SafetensorError as error:
            raise OSError(f"{path} could not be written: {error}") from None
