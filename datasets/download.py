"""Downloads. A file gets its name when it is complete and its md5 is right."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pooch
import requests

from configs.refusal import Refusal


def download(name: str, url: str, md5: str, root: Path, put: str) -> Path:
    """The file at `url`, into `root` under its own name. Raises Refusal, saying what to `put` there."""
    with or_by_hand(name, root, put):
        return Path(pooch.retrieve(url, f"md5:{md5}", fname=Path(url).name, path=root, progressbar=True))


@contextmanager
def or_by_hand(name: str, root: Path, put: str, *also: type[Exception], below: str = "") -> Iterator[None]:
    """If the download in the block fails, remove the folders it made, and refuse: `put` it there by hand."""
    made = [folder for folder in (root / below, *(root / below).parents) if not folder.exists()]
    kinds: tuple[type[Exception], ...] = (requests.RequestException, OSError, ValueError, *also)
    try:
        yield
    except kinds as error:
        for folder in made:
            with suppress(OSError):  # rmdir removes empty folders only
                folder.rmdir()
        why = f"could not be downloaded ({type(error).__name__})"
        raise Refusal(
            f"{name} is not in {root} and {why}: put {put} there, or name the folder that has it with --data"
        ) from None
