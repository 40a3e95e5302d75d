"""Pack images into one LMDB at the size a model takes them: `python -m datasets.pack SOURCE DEST --size 64`.

Large sets then train without decoding pictures of another size at each epoch. The LMDB is in FFHQ's layout, its images are
lossless WebP (faster to read than PNG, and smaller); data.dataset LMDB reads it.
"""

import argparse
import hashlib
import io
import json
import logging
import os
import sys
import threading
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import lmdb
from filelock import FileLock, Timeout
from PIL import Image
from torch.utils.data import DataLoader
from tqdm import tqdm

from configs.refusal import Refusal
from datasets.batches import ErrorsAsValues, worker_count
from datasets.folder import split_folder
from datasets.images import fit
from datasets.key_index import keys_of
from datasets.lmdb_files import damage_told, data_file, is_lmdb
from datasets.pictures import crop_face, decode
from datasets.resolutions import LENGTH, key
from datasets.sources import Files, LmdbValues, Source, ZipMembers, image_files

BATCH = 256  # images a transaction: the most that a kill undoes
STATE = b"pack"  # the key of what is done so far; gone when all is
FIRST_MAP = 2**28  # bytes that the LMDB may take, until it needs twice as many


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0, 2 for a mistake of the user's, 1 for any other failure, 130 for an interrupt."""
    arguments = _parser().parse_args(argv)
    logging.basicConfig(level="INFO", format="%(message)s")
    try:
        source = open_source(arguments.source, arguments.split)
        n = pack(source, arguments.dest, arguments.size, arguments.crop)
    except Refusal as error:
        return _fail(str(error), 2)
    except OSError as error:
        return _fail(str(error), 1)
    except KeyboardInterrupt:
        return _fail("interrupted; the same command continues", 130)
    print(
        f"{n:,} images of {arguments.size} x {arguments.size} in {arguments.dest}; data.dataset LMDB reads them"
    )
    return 0


def open_source(path: Path, split: str) -> Source:
    """The images of a folder, a zip file or an LMDB in LSUN's layout: those of one split where a folder has splits.

    Raises Refusal for what is none of these, and for one without images.
    """
    source: Source
    if path.is_dir() and not is_lmdb(path):
        source = _folder(path, split == "train")
    elif split != "train":
        raise Refusal(f"--split goes with a folder that has splits; {path} is no folder of images")
    elif is_lmdb(path):
        source = LmdbValues(path, keys_of(path))
    elif path.is_file() and zipfile.is_zipfile(path):
        source = ZipMembers(path)
    else:
        raise Refusal(
            f"{path} is no folder, no zip file and no LMDB{'' if path.exists() else ': it does not exist'}"
        )
    if not len(source.keys):
        raise Refusal(f"{path} holds no images")
    return source


def pack(source: Source, dest: Path, size: int, crop: str) -> int:
    """Write the images to an LMDB that appears as `dest` when it is whole, and return their number.

    What a killed process has done lies in `{dest}.partial` and is continued. Raises Refusal for an image that can't be
    decoded, where `dest` is there already and where it was begun from other images; OSError where the disk is full.
    """
    unfinished = dest.with_name(f"{dest.name}.partial")
    if dest.exists():
        raise Refusal(f"{dest} is there already, and nothing is overwritten; choose another name")
    dest.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(dest.with_name(f"{dest.name}.lock"), timeout=0):
            with _writable(unfinished) as environment:
                _fill(environment, source, size, crop)
            os.rename(unfinished, dest)
    except Timeout:
        raise Refusal(
            f"{dest} is being packed by another process; wait for it, or choose another name"
        ) from None
    return len(source.keys)


def _fill(environment: lmdb.Environment, source: Source, size: int, crop: str) -> None:
    """Write the images that are not there yet, a transaction a batch, and their count with the last."""
    n, done = len(source.keys), _done(environment, source, size, crop)
    names = _hash_of_names(source, range(done))
    loader: DataLoader = DataLoader(
        ErrorsAsValues(partial(_encoded, source, size, crop)),
        batch_sampler=(list(range(start, min(start + BATCH, n))) for start in range(done, n, BATCH)),
        num_workers=worker_count(os.cpu_count() or 1),
        collate_fn=list,
        worker_init_fn=_end_with_parent,
    )
    with tqdm(
        total=n, initial=done, unit="image", desc="packing", mininterval=0.5 if sys.stderr.isatty() else 30
    ) as bar:
        for images in loader:
            for error in (image for image in images if isinstance(image, Refusal)):
                raise Refusal(f"{error}; {done:,} images are packed so far, and the same command continues")
            entries = {key(size, done + i): image for i, image in enumerate(images)}
            names = _hash_of_names(source, range(done, done + len(images)), names)
            done += len(images)
            state = {"size": size, "crop": crop, "done": done, "names": names.hexdigest()}
            last = {LENGTH: str(n).encode(), STATE: None}
            _put(environment, entries | (last if done == n else {STATE: json.dumps(state).encode()}))
            bar.update(len(images))


