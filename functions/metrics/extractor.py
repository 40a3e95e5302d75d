"""Feature extractors: torch-fidelity's Inception with the weights of 2015, as FID is defined, or programs."""

import io
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from configs.refusal import Refusal
from functions import weights
from functions.disk import files
from functions.runtime import distributed
from functions.runtime.precision import numerics
from functions.weights import storage

ADDRESS = "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
# The same file under torch-fidelity's name and pytorch-fid's; the number is the beginning of its SHA-256.
FILE_NAMES = ("weights-inception-2015-12-05-6726825d.pth", "pt_inception-2015-12-05-6726825d.pth")
HASH_PREFIX = "6726825d"

PROGRAM = ".pt2"  # the end of a program's name: loading one can run code, so no other name is loaded as one
CHUNK = 32  # images at a time: Inception enlarges them to 299x299, whatever their size


@dataclass(frozen=True)
class Extractor:
    """From images to D features and, where it has classes, K logits."""

    name: str
    hash: str  # SHA-256 of its file
    dim: int  # D
    classes: int  # K
    device: torch.device
    network: Callable[[Tensor], tuple[Tensor, ...] | Tensor]

    @torch.no_grad()
    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 (b, 1 or 3, h, w) -> float32 features (b, D) and logits (b, K). Raises FloatingPointError."""
        chunks = (chunk.to(self.device).expand(-1, 3, -1, -1) for chunk in images.split(CHUNK))
        with numerics("fp32", self.device, training=False):  # whatever --precision is
            outputs = [self.network(chunk) for chunk in chunks]
        parts = [(output,) if isinstance(output, Tensor) else output for output in outputs]
        features, *logits = (torch.cat(part).float() for part in zip(*parts, strict=True))
        if not features.isfinite().all():
            raise FloatingPointError(f"the features of {self.name} are not finite, so there is no distance")
        return features, logits[0] if logits else features[:, :0]


def load_extractor(path: Path | None, image_size: int, device: torch.device) -> Extractor:
    """The extractor in a file. None: Inception, cached or downloaded. Raises Refusal for any other file."""
    path = path or _published_inception()
    if not path.is_file():
        raise Refusal(f"--features {path}: no such file; it takes Inception's weights or an exported program")
    digest = files.digest(path, "sha256")
    if not storage.is_program(path):
        network: nn.Module = _inception(path).to(device)
        return Extractor(f"Inception {digest[:8]}", digest, 2048, 1008, device, network)
    if path.suffix != PROGRAM:
        why = "is an exported program, and loading one runs code, as a script does"
        raise Refusal(f"--features {path} {why}: if you trust it, give it a name that ends in {PROGRAM}")
    try:
        network = torch.export.load(path).module().to(device)
        for n in (2, 3):
            output = network(torch.zeros(n, 3, image_size, image_size, dtype=torch.uint8, device=device))
            fits = isinstance(output, Tensor) and output.shape == (n, output.numel() // n)
            assert fits, "its result is not N x D"
    except (RuntimeError, AssertionError, ValueError, TypeError, LookupError) as error:
        does = f"does not take uint8 (N, 3, {image_size}, {image_size}) of any N to (N, D)"
        raise Refusal(f"--features {path}: the program {does}: {_short(error)}") from None
    return Extractor(f"{path.name} {digest[:8]}", digest, output.shape[1], 0, device, network)


def _published_inception() -> Path:
    folder = Path(torch.hub.get_dir(), "checkpoints")
    # Every rank looks after the first: the file must not appear between two looks.
    with distributed.main_first():
        names = [name for name in FILE_NAMES if (folder / name).is_file()]
        path = folder / (names or FILE_NAMES)[0]
        if not names:
            folder.mkdir(parents=True, exist_ok=True)
            try:
                torch.hub.download_url_to_file(ADDRESS, str(path), hash_prefix=HASH_PREFIX)
            except (OSError, RuntimeError) as error:  # no network; another hash
                why = f"Inception's weights could not be downloaded ({type(error).__name__})"
                by_hand = f"get {ADDRESS} by hand; its SHA-256 begins with {HASH_PREFIX}"
                raise Refusal(f"{why}: {by_hand}; name it with --features, or put it at {path}") from None
    if not files.digest(path, "sha256").startswith(HASH_PREFIX):
        must = f"its SHA-256 must begin with {HASH_PREFIX}; remove it to fetch it again"
        raise Refusal(f"{path} is damaged: {must}")
    logging.info(f"Inception's weights: {path}; its SHA-256 begins with the 8 digits that were published")
    return path


def _inception(path: Path) -> nn.Module:
    checkpoint = weights.load_checkpoint(path)
    if "Mixed_7c.branch1x1.conv.weight" not in checkpoint.model:
        does = f"{FILE_NAMES[0]} does; programs ({PROGRAM}) work too"
        raise Refusal(f"--features {path} holds no Inception: {does}")

    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    # torch-fidelity unpickles what it is given, code included. So it gets the tensors, never the file.
    tensors, outputs = io.BytesIO(), ["2048", "logits_unbiased"]
    torch.save(checkpoint.model, tensors)
    tensors.seek(0)
    try:
        return FeatureExtractorInceptionV3("inception", outputs, feature_extractor_weights_path=tensors)
    except RuntimeError as error:
        raise Refusal(f"--features {path} does not fit Inception: {_short(error)}") from None


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
