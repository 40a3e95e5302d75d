"""How fast each reader is: images per second of one core's time, as a table beside torchvision's own readers.

    python benchmarks/data.py [--images 400]

Data sets in their real layouts are made of crops of scikit-learn's two photographs, with the sizes and JPEG
qualities of the originals. Each image is read, decoded, cropped and resized to a uint8 tensor. CPU time is
counted, so that other work on the machine matters little, and the best of three rounds is taken.
"""

import argparse
import io
import os
import pickle
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import lmdb
import numpy as np
import PIL
import torch
import torchvision
from PIL import Image
from sklearn.datasets import load_sample_images
from torchvision.transforms import CenterCrop, Compose, Lambda, PILToTensor, Resize

sys.path.insert(0, str(Path(__file__).parent.parent))

from configs import DataConfig
from datasets import Images, get_dataset, pack

ROUNDS = 3
WIDTH, HEIGHT = 178, 218  # CelebA's aligned pictures
LSUN_SIDE, LSUN_QUALITY = 256, 75  # LSUN's: the shorter side, and JPEG
Row = tuple[str, Images, Callable[[int], object] | None]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--images", type=int, default=400, metavar="N", help="in each data set (default: 400)"
    )
    n = parser.parse_args().images
    torch.set_num_threads(1)
    cores, date = os.cpu_count(), datetime.now(UTC).date()
    versions = f"Python {platform.python_version()}, Pillow {PIL.__version__}, torch {torch.__version__}"
    print(
        f"{cores} cores, {_processor()}; {versions}, torchvision {torchvision.__version__}; {date}; "
        f"{n} images each\n"
    )
    print("| reader | images/s per core | torchvision's |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        os.chdir(folder)  # torchvision's LSUN puts a pickle of the keys into the current folder
        for name, ours, theirs in _rows(Path(folder), n):
            compared = f"{_rate(theirs, n):,.0f}" if theirs else "none"
            print(f"| {name} | {_rate(ours.__getitem__, n):,.0f} | {compared} |", flush=True)


def _rows(folder: Path, n: int) -> Iterator[Row]:
    """Each reader with torchvision's for the same files, where it has one that still reads them."""
    _write_cifar10(folder / "cifar10", n)
    theirs: Callable[[int], object] = torchvision.datasets.CIFAR10(
        folder / "cifar10", transform=PILToTensor()
    ).__getitem__
    yield "CIFAR10, 32², in memory", get_dataset(_data("CIFAR10", 32), folder / "cifar10", train=True), theirs

    _write_celeba(folder / "celeba", n)
    upstreams = Compose([Lambda(lambda image: image.crop((25, 57, 153, 185))), Resize(64), PILToTensor()])
    theirs = torchvision.datasets.CelebA(folder / "celeba", target_type=[], transform=upstreams).__getitem__
    yield (
        "CELEBA, JPEG of 178 x 218, to 64²",
        get_dataset(_data("CELEBA", 64), folder / "celeba", train=True),
        theirs,
    )

    _write_lsun(folder / "lsun" / "bedroom_train_lmdb", n)
    for size in (256, 64):
        dataset = get_dataset(_data("LSUN", size), folder / "lsun", train=True)
        upstreams = Compose([Resize(size), CenterCrop(size), PILToTensor()])
        # A copy, for LMDB may not be opened twice in a process.
        copy = folder / f"lsun_{size}"
        copy.mkdir()
        shutil.copyfile(folder / "lsun" / "bedroom_train_lmdb" / "data.mdb", copy / "data.mdb")
        theirs = torchvision.datasets.lsun.LSUNClass(str(copy), transform=upstreams).__getitem__
        yield f"LSUN, JPEG of 256 x 341, to {size}²", dataset, theirs

    _write_folder(folder / "folder" / "all", n)
    upstreams = Compose([Resize(64), CenterCrop(64), PILToTensor()])
    theirs = torchvision.datasets.ImageFolder(folder / "folder", transform=upstreams).__getitem__
    yield (
        "FOLDER, JPEG of 640 x 427, to 64²",
        get_dataset(_data("FOLDER", 64), folder / "folder", train=True),
        theirs,
    )

    for size in (64, 256):
        packed = folder / f"packed_{size}"
        pack.pack(pack.open_source(folder / "lsun" / "bedroom_train_lmdb", "train"), packed, size, "center")
        yield f"LMDB (or FFHQ), packed at {size}²", get_dataset(_data("LMDB", size), packed, train=True), None


def _rate(read: Callable[[int], object], n: int) -> float:
    best = float("inf")
    for _ in range(ROUNDS):
        began = time.process_time()
        for i in range(n):
            read(i)
        best = min(best, time.process_time() - began)
    return n / best


def _data(dataset: str, size: int) -> DataConfig:
    kinds = {
        "uniform_dequantization": False,
        "gaussian_dequantization": False,
        "logit_transform": False,
        "rescaled": True,
    }
    return DataConfig(dataset, size, 3, random_flip=True, num_workers=0, category="bedroom", **kinds)  # type: ignore[arg-type]


def _crops(n: int, width: int, height: int) -> Iterator[Image.Image]:
    """Parts of two photographs of 640 x 427."""
    random = np.random.default_rng(0)
    photos = [Image.fromarray(photo) for photo in load_sample_images().images]
    for i in range(n):
        scale = random.uniform(0.6, 1) * min(640 / width, 427 / height)
        w, h = scale * width, scale * height
        left, top = random.uniform(0, 640 - w), random.uniform(0, 427 - h)
        yield photos[i % 2].resize(
            (width, height), Image.Resampling.BICUBIC, box=(left, top, left + w, top + h)
        )


def _jpeg(image: Image.Image, quality: int) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return file.getvalue()


def _write_cifar10(root: Path, n: int) -> None:
    """One batch of n images, with torchvision's md5s of it."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    images = np.stack([np.asarray(image).transpose(2, 0, 1) for image in _crops(n, 32, 32)])
    contents = {"data_batch_1": pickle.dumps({"data": images.reshape(n, -1), "labels": [0] * n})}
    contents["batches.meta"] = pickle.dumps({"label_names": ["a"]})
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    md5 = {name: torchvision.datasets.utils.calculate_md5(folder / name) for name in contents}
    cifar10 = torchvision.datasets.CIFAR10
    cifar10.train_list, cifar10.test_list = [["data_batch_1", md5["data_batch_1"]]], []
    cifar10.meta = {"filename": "batches.meta", "key": "label_names", "md5": md5["batches.meta"]}


def _write_celeba(root: Path, n: int) -> None:
    """The official layout, all of it in the training split, with torchvision's md5s of it."""
    place = root / "celeba"
    (place / "img_align_celeba").mkdir(parents=True)
    names = [f"{i + 1:06d}.jpg" for i in range(n)]
    for name, image in zip(names, _crops(n, WIDTH, HEIGHT), strict=True):
        (place / "img_align_celeba" / name).write_bytes(_jpeg(image, 75))
    columns = {"list_attr_celeba.txt": 40, "list_bbox_celeba.txt": 4, "list_landmarks_align_celeba.txt": 10}
    texts = {
        file: f"{n}\nnames\n" + "".join(f"{name}{' 1' * k}\n" for name in names)
        for file, k in columns.items()
    }
    texts["list_eval_partition.txt"] = texts["identity_CelebA.txt"] = "".join(f"{name} 0\n" for name in names)
    md5 = {}
    for file, text in texts.items():
        (place / file).write_text(text)
        md5[file] = torchvision.datasets.utils.calculate_md5(place / file)
    celeba = torchvision.datasets.CelebA
    celeba.file_list = [(id_, md5.get(file, old), file) for id_, old, file in celeba.file_list]


def _write_lsun(path: Path, n: int) -> None:
    path.mkdir(parents=True)
    with lmdb.open(str(path), map_size=2**32) as environment, environment.begin(write=True) as transaction:
        for i, image in enumerate(_crops(n, 341, LSUN_SIDE)):
            transaction.put(f"{i:040x}".encode(), _jpeg(image, LSUN_QUALITY))


def _write_folder(folder: Path, n: int) -> None:
    folder.mkdir(parents=True)
    for i, image in enumerate(_crops(n, 640, 427)):
        (folder / f"{i:06}.jpg").write_bytes(_jpeg(image, 90))


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        platform.processor(),
    )


if __name__ == "__main__":
    main()
