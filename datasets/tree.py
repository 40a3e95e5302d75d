"""Which files of a folder or a zip file are a set of pictures, and which of them are held out of training.

What tools leave beside pictures is not part of the set. Every reader of a tree asks here.
"""

import hashlib
import logging
import os
import re
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, NoReturn

from configs import door
from configs.machine import cores
from configs.refusal import Refusal
from datasets.depths import EXTENSIONS

# Folders that file managers, servers and zip programs make, besides those that begin with a dot.
_OF_TOOLS = {"@eadir", "@recycle", "@recently-snapshot", "@tmp", "#recycle", "#snapshot", "$recycle.bin",
             "__macosx", "__pycache__", "lost+found", "system volume information", "recycler"}  # fmt: skip
# A folder's whole name, in any case of letters, with a year or a number after it, as in COCO's train2017.
_SPLIT = re.compile(
    r"(?:(?P<train>train(?:ing)?)|(?P<test>test(?:ing)?)|(?P<val>val(?:id(?:ation)?)?))[\W_]*\d*"
)


class Files:
    """The pictures `keys` of a folder or a zip file."""

    def __init__(self, place: Path, keys: Sequence[str]):
        self.place, self.keys = place, keys

    def describe(self, i: int) -> str:
        return os.path.join(self.place, self.keys[i])

    def read(self, i: int) -> bytes:
        if self.place.is_dir():
            return door.regular(Path(self.place, self.keys[i])).read_bytes()
        return _zip(self.place, os.getpid()).read(self.keys[i])

    def identity(self) -> str:
        """A hash over every name and every byte, whatever links, sizes and dates say."""
        digest = hashlib.sha256()
        with ThreadPoolExecutor(max(1, cores()) if self.place.is_dir() else 1) as pool:
            for key, content in zip(self.keys, pool.map(self._digest, range(len(self.keys))), strict=True):
                digest.update(os.fsencode(key) + b"\0" + content)
        return digest.hexdigest()

    def _digest(self, i: int) -> bytes:
        with door.reading(f"the image {self.describe(i)}", "a picture"):
            return hashlib.sha256(self.read(i)).digest()


class Found(NamedTuple):
    """The pictures of a place, sorted, and what else is there: file -> why it is not a picture of the set."""

    pictures: list[str]
    others: dict[str, str]


def find(place: Path) -> Found:
    """Look through a folder or a zip file. Links to folders are followed, each folder once.

    Raises Refusal for a folder that cannot be entered, or a file that is not a zip file.
    """
    pictures, others = [], {}
    for name in sorted(_walk(place) if place.is_dir() else _names_in_zip(place)):
        is_picture, extension = os.path.splitext(name)[1].lower() in EXTENSIONS, os.path.splitext(name)[1]
        *folders, file = name.split("/")
        of_a_tool = next((folder for folder in folders if _is_of_a_tool(folder)), None)
        if not is_picture:
            if of_a_tool is None and not file.startswith("."):
                others[name] = extension.lower() or "without an extension"
        elif of_a_tool is not None:
            others[name] = f"in {of_a_tool}"
        elif file.startswith("."):
            others[name] = "hidden"
        else:
            pictures.append(name)
    return Found(pictures, others)


def image_files(place: Path) -> list[str]:
    """All pictures below a folder or in a zip file, sorted, whatever splits it has. Says what is left out."""
    found = find(place)
    _say_left_out(place, found.others.values())
    return found.pictures


def split_files(place: Path, train: bool) -> Files | None:
    """The training or the test pictures of a place, and a line in the log on how it was split.

    Where folders are named test, val and the like, training gets nothing out of them, and only what is in
    train, if there is such a folder. The test split is what is in test, or else in val. Without such
    folders all is for training, and the test split is None. Raises Refusal as `find`, or where all is held
    out.
    """
    found = find(place)
    by_split: dict[str | None, list[str]] = {}
    for name in found.pictures:
        by_split.setdefault(split_of(name), []).append(name)
    held_out = next((split for split in ("test", "val") if split in by_split), None)
    if held_out is None:
        chosen, others = (found.pictures, found.others) if train else ([], {})
    else:
        rest = None if "train" not in by_split else "train"
        if train and rest not in by_split:
            where = _folders(by_split[held_out])
            how = "put training images in train/, or name that folder itself to train on it"
            raise Refusal(f"{place} holds held-out images only, in {where}; {how}")
        chosen = by_split[rest if train else held_out]
        others = {name: why for name, why in found.others.items() if (split_of(name) == held_out) != train}
        if train:
            _say_split(place, by_split, rest, held_out)
    _say_left_out(place, others.values())
    return Files(place, chosen) if train or held_out else None


