"""What images are compared with: a split of the data, a folder of images, or a file of statistics."""

import hashlib
import json
import logging
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from configs import Config, door
from configs.options import Options
from configs.refusal import Refusal
from datasets import Images, dataset_root, get_dataset, test_split_would_be
from datasets.batches import load, plain_order
from datasets.pictures import Pictures, exact_pictures
from datasets.tree import Files, image_files, split_files
from functions.disk import files
from functions.metrics.extractor import CHUNK, Extractor
from functions.metrics.frechet import Gaussian, Moments
from functions.metrics.metrics import METRICS, Reference
from functions.runtime import distributed
from functions.runtime.progress import progress_bar


def find(options: Options, config: Config, dim: int) -> Reference:
    """What --reference names, not computed yet. Raises Refusal if it is missing or the metrics need more."""
    what, path = options.reference, Path(options.reference)
    if what in ("train", "test"):
        return _of_split(what, options, config)

    if what.endswith(".npz"):
        for name in sorted(options.metrics):
            if set(METRICS[name].reference) - {"gaussian"}:
                has = f"--reference {what} has statistics only"
                raise Refusal(f"--metrics {name} needs images to compare with; {has}")
        gaussian = _read_statistics(path, dim)
        return Reference(path.name, files.digest(path, "sha256"), gaussian=gaussian)

    if not path.is_dir():
        takes = "it takes train, test, a folder or an .npz file"
        raise Refusal(f"--reference {what}: no such folder; {takes}")
    found, data = split_files(path, train=True), config.data
    assert found is not None
    if len(found.keys) < 2:
        raise Refusal(f"--reference {what} holds {len(found.keys)} images; at least 2 are needed")
    images = exact_pictures(path, found.keys, data.shape, data.background)
    return _of_folder(path, images.check_some(500))


def named(what: str, options: Options, config: Config) -> Reference:
    """The images that `what` names: train, test, or a folder, whose pictures are fitted to the model's size.

    Raises Refusal where there are none.
    """
    if what in ("train", "test"):
        return _of_split(what, options, config)
    path = Path(what)
    if not path.is_dir() or not (names := image_files(path)):
        raise Refusal(f"{what} is neither train, nor test, nor a folder of images")
    images = Pictures(Files(path, names), config.data.shape, background=config.data.background)
    return _of_folder(path, images.check_some(500))


def _of_split(what: str, options: Options, config: Config) -> Reference:
    data = config.data
    images = split(replace(options, reference=what), config)
    of: dict[str, Any] = {"dataset": data.dataset, "category": data.category, "split": what}
    of |= {"size": data.image_size, "channels": data.channels, "images": len(images)}
    of["content"] = _content(images)
    return Reference(f"{data.dataset} {what} ({len(images)} images)", _hash(of), images)


def _of_folder(path: Path, images: Pictures) -> Reference:
    identity = _hash({"content": _content(images), "shape": list(images.shape)})
    return Reference(f"{path} ({len(images)} images)", identity, images)


def split(options: Options, config: Config) -> Images:
    """The training or test images, as --reference says. Raises Refusal where there is no test split."""
    data, root = config.data, dataset_root(config.data, options.exp, options.data)
    with distributed.main_first():
        dataset = get_dataset(data, root, train=options.reference == "train")
    if dataset is None:
        would_be = f"{test_split_would_be(data, root)}; --reference train takes what it was trained on"
        raise Refusal(f"{data.dataset} has no test split here: {would_be}")
    return dataset


def compute(
    of: Reference, parts: set[str], extractor: Extractor, folder: Path, num_workers: int
) -> Reference:
    """With the parts that are needed, which are kept in `folder`."""
    if of.images is None or not parts & {"gaussian", "features"}:
        return of

    # Read them where they are kept; one job makes them while others wait.
    key = _hash({"reference": of.hash, "extractor": extractor.hash})[:16]
    path, features_path = folder / f"{key}.npz", folder / f"{key}.features" if "features" in parts else None
    with ExitStack() as stack:
        if distributed.is_main():
            with suppress(OSError):  # what is kept may lie on a disk that is read-only
                folder.mkdir(parents=True, exist_ok=True)
                stack.enter_context(FileLock(folder / f"{key}.lock"))
        found = _kept(of, path, features_path, extractor)
        return found or _computed(of, path, features_path, extractor, num_workers)


