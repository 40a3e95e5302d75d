"""Small data sets in the layouts that users have on disk, and pictures to fill them with."""

import gzip
import hashlib
import io
import pickle
from collections.abc import Mapping
from pathlib import Path

import lmdb
import numpy as np
import torchvision
from PIL import Image

from configs import DataConfig


def data_config(dataset, image_size=32, channels=3, **changes) -> DataConfig:
    flags = dict(
        logit_transform=False, uniform_dequantization=False, gaussian_dequantization=False, random_flip=False
    )
    return DataConfig(dataset, image_size, channels, **(flags | dict(rescaled=True, num_workers=0) | changes))


def random_images(*shape, seed=0):
    return np.random.RandomState(seed).randint(0, 256, shape, np.uint8)


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(random_images(height, width, 3, seed=seed))


def encoded(picture: Image.Image, kind: str = "PNG", **how: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **how)
    return file.getvalue()


def decoded(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content))


def pixels(picture: Image.Image) -> np.ndarray:
    """(3, h, w), as the readers give them."""
    return np.asarray(picture.convert("RGB")).transpose(2, 0, 1)


def write_lmdb(path: Path, entries: Mapping[bytes, bytes]) -> None:
    path.mkdir(parents=True, exist_ok=True)
    with lmdb.open(str(path), map_size=2**28) as environment, environment.begin(write=True) as transaction:
        for key, value in entries.items():
            transaction.put(key, value)


def read_lmdb(path: Path) -> dict[bytes, bytes]:
    with lmdb.open(str(path), readonly=True, lock=False) as environment, environment.begin() as transaction:
        return dict(transaction.cursor())


def write_ffhq(path: Path, size: int, n: int) -> list[Image.Image]:
    """Lossless, so that they can be compared. Image i is photo(size, size, i)."""
    photos = [photo(size, size, seed=i) for i in range(n)]
    entries = {f"{size}-{i:05d}".encode(): encoded(picture) for i, picture in enumerate(photos)}
    write_lmdb(path, {**entries, b"length": str(n).encode()})
    return photos


CELEBA_SPLITS = [0, 0, 1, 0, 2, 0, 2, 0]


def write_celeba(place: Path, official: bool, monkeypatch=None) -> dict[int, list[Image.Image]]:
    """The aligned JPEGs and their partition. `official`: with the other lists, whose md5s torchvision gets.

    Returns the images as their files decode, by split.
    """
    (place / "img_align_celeba").mkdir(parents=True)
    names = [f"{i + 1:06d}.jpg" for i in range(len(CELEBA_SPLITS))]
    by_split = {0: [], 1: [], 2: []}
    for i, (name, split) in enumerate(zip(names, CELEBA_SPLITS, strict=True)):
        content = encoded(photo(178, 218, seed=i), "JPEG", quality=90)
        (place / "img_align_celeba" / name).write_bytes(content)
        by_split[split].append(decoded(content))
    lists = {
        "list_eval_partition.txt": "".join(f"{n} {s}\n" for n, s in zip(names, CELEBA_SPLITS, strict=True))
    }
    if official:
        for name, columns in (("list_attr", 40), ("list_bbox", 4), ("list_landmarks_align", 10)):
            rows = "".join(f"{n} {' '.join(['1'] * columns)}\n" for n in names)
            lists[f"{name}_celeba.txt"] = f"{len(names)}\n{' '.join(['column'] * columns)}\n{rows}"
        lists["identity_CelebA.txt"] = "".join(f"{n} 1\n" for n in names)
        md5s = {name: hashlib.md5(text.encode()).hexdigest() for name, text in lists.items()}
        patched = [
            (id_, md5s.get(name, md5), name) for id_, md5, name in torchvision.datasets.CelebA.file_list
        ]
        monkeypatch.setattr(torchvision.datasets.CelebA, "file_list", patched)
    for name, text in lists.items():
        (place / name).write_text(text)
    return by_split


def write_cifar10(root, monkeypatch):
    """The official pickles with a few images each, and torchvision's md5s of them. Returns the images."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    images = {}
    lists = {"train_list": [f"data_batch_{k}" for k in range(1, 6)], "test_list": ["test_batch"]}
    for attribute, names in lists.items():
        md5s = []
        for k, name in enumerate(names):
            images[name] = random_images(4, 3, 32, 32, seed=k + len(attribute))
            content = pickle.dumps({"data": images[name].reshape(4, -1), "labels": [0] * 4})
            (folder / name).write_bytes(content)
            md5s.append([name, hashlib.md5(content).hexdigest()])
        monkeypatch.setattr(torchvision.datasets.CIFAR10, attribute, md5s)
    meta = pickle.dumps({"label_names": ["a"]})
    (folder / "batches.meta").write_bytes(meta)
    patched = {"filename": "batches.meta", "key": "label_names", "md5": hashlib.md5(meta).hexdigest()}
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "meta", patched)
    return images


def write_fashion(root, packed):
    """IDX files by the format's own definition."""
    root.mkdir(parents=True)
    images = {}
    for k, (name, n) in enumerate([("train", 6), ("t10k", 3)]):
        images[name] = random_images(n, 28, 28, seed=k)
        content = (
            b"\x00\x00\x08\x03" + b"".join(d.to_bytes(4, "big") for d in (n, 28, 28)) + images[name].tobytes()
        )
        path = root / f"{name}-images-idx3-ubyte{'.gz' if packed else ''}"
        path.write_bytes(gzip.compress(content) if packed else content)
    return images
