"""Downloads: retried, and verified before a file gets its name. Slow libraries are imported late."""

import logging
import re
import traceback
from pathlib import Path

from configs.refusal import Refusal
from functions.disk import files
from functions.weights import diffusers_config, diffusers_files, load_checkpoint
from functions.weights.published import Published


def published(weights: Published) -> Path:
    """The file in the cache; a damaged one is moved aside and replaced. Raises Refusal if there is none."""
    path = weights.path
    if path.exists() and (fault := _fault(path, weights.md5)):
        [(_, aside)] = files.move_aside(path)
        logging.warning(f"{path} {fault} and was moved to {aside}")
    if not path.exists():
        _download(weights)
    if weights.md5 is None:
        logging.warning(f"{path} is not verified, because no hash was published; it is a whole checkpoint")
    return path


def _fault(path: Path, md5: str | None) -> str | None:
    """What is wrong with a file. Without a hash, it only has to load."""
    if md5 is not None:
        return None if files.digest(path, "md5") == md5 else "does not have the published md5"
    try:
        load_checkpoint(path)
    except Refusal:
        return "is damaged"
    return None


def _download(weights: Published) -> None:
    import pooch
    import requests

    path, url, md5 = weights.path, weights.url, weights.md5
    logging.info(f"downloading {weights.name} from {url} to {path}")
    registry = {path.name: md5 and f"md5:{md5}"}
    store = pooch.create(path.parent, "", registry=registry, urls={path.name: url}, retry_if_failed=3)
    downloader = pooch.HTTPDownloader(progressbar=True) if md5 else _from_google_drive
    try:
        store.fetch(path.name, downloader=downloader)
    except (requests.RequestException, ValueError) as error:
        traceback.clear_frames(error.__traceback__)  # ends the progress bar, which would tear the sentence
        expected = f"its md5 must be {md5}" if md5 else "no hash was published for it"
        why = f"{weights.name} could not be downloaded ({_in_short(error)})"
        raise Refusal(f"{why}: fetch {url} by hand to {path}; {expected}") from None


def _from_google_drive(url: str, output_file: str, _: object) -> None:
    """A downloader for pooch. Google Drive may send a page instead of the file, so the file must load."""
    import gdown

    try:
        gdown.download(url, output_file, use_cookies=False)
    except gdown.exceptions.DownloadError as error:
        raise Refusal(_in_short(error)) from None
    load_checkpoint(Path(output_file))


def hub(repository: str, only_config: bool = False) -> Path:
    """The folder owner/name of the Hugging Face Hub; only what is read here. Raises as `published`."""
    from huggingface_hub import errors, snapshot_download

    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise Refusal(f"hf://{repository} names no repository; it must be like hf://google/ddpm-cifar10-32")
    for library in ("httpx", "httpx2"):  # one of them, by version, would log every request
        logging.getLogger(library).setLevel(logging.WARNING)

    def snapshot(*weights: str) -> Path:
        names = (diffusers_config.INDEX, "config.json", "scheduler_config.json", *weights)
        patterns = [f"{part}{name}" for name in names for part in ("", "unet/", "unet_ema/", "scheduler/")]
        return Path(snapshot_download(repository, allow_patterns=patterns))

    try:
        if only_config:
            return snapshot()
        for name in (diffusers_files.SAFETENSORS, diffusers_files.BIN):
            folder = snapshot(name)
            file = diffusers_config.find(folder, name)
            if file.is_file():
                return snapshot(name) if _moved_if_damaged(file.resolve()) else folder
        return snapshot(f"{diffusers_files.STEM}*.safetensors*", f"{diffusers_files.STEM}*.bin*")
    except (errors.HTTPError, errors.EntryNotFoundError, errors.FileMetadataError) as error:
        why = f"hf://{repository} could not be downloaded ({_in_short(error)})"
        raise Refusal(f"{why}: a local copy of the folder serves as --ckpt too") from None


def _moved_if_damaged(blob: Path) -> bool:
    """Whether a file of the Hub's cache was damaged. The Hub names a large file by its SHA-256."""
    if not re.fullmatch(r"[0-9a-f]{64}", blob.name) or files.digest(blob, "sha256") == blob.name:
        return False
    [(_, aside)] = files.move_aside(blob)
    logging.warning(f"{blob} does not have the SHA-256 of its name and was moved to {aside}")
    return True


def _in_short(error: Exception) -> str:
    """The first line of a library's message, which may be a whole page."""
    first = (str(error).splitlines() or [""])[0][:200]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
