"""Downloads: whole and verified before they get their name, and a sentence where there is no network."""

from contextlib import suppress
from pathlib import Path

import pooch
import requests


def download(name: str, url: str, md5: str, root: Path, by_hand: str) -> Path:
    """The file of `url` in `root`, with its own name. Raises ValueError, saying what to put where by hand.

    A download that fails leaves no folders that it made.
    """
    made = [folder for folder in (root, *root.parents) if not folder.exists()]
    try:
        return Path(pooch.retrieve(url, f"md5:{md5}", fname=url.rsplit("/", 1)[1], path=root, progressbar=True))
    except (requests.RequestException, OSError, ValueError) as error:
        for folder in made:
            with suppress(OSError):  # rmdir takes empty folders only
                folder.rmdir()
        why = type(error).__name__
        raise ValueError(f"{name} is not in {root} and could not be downloaded ({why}): put {by_hand} there") from None
