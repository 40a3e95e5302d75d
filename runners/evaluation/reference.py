"""What generated images are compared with: a split of the data, a folder of images, or a file of statistics."""

import hashlib
import json
import logging
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from configs import Config
from configs.options import Options
from configs.refusal import Refusal
from datasets import Images, dataset_root, get_dataset
from datasets.batches import load, plain_order
from functions.disk import files, images
from functions.metrics.extractor import CHUNK, Extractor
from functions.metrics.frechet import Gaussian, Moments
from functions.runtime import distributed
from functions.runtime.progress import progress_bar

NEEDS_GAUSSIAN, NEEDS_FEATURES, NEEDS_IMAGES = {"fid"}, {"kid", "pr", "nn"}, {"nn"}
IMAGE_FILES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff"}


@dataclass(frozen=True)
class Source:
    """A reference before it is computed: its name, the hash of what decides it, and its images or its statistics."""

    name: str
    hash: str
    images: Images | None
    gaussian: Gaussian | None  # of a file of statistics

    @property
    def n(self) -> int | None:
        return None if self.images is None else len(self.images)


@dataclass(frozen=True)
class Reference:
    """The statistics and the features (n, D), float32, of a reference; None where no metric needs them."""

    gaussian: Gaussian | None
    features: Tensor | None


def find(options: Options, config: Config, dim: int) -> Source:
    """The reference that --reference names, for features of `dim` dimensions.

    Raises Refusal where it is not there or can't serve the metrics that were asked for.
    """
    what = options.reference
    if what.endswith(".npz"):
        for metric in sorted(set(options.metrics) & (NEEDS_FEATURES | NEEDS_IMAGES)):
            raise Refusal(
                f"--metrics {metric} needs images to compare with, and --reference {what} holds statistics only"
            )
        path = Path(what)
        return Source(
            path.name,
            files.digest(path, "sha256") if path.is_file() else "",
            None,
            _read_statistics(path, dim),
        )
    if what not in ("train", "test"):
        folder = FolderOfImages(Path(what), config)
        return Source(f"{what} ({len(folder)} images)", folder.fingerprint(), folder, None)
    root = dataset_root(config.data, options.exp, options.data)
    with distributed.main_first():
        dataset = get_dataset(config.data, root, train=what == "train")
    if dataset is None:
        raise Refusal(
            f"--reference test: {config.data.dataset} has no test split here: folders train/ and test/ would make one"
        )
    return Source(
        f"{config.data.dataset} {what} ({len(dataset)} images)",
        _hash_of_split(config, what, dataset, root),
        dataset,
        None,
    )


def compute(
    source: Source, metrics: tuple[str, ...], extractor: Extractor, folder: Path, num_workers: int
) -> Reference:
    """The statistics of `source` that `metrics` need: from `folder`, where they are kept, else computed and kept there."""
    gaussian, keep = source.gaussian, bool(NEEDS_FEATURES & set(metrics))
    if source.images is None or (not keep and not NEEDS_GAUSSIAN & set(metrics)):
        return Reference(gaussian, None)
    key = _hash({"reference": source.hash, "extractor": extractor.hash})[:16]
    path, features_path = folder / f"{key}.npz", folder / f"{key}.features.npy"
    there = path.exists() and (not keep or features_path.exists())
    distributed.barrier()  # every rank has looked before one writes
    if not there:
        logging.info(
            f"computing the statistics of {source.name} by {extractor.name}, once: they are kept in {folder}"
        )
        gaussian, features = _statistics(source.images, extractor, num_workers, keep)
        if distributed.is_main():
            _write(path, features_path, gaussian, features, source)
        return Reference(gaussian, features)
    return Reference(
        _read_statistics(path, extractor.dim),
        torch.from_numpy(np.load(features_path, mmap_mode="c")) if keep else None,
    )