def _kept(of: Reference, path: Path, features_path: Path | None, extractor: Extractor) -> Reference | None:
    """With what is kept; None where that is missing or damaged, for all ranks alike."""
    there = path.exists() and (features_path is None or features_path.exists())
    if not distributed.min_over_ranks(
        int(there), extractor.device
    ):  # every rank has looked before one writes
        return None
    try:
        return _read_kept(of, path, features_path, extractor.dim)
    except Refusal as error:
        logging.warning(f"{error}; it is computed anew")
        return None


def _computed(
    of: Reference, path: Path, features_path: Path | None, extractor: Extractor, num_workers: int
) -> Reference:
    """By all ranks; the first keeps the statistics at `path`."""
    assert of.images is not None
    once = f"once: they are kept in {path.parent}"
    logging.info(f"computing the statistics of {of.name} by {extractor.name}, {once}")
    moments = Moments(extractor.dim, extractor.device)
    features = torch.zeros(len(of.images) if features_path else 0, extractor.dim)
    mine = list(plain_order(len(of.images), CHUNK))[distributed.rank() :: distributed.world_size()]
    with progress_bar(len(mine), unit="batch", desc="reference") as bar:
        for batch, images in load(of.images, mine, slice, num_workers):
            found, _ = extractor(images)
            moments.add(found)
            if features_path:
                features[torch.from_numpy(batch.indices)] = found.cpu()
            bar.update()
    moments.sum_over_ranks()
    distributed.sum_over_ranks(features, extractor.device)

    # Keep them: the statistics in pytorch-fid's layout, the features in an archive with checksums too.
    gaussian = moments.gaussian()
    if distributed.is_main():
        if features_path:
            _keep(features_path, features=features.numpy())
        _keep(path, mu=gaussian.mean.numpy(), sigma=gaussian.covariance.numpy(), of=of.name)
    return of._replace(gaussian=gaussian, features=features)


def _keep(path: Path, **arrays: Any) -> None:
    with files.atomic(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)


def _read_kept(of: Reference, path: Path, features_path: Path | None, dim: int) -> Reference:
    """Raises Refusal where a file is damaged; its checksum says so."""
    of = of._replace(gaussian=_read_statistics(path, dim))
    if features_path is None:
        return of
    with door.reading(features_path, "a file of features"), np.load(features_path) as content:
        features = torch.from_numpy(content["features"])
    return of._replace(features=features)


def _content(images: Images) -> str:
    """A hash of the pixels in memory, else of all that is read."""
    if isinstance(images, Tensor):
        return hashlib.sha256(images.contiguous().numpy().data).hexdigest()
    assert isinstance(images, Pictures)
    return images.identity()


def _hash(content: dict) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _read_statistics(path: Path, dim: int) -> Gaussian:
    """mu (D,) and sigma (D, D) of an .npz file, as pytorch-fid and EDM write them."""
    what = "an .npz file of mu and sigma, as pytorch-fid writes it"
    with door.reading(path, what), np.load(door.regular(path), allow_pickle=False) as content:
        mean, covariance = (torch.from_numpy(content[name]).double() for name in ("mu", "sigma"))
    if mean.shape != (dim,) or covariance.shape != (dim, dim):
        shapes = f"mu {tuple(mean.shape)} and sigma {tuple(covariance.shape)}"
        raise Refusal(f"{path} holds {shapes}; the extractor gives {dim} features")
    if not (mean.isfinite().all() and covariance.isfinite().all()):
        raise Refusal(f"{path} holds numbers that are not finite")
    size = covariance.abs().max().item()
    if (covariance - covariance.T).abs().max() > 1e-4 * size:
        raise Refusal(f"{path}: sigma is not symmetric, so it is not a covariance")
    if (lowest := torch.linalg.eigvalsh(covariance)[0].item()) < -1e-3 * size:
        raise Refusal(f"{path}: sigma has the eigenvalue {lowest:g}; a covariance has none below 0")
    return Gaussian(mean, covariance)
