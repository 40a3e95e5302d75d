"""A download that fails leaves nothing behind and says what to do by hand."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def downloading(name: str, root: Path, files: str) -> Iterator[None]:
    """Around torchvision's check-and-download of `name` into `root`. Raises ValueError where it can't be had."""
    missing = [folder for folder in (root, *root.parents) if not folder.exists()]
    try:
        yield
    except (OSError, RuntimeError) as error:
        for folder in _below(root, missing):
            with suppress(OSError):  # rmdir takes empty folders only
                folder.rmdir()
        raise ValueError(f"{name} is not in {root} and could not be downloaded ({error}): put {files} there") from None


def _below(root: Path, missing: list[Path]) -> list[Path]:
    """The folders that were made: those below a new root first, then root and its new parents, deepest first."""
    inside = sorted((p for p in root.rglob("*") if p.is_dir()), reverse=True) if root in missing else []
    return [*inside, *missing]
