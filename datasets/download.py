"""Downloads: whole and verified before they get their name, and a sentence where there is no network."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pooch
import requests

from configs.refusal import Refusal


def download(name: str, url: str, md5: str, root: Path, by_hand: str) -> Path:
    """The file of `url` in `root`, with its own name. Raises Refusal, saying what to put where by hand."""
    with or_by_hand(name, root, by_hand):
        return Path(
            pooch.retrieve(url, f"md5:{md5}", fname=url.rsplit("/", 1)[1], path=root, progressbar=True)
        )


@contextmanager
def or_by_hand(
    name: str, root: Path, by_hand: str, *failures: type[Exception], below: str = ""
) -> Iterator[None]:
    """Download into `root`, or a folder `below` it. One that fails, as all may or by `failures`, leaves no folder it made.

    Raises Refusal then, saying what to put where by hand.
    """
    kinds: tuple[type[Exception], ...] = (requests.RequestException, OSError, ValueError, *failures)
    made = [folder for folder in (root / below, *(root / below).parents) if not folder.exists()]
    try:
        yield
    except kinds as error:
        for folder in made:
            with suppress(OSError):  # rmdir takes empty folders only
                folder.rmdir()
        why = type(error).__name__
        raise Refusal(
            f"{name} is not in {root} and could not be downloaded ({why}): put {by_hand} there"
        ) from None