class FolderOfImages:
    """The images of a folder, as they are: all must have the config's size."""

    def __init__(self, folder: Path, config: Config):
        if not folder.is_dir():
            raise Refusal(
                f"--reference {folder}: there is no such folder; it takes train, test, a folder or an .npz file"
            )
        self.paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_FILES)
        if len(self.paths) < 2:
            raise Refusal(f"--reference {folder} holds {len(self.paths)} images; at least 2 are needed")
        self.shape = (config.data.channels, config.data.image_size, config.data.image_size)
        for i in range(len(self.paths)):
            images.check_size(self.paths[i], self.shape)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> Tensor:
        return images.read_png(self.paths[i], self.shape)

    def fingerprint(self) -> str:
        return _hash(
            {
                "files": [f"{path.name} {files.digest(path, 'sha256')}" for path in self.paths],
                "shape": list(self.shape),
            }
        )


def _hash_of_split(config: Config, split: str, dataset: Images, root: Path) -> str:
    """Of all that decides the images: which data, made how, and the pixels where they lie in memory, else their files."""
    data = config.data
    content = (
        hashlib.sha256(dataset.contiguous().numpy().data).hexdigest()
        if isinstance(dataset, Tensor)
        else _hash_of_tree(root)
    )
    of = {
        "dataset": data.dataset,
        "category": data.category,
        "split": split,
        "size": data.image_size,
        "channels": data.channels,
    }
    return _hash({**of, "images": len(dataset), "content": content})


def _hash_of_tree(root: Path) -> str:
    """Of the names, sizes and dates of the files below `root`; LMDB's lock changes with every reader."""
    paths = [path for path in sorted(root.rglob("*")) if path.name != "lock.mdb" and path.is_file()]
    stats = [(path, path.stat()) for path in paths]
    return _hash({str(path.relative_to(root)): [stat.st_size, stat.st_mtime_ns] for path, stat in stats})


def _hash(content: dict) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _statistics(
    dataset: Images, extractor: Extractor, num_workers: int, keep: bool
) -> tuple[Gaussian, Tensor | None]:
    moments = Moments(extractor.dim, extractor.device)
    kept = torch.zeros(len(dataset), extractor.dim) if keep else None
    mine = list(plain_order(len(dataset), CHUNK))[distributed.rank() :: distributed.world_size()]
    with progress_bar(len(mine), unit="batch", desc="reference") as bar:
        for batch, pixels in load(dataset, mine, lambda n: slice(0, n), num_workers):
            features = extractor(pixels).features
            moments.add(features)
            if kept is not None:
                kept[torch.from_numpy(batch.indices)] = features.cpu()
            bar.update()
    moments.sum_over_ranks()
    if kept is not None:
        distributed.sum_over_ranks(kept, extractor.device)
    return moments.gaussian(), kept


def _write(
    path: Path, features_path: Path, gaussian: Gaussian, features: Tensor | None, source: Source
) -> None:
    """pytorch-fid's layout, which --reference takes too, and what it is of."""
    if features is not None:
        with files.atomic(features_path) as temporary, open(temporary, "wb") as file:
            np.save(file, features.numpy())
    with files.atomic(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, mu=gaussian.mean.numpy(), sigma=gaussian.covariance.numpy(), of=source.name)


def _read_statistics(path: Path, dim: int) -> Gaussian:
    """mu (D,) and sigma (D, D) of an .npz file, as pytorch-fid and EDM write them."""
    try:
        with np.load(path, allow_pickle=False) as content:
            mean, covariance = (torch.from_numpy(content[name]).double() for name in ("mu", "sigma"))
    except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile) as error:
        raise Refusal(
            f"{path} is no .npz file of mu and sigma, such as pytorch-fid's and EDM's: {error}"
        ) from None
    if mean.shape != (dim,) or covariance.shape != (dim, dim):
        raise Refusal(
            f"{path} holds mu {tuple(mean.shape)} and sigma {tuple(covariance.shape)}; the extractor gives {dim} features"
        )
    if not (mean.isfinite().all() and covariance.isfinite().all()):
        raise Refusal(f"{path} holds numbers that are not finite")
    return Gaussian(mean, covariance)