def split_folder(root: Path, train: bool) -> Path | None:
    """Of LMDBs in folders named train and test, or val: the split's. Else `root`, and None for testing."""
    below = sorted(root.iterdir()) if root.is_dir() else []
    splits = {split_of(f"{path.name}/"): path for path in reversed(below) if path.is_dir()}
    held_out = splits.get("test") or splits.get("val")
    if held_out is None or "train" not in splits:
        return root if train else None
    if train:
        logging.info(f"{root} is split by its folders: training on {splits['train']}, testing on {held_out}")
    return splits["train"] if train else held_out


def split_of(name: str) -> str | None:
    """ "train", "test" or "val" by the first folder of a path that is named so."""
    for folder in name.split("/")[:-1]:
        if match := _SPLIT.fullmatch(folder.lower()):
            return match.lastgroup
    return None


def _say_split(place: Path, by_split: dict[str | None, list[str]], rest: str | None, held_out: str) -> None:
    """One line: which folders are trained on, which are the test split, and which are not used."""
    words = [f"{len(by_split[rest]):,} images for training ({_folders(by_split[rest])})"]
    words.append(f"{len(by_split[held_out]):,} held out for testing ({_folders(by_split[held_out])})")
    unused = [name for split, names in by_split.items() if split not in (rest, held_out) for name in names]
    words += [f"{len(unused):,} not used ({_folders(unused)})"] if unused else []
    logging.info(f"{place} is split by its folders: {', '.join(words)}")


def _folders(names: Sequence[str]) -> str:
    """The folders that made these the split, or that they are in, at most three of them."""
    found = dict.fromkeys(_folder_of_split(name) for name in names)
    return ", ".join([*found][:3]) + (", …" if len(found) > 3 else "")


def _folder_of_split(name: str) -> str:
    *folders, _ = name.split("/")
    split = next((i for i, folder in enumerate(folders) if _SPLIT.fullmatch(folder.lower())), 0)
    return "".join(f"{folder}/" for folder in folders[: split + 1]) or "outside of folders"


def _say_left_out(place: Path, reasons: Iterable[str]) -> None:
    counts = Counter(reasons)
    if counts:
        words = ", ".join(f"{n:,} {why}" for why, n in counts.most_common())
        logging.info(f"left out below {place}: {words}")


def _is_of_a_tool(folder: str) -> bool:
    return folder.startswith(".") or folder.lower() in _OF_TOOLS


def _walk(place: Path) -> Iterator[str]:
    """Every file below a folder, by its path with slashes."""

    def unreadable(error: OSError) -> NoReturn:
        raise Refusal(f"{error.filename} cannot be read ({error.strerror})")

    seen = set()
    for folder, subfolders, names in os.walk(place, onerror=unreadable, followlinks=True):
        real = os.path.realpath(folder)
        subfolders[:] = [] if real in seen else sorted(subfolders)  # so that links are met in the same order
        if real not in seen:
            below = Path(folder).relative_to(place).as_posix()
            yield from (name if below == "." else f"{below}/{name}" for name in names)
        seen.add(real)


def _names_in_zip(place: Path) -> list[str]:
    with door.reading(place, "a folder, a zip file or an LMDB"):
        return [name for name in _zip(place, os.getpid()).namelist() if not name.endswith("/")]


@lru_cache(maxsize=1)
def _zip(path: Path, pid: int) -> zipfile.ZipFile:
    """Opened once in each process: sharing a file's position, processes would read each other's bytes."""
    return zipfile.ZipFile(door.regular(path))
