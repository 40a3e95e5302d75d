"""Downloads: each file verified before it gets its final name, retried, and a sentence where it can't be had."""

import logging
import re
import traceback
from pathlib import Path

import gdown
import gdown.exceptions
import pooch
import requests
from huggingface_hub import errors, snapshot_download

from configs.refusal import Refusal
from functions.disk import files
from functions.weights import diffusers, load_checkpoint
from functions.weights.pretrained import HUB, Published

RETRIES = 3
CONFIGS = [
    "model_index.json",
    "config.json",
    "unet/config.json",
    "scheduler_config.json",
    "scheduler/scheduler_config.json",
]


def published(weights: Published) -> Path:
    """The file in the cache; a corrupt one is moved aside and fetched again.

    Raises Refusal, with address, hash and place, where the network or the server does not give it.
    """
    path = weights.path
    why = _why_corrupt(path, weights.md5) if path.exists() else None
    if why is not None:
        [(_, aside)] = files.move_aside(path)
        logging.warning(f"{path} {why} and was moved to {aside}")
    if not path.exists():
        _download(weights, path)
    if weights.md5 is None:
        logging.warning(
            f"{path} is not verified, for no hash was published with it; it is whole, and a checkpoint"
        )
    return path


def _download(weights: Published, path: Path) -> None:
    assert weights.url is not None
    logging.info(f"downloading {weights.name} from {weights.url} to {path}")
    store = pooch.create(
        path=path.parent,
        base_url="",
        registry={path.name: weights.md5 and f"md5:{weights.md5}"},
        urls={path.name: weights.url},
        retry_if_failed=RETRIES,
    )
    downloader = pooch.HTTPDownloader(progressbar=True) if weights.md5 else _google_drive
    try:
        store.fetch(path.name, downloader=downloader)
    except (requests.RequestException, ValueError) as error:
        traceback.clear_frames(
            error.__traceback__
        )  # ends the progress bar that they hold, which would tear the sentence
        raise Refusal(
            f"{weights.name} could not be downloaded ({_in_short(error)}): fetch {weights.url} by hand to {path}; "
            f"{weights.expected}"
        ) from None


def hub(repository: str, only_config: bool = False) -> Path:
    """The cached snapshot of a diffusers folder on the Hugging Face Hub, with the files that are read here and no others.

    Raises Refusal where the Hub does not give it.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise Refusal(f"{HUB}{repository} names no repository; it must be like {HUB}google/ddpm-cifar10-32")
    for library in ("httpx", "httpx2"):  # which of them depends on the version; each would log every request
        logging.getLogger(library).setLevel(logging.WARNING)
    try:
        if only_config:
            return Path(snapshot_download(repository, allow_patterns=CONFIGS))
        for name in (diffusers.SAFETENSORS, diffusers.BIN):
            patterns = [*CONFIGS, name, f"unet/{name}"]
            folder = Path(snapshot_download(repository, allow_patterns=patterns))
            weights = diffusers.weights_file(folder)
            if weights is not None:
                if _moved_if_corrupt(weights.resolve()):
                    snapshot_download(repository, allow_patterns=patterns)
                break
    except (errors.HTTPError, errors.EntryNotFoundError, errors.FileMetadataError) as error:
        raise Refusal(
            f"{HUB}{repository} could not be downloaded ({_in_short(error)}): a local copy of the folder serves as --ckpt too"
        ) from None
    return folder


def _moved_if_corrupt(blob: Path) -> bool:
    """Whether a file of the Hub's cache, which is named by its SHA-256 where it is large, was not what its name says."""
    if not re.fullmatch(r"[0-9a-f]{64}", blob.name) or files.digest(blob, "sha256") == blob.name:
        return False
    [(_, aside)] = files.move_aside(blob)
    logging.warning(f"{blob} does not have the SHA-256 of its name and was moved to {aside}")
    return True


def _why_corrupt(path: Path, md5: str | None) -> str | None:
    """None for a sound file. Without a published hash, one that loads is sound."""
    if md5 is not None:
        return None if files.digest(path, "md5") == md5 else "does not have the published md5"
    try:
        load_checkpoint(path)
    except Refusal:
        return "is damaged"
    return None


def _google_drive(url: str, output_file: str, _: pooch.Pooch) -> None:
    """pooch's downloader for a large file on Google Drive, which shows a page about viruses first.

    Without a hash, only loading the file tells it from such a page.
    """
    try:
        gdown.download(url, output_file, use_cookies=False)
    except gdown.exceptions.DownloadError as error:
        raise Refusal(_in_short(error)) from None
    load_checkpoint(Path(output_file))


def _in_short(error: Exception) -> str:
    """The first line of a library's message, which may be a page."""
    first = (str(error).splitlines() or [""])[0][:200]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
