"""Feature extractors: torch-fidelity's Inception with the weights of 2015 that FID is defined by, or an exported program."""

import io
import logging
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from configs.refusal import Refusal
from functions import weights
from functions.disk import files
from functions.runtime import distributed

ADDRESS = "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
# The same file under torch-fidelity's name and pytorch-fid's; the number is the beginning of its SHA-256.
FILE_NAMES = ("weights-inception-2015-12-05-6726825d.pth", "pt_inception-2015-12-05-6726825d.pth")
HASH_PREFIX = "6726825d"

PROGRAM = ".pt2"  # the end of a program's name: loading one can run code, so no other name is loaded as one
CHUNK = 32  # images at a time: Inception enlarges them to 299x299, whatever their size


class Features(NamedTuple):
    """features (b, D) and the logits of the classes (b, K), where there are classes: both float32."""

    features: Tensor
    logits: Tensor | None


@dataclass(frozen=True)
class Extractor:
    """From images to features."""

    name: str
    hash: str  # SHA-256 of its file
    dim: int  # D
    classes: int  # K, 0 where it gives no logits
    device: torch.device
    network: Callable[[Tensor], tuple[Tensor, ...] | Tensor]

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Features:
        """The features of uint8 (b, 1 or 3, h, w), on the extractor's device and in full float32.

        Raises FloatingPointError where they are not finite.
        """
        with _full_precision():
            parts = [self._chunk(chunk.to(self.device)) for chunk in images.split(CHUNK)]
        features = torch.cat([part.features for part in parts])
        if not features.isfinite().all():
            raise FloatingPointError(
                f"the features of {self.name} are not finite, so there is no distance; is the extractor sound?"
            )
        logits = [part.logits for part in parts if part.logits is not None]
        return Features(features, torch.cat(logits) if logits else None)

    def _chunk(self, images: Tensor) -> Features:
        output = self.network(images.expand(-1, 3, -1, -1))
        if isinstance(output, Tensor):
            return Features(output.float(), None)
        features, logits = output
        return Features(features.float(), logits.float())


@contextmanager
def _full_precision() -> Iterator[None]:
    """Inside the block products are float32 on every device, whatever the network's own precision is."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)


def load_extractor(path: Path | None, image_size: int, device: torch.device) -> Extractor:
    """The extractor of a file, told apart by what it holds; Inception from the cache or its address where `path` is None.

    Raises Refusal for a file that is neither Inception's weights nor a program for images of `image_size`.
    """
    if path is None:
        path = _published_inception()
    if not path.is_file():
        raise Refusal(
            f"--features {path}: there is no such file; it takes Inception's weights or an exported program"
        )
    if not _is_program(path):
        return _inception(path, device)
    if path.suffix != PROGRAM:
        raise Refusal(
            f"--features {path} is an exported program, and loading one runs code, as a script does: "
            f"if you trust it, give it a name that ends in {PROGRAM}"
        )
    return _program(path, image_size, device)


def _published_inception() -> Path:
    folder = Path(torch.hub.get_dir(), "checkpoints")
    path = folder / FILE_NAMES[0]
    with (
        distributed.main_first()
    ):  # the look too: who came later would see a file that the first is still asked about
        there = next((folder / name for name in FILE_NAMES if (folder / name).is_file()), None)
        if there is None:
            _download(path)
    path = there or path
    if not files.digest(path, "sha256").startswith(HASH_PREFIX):
        raise Refusal(
            f"{path} is damaged: its SHA-256 must begin with {HASH_PREFIX}; remove it, and it is fetched again"
        )
    logging.info(
        f"Inception's weights: {path}; of its SHA-256 only the first 8 digits were published, and they match"
    )
    return path


def _download(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(ADDRESS, str(path), hash_prefix=HASH_PREFIX)
    except (OSError, RuntimeError) as error:  # no network; another hash
        raise Refusal(
            f"Inception's weights could not be downloaded ({type(error).__name__}): fetch {ADDRESS} by hand, whose SHA-256 "
            f"begins with {HASH_PREFIX}, and name the file with --features, or put it at {path}"
        ) from None


def _inception(path: Path, device: torch.device) -> Extractor:
    checkpoint = weights.load_checkpoint(path)
    if "Mixed_7c.branch1x1.conv.weight" not in checkpoint.model:
        raise Refusal(
            f"--features {path} holds no Inception: {FILE_NAMES[0]} does, and exported programs (.pt2) are taken too"
        )

    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    # torch-fidelity unpickles what it is given, code included. So it never sees the file, only the tensors read from it.
    tensors = io.BytesIO()
    torch.save(checkpoint.model, tensors)
    tensors.seek(0)
    try:
        network = FeatureExtractorInceptionV3(
            "inception", ["2048", "logits_unbiased"], feature_extractor_weights_path=tensors
        )
    except RuntimeError as error:
        raise Refusal(
            f"--features {path} does not fit Inception: {' '.join(str(error).split())[:300]}"
        ) from None
    digest = files.digest(path, "sha256")
    return Extractor(f"Inception {digest[:8]}", digest, 2048, 1008, device, network.to(device))


def _is_program(path: Path) -> bool:
    """Whether `path` is an archive of torch.export, by the graph in it."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(
            name.endswith(("models/model.json", "serialized_exported_program.json"))
            for name in archive.namelist()
        )


def _program(path: Path, image_size: int, device: torch.device) -> Extractor:
    digest = files.digest(path, "sha256")
    try:
        network = torch.export.load(path).module().to(device)
        for n in (2, 3):
            output = network(torch.zeros(n, 3, image_size, image_size, dtype=torch.uint8, device=device))
            assert isinstance(output, Tensor) and output.shape == (n, output.numel() // n), (
                "its result is not N x D"
            )
    except (RuntimeError, AssertionError, ValueError, TypeError, LookupError) as error:
        raise Refusal(
            f"--features {path}: the program does not take uint8 (N, 3, {image_size}, {image_size}) of any N to (N, D): "
            f"{' '.join(str(error).split())[:200]}"
        ) from None
    return Extractor(f"{path.name} {digest[:8]}", digest, output.shape[1], 0, device, network)