def _done(environment: lmdb.Environment, source: Source, size: int, crop: str) -> int:
    """How many images are there. Raises Refusal where they are not the first of these."""
    path, n = environment.path(), len(source.keys)
    with environment.begin() as transaction:
        length, content = transaction.get(LENGTH), transaction.get(STATE)
        is_whole = length == str(n).encode() and transaction.get(key(size, n - 1)) is not None
    if is_whole:  # killed before it got its name
        return n
    if length is None and content is None:
        return 0
    state = json.loads(content or "{}")
    done = state.get("done", n + 1)
    same = {"size": size, "crop": crop, "done": done, "names": None}
    if done <= n:
        same["names"] = _hash_of_names(source, range(done)).hexdigest()
    if state != same:
        raise Refusal(
            f"{path} holds the beginning of other images, or of another size or crop; move it away to start anew"
        )
    return done


def _encoded(source: Source, size: int, crop: str, i: int) -> bytes:
    picture = decode(source, i, crop_face if crop == "celeba" else None)
    picture = picture.convert("L" if picture.mode in ("1", "L", "LA") else "RGB")
    picture = (
        picture.resize((size, size), Image.Resampling.BILINEAR) if crop == "none" else fit(picture, size)
    )
    encoded = io.BytesIO()
    picture.save(
        encoded, "WEBP", lossless=True, quality=0, method=0
    )  # of its lossless settings, the fastest to read
    return encoded.getvalue()


def _end_with_parent(worker: int) -> None:
    """A worker of a killed pack would wait for ever for someone to take its last images."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _hash_of_names(source: Source, indices: range, names: "hashlib._Hash | None" = None) -> "hashlib._Hash":
    """`names` with those of the images `indices` added: it tells whether a beginning is of the same images."""
    names = names or hashlib.sha256()
    for i in indices:
        name = source.keys[i]
        names.update((name if isinstance(name, bytes) else name.encode(errors="surrogateescape")) + b"\n")
    return names


@contextmanager
def _writable(path: Path) -> Iterator[lmdb.Environment]:
    path.mkdir(exist_ok=True)
    size = data_file(path).stat().st_size if is_lmdb(path) else 0
    with damage_told(path):
        environment = lmdb.open(
            str(path), map_size=max(FIRST_MAP, 2 * size), lock=False
        )  # pack has a lock of its own
    try:
        yield environment
    finally:
        environment.close()


def _put(environment: lmdb.Environment, entries: Mapping[bytes, bytes | None]) -> None:
    """Write all, None removing its key, or nothing: it is on the disk when this returns."""
    try:
        with environment.begin(write=True) as transaction:
            for name, value in entries.items():
                if value is None:
                    transaction.delete(name)
                else:
                    transaction.put(name, value)
    except lmdb.MapFullError:
        environment.set_mapsize(2 * environment.info()["map_size"])
        _put(environment, entries)
    except lmdb.Error as error:
        kept = f"what is packed is kept in {environment.path()}, and the same command continues"
        raise OSError(f"the disk takes no more ({error}); {kept}") from None


def _folder(path: Path, train: bool) -> Files:
    """The images below `path`; of CelebA's partition, or of folders train/ and test/, one split."""
    from datasets import celeba  # imports torchvision

    split = "train" if train else "test"
    place = celeba.find(path)
    if place is not None:
        logging.info(f"{place / celeba.PARTITION} splits these images: packing the {split} split")
        return celeba.split_files(place, celeba.TRAIN if train else celeba.TEST)
    folder = split_folder(path, train)
    if folder is None:
        raise Refusal(f"{path} has no test split: it has no folders train/ and test/")
    if folder != path:
        logging.info(f"{path} has folders train/ and test/: packing {split}/")
    return Files(folder, image_files(folder))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m datasets.pack", description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add(
        "source",
        type=Path,
        metavar="SOURCE",
        help="a folder of images, a zip of them, or an LMDB in LSUN's layout",
    )
    add(
        "dest",
        type=Path,
        metavar="DEST",
        help="the folder to make; while it is not whole it is called DEST.partial",
    )
    add(
        "--size",
        type=_size,
        required=True,
        metavar="N",
        help="pixels on a side, as the model's data.image_size",
    )
    add("--crop", choices=["celeba", "center", "none"], default="center",
        help="celeba: around the face of an aligned picture; center: the largest square, as training does it (default); "
        "none: the whole picture, squeezed where it is no square")  # fmt: skip
    add("--split", choices=["train", "test"], default="train",
        help="where SOURCE is split (CelebA's partition, or folders train/ and test/): which part (default: train)")  # fmt: skip
    return parser


def _size(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 16383:
        raise argparse.ArgumentTypeError(
            f"{text} is no size; it must be a whole number from 1 to 16383, WebP's largest"
        )
    return int(text)


def _fail(sentence: str, code: int) -> int:
    print(f"datasets.pack: error: {sentence}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
