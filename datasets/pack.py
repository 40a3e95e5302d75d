"""Pack images into one LMDB at the size a model takes them, for data.dataset LMDB: python -m datasets.pack"""

import argparse
import hashlib
import io
import json
import logging
import os
import struct
import sys
import zlib
from functools import partial
from pathlib import Path

import lmdb
from filelock import FileLock, Timeout
from tqdm import tqdm

from configs.machine import cores
from configs.refusal import Refusal
from datasets.batches import read_ahead
from datasets.ffhq import LARGEST, LENGTH, key
from datasets.lmdb_files import SUMMED, LmdbValues, is_lmdb, keys_of, sums_key
from datasets.pictures import WHITE, Colour, Source, check_some, crop_face, decode, fit
from datasets.tree import Files, split_files

BATCH = SUMMED  # images in a transaction: the most that a kill loses
STATE = b"pack"  # the key of what is done so far; a complete LMDB does not have it
_CROPS = {"celeba": crop_face, "center": None, "none": None}
FIRST_MAP = 2**28  # bytes that the LMDB may take at first; doubled when they are used up


def main(argv: list[str] | None = None) -> int:
    """Returns 0, 2 for a user's mistake, 1 for another failure, 130 for an interrupt."""
    parser = argparse.ArgumentParser(prog="python -m datasets.pack", description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("source", type=Path, metavar="SOURCE", help="a folder or zip of images, or an LMDB in LSUN's layout")
    add("dest", type=Path, metavar="DEST", help="the folder to make; until complete it is DEST.partial")
    add("--size", type=int, required=True, metavar="N", help="pixels on a side, the model's data.image_size")
    add("--crop", choices=[*_CROPS], default="center",
        help="celeba: around the face of an aligned picture; center: the largest square, as in training "
        "(default); none: the whole picture, squeezed into a square")  # fmt: skip
    add("--split", choices=["train", "test"], default="train",
        help="of CelebA's partition, or of folders train/ and test/ or val/ (default: train)")  # fmt: skip
    add("--background", type=int, nargs=3, default=WHITE, metavar=("R", "G", "B"),
        help="the colour under transparent images, as data.background (default: 255 255 255)")  # fmt: skip
    arguments = parser.parse_args(argv)

    # Pack, and say how it ended.
    logging.basicConfig(level="INFO", format="%(message)s")
    size, dest = arguments.size, arguments.dest
    try:
        source = open_source(arguments.source, arguments.split)
        pack(source, dest, size, arguments.crop, tuple(arguments.background))
    except (Refusal, OSError, KeyboardInterrupt) as error:
        sentence = str(error) or "interrupted; the same command continues"
        print(f"datasets.pack: error: {sentence}", file=sys.stderr)
        return 2 if isinstance(error, Refusal) else 1 if isinstance(error, OSError) else 130
    print(f"{len(source.keys):,} images of {size} x {size} in {dest}; data.dataset LMDB reads them")
    return 0


def open_source(path: Path, split: str) -> Source:
    """The images of a folder, or its `split` if it has splits; of a zip file; of an LMDB in LSUN's layout."""
    source: Source | None
    if is_lmdb(path):
        if split != "train":
            raise Refusal(f"--split goes with a folder or a zip file that has splits; {path} is an LMDB")
        source = LmdbValues(path, keys_of(path))
    else:
        source = _split_of_files(path, split)
    if source is None:
        raise Refusal(f"{path} has no test split: it has no folders train/ and test/, or val/")
    if not len(source.keys):
        raise Refusal(f"{path} holds no images")
    return source


def _split_of_files(path: Path, split: str) -> Files | None:
    """By CelebA's partition, or by folders named train, test and val. Without them, all are for training."""
    from datasets import celeba  # slow: it imports torchvision

    partition = celeba.find(path) if path.is_dir() else None
    if partition is None:
        return split_files(path, split == "train")
    logging.info(f"packing the {split} split of {partition}")
    return celeba.split_files(partition, split == "train")


def pack(source: Source, dest: Path, size: int, crop: str, background: Colour = WHITE) -> None:
    """Write the images to an LMDB, which is {dest}.partial until it is complete. A partial one is continued.

    Raises Refusal for a broken image, an existing `dest`, a partial one of others; OSError for a full disk.
    """
    if not 1 <= size <= LARGEST:
        raise Refusal(f"--size is {size}; it must be from 1 to {LARGEST}, WebP's limit")
    if not all(0 <= value <= 255 for value in background):
        raise Refusal(f"--background is {background}; each must be from 0 to 255")
    if dest.exists():
        raise Refusal(f"{dest} already exists, and nothing is overwritten; choose another name")
    check_some(source, 100, _CROPS[crop], background, skip_broken=True)  # a broken one is named in its turn
    unfinished = dest.with_name(f"{dest.name}.partial")
    dest.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(dest.with_name(f".{dest.name}.lock"), timeout=0):
            unfinished.mkdir(exist_ok=True)
            room = max(FIRST_MAP, 2 * sum(file.stat().st_size for file in unfinished.iterdir()))
            with lmdb.open(str(unfinished), room, lock=False) as environment:
                _fill(environment, source, size, crop, background)
            os.rename(unfinished, dest)
    except lmdb.Error as error:
        raise Refusal(
            f"{unfinished} is damaged ({error}); remove it, and the same command begins anew"
        ) from None
    except Timeout:
        raise Refusal(f"another process is packing {dest}; wait for it, or choose another name") from None


def _fill(environment: lmdb.Environment, source: Source, size: int, crop: str, background: Colour) -> None:
    """Write the missing images, a transaction a batch, and with the last their number."""
    n, names = len(source.keys), hashlib.sha256()
    recipe = {"size": size, "crop": crop, "background": list(background)}
    done = _done(environment, source, recipe, names)
    batches = [range(start, min(start + BATCH, n)) for start in range(done, n, BATCH)]
    encoded = read_ahead(
        partial(_encoded, source, size, crop, background), batches, cores(), list, source.describe
    )
    every = 0.5 if sys.stderr.isatty() else 30  # seconds
    with tqdm(total=n, initial=done, unit="image", desc="packing", mininterval=every) as bar:
        try:
            for batch, images in zip(batches, encoded, strict=True):
                entries = {key(size, i): image for i, image in zip(batch, images, strict=True)}
                sums = struct.pack(f"<{len(images)}I", *map(zlib.crc32, images))
                entries |= {sums_key(batch.start): sums}
                state = {STATE: _state(source, recipe, batch, names)}
                _put(environment, entries | (state if batch.stop < n else {LENGTH: str(n).encode()}))
                done = batch.stop
                bar.update(len(batch))
        except Refusal as error:
            raise Refusal(f"{error}; {done:,} images are packed, and the same command continues") from None


def _done(environment: lmdb.Environment, source: Source, recipe: dict, names: "hashlib._Hash") -> int:
    """How many images are packed already. Raises Refusal where they are not the first of these."""
    n, last = len(source.keys), key(recipe["size"], len(source.keys) - 1)
    with environment.begin() as transaction:
        if transaction.get(LENGTH) == str(n).encode() and transaction.get(last) is not None:
            return n  # killed before it got its name
        state = transaction.get(STATE, b'{"done": 0}')
    done = json.loads(state)["done"]
    if environment.stat()["entries"] and state != _state(source, recipe, range(min(done, n)), names):
        raise Refusal(
            f"{environment.path()} was begun with other images, background, size or crop; move it away"
        )
    return done


def _state(source: Source, recipe: dict, batch: range, names: "hashlib._Hash") -> bytes:
    """What is done after `batch`, whose images' names are added to the hash `names`."""
    for i in batch:
        names.update(os.fsencode(source.keys[i]) + b"\n")
    return json.dumps(recipe | {"done": batch.stop, "names": names.hexdigest()}).encode()


def _encoded(source: Source, size: int, crop: str, background: Colour, i: int) -> bytes:
    """Picture i as lossless WebP, which is smaller than PNG and faster to read."""
    picture = decode(source, i, _CROPS[crop], background)
    file = io.BytesIO()
    fit(picture, size, squeeze=crop == "none").save(file, "WEBP", lossless=True, quality=0, method=0)
    return file.getvalue()


def _put(environment: lmdb.Environment, entries: dict[bytes, bytes]) -> None:
    """Write all entries, in place of the old STATE, or nothing. They are on the disk when this returns."""
    try:
        with environment.begin(write=True) as transaction:
            transaction.delete(STATE)
            transaction.cursor().putmulti(entries.items())
    except lmdb.MapFullError:
        environment.set_mapsize(2 * environment.info()["map_size"])
        _put(environment, entries)
    except lmdb.Error as error:
        full = f"the disk takes no more ({error})"
        raise OSError(f"{full}; the same command continues {environment.path()}") from None


if __name__ == "__main__":
    sys.exit(main())
