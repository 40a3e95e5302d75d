"""The metrics of images as they are made, from the bytes that go into the PNGs."""

import platform
import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from configs import Config
from configs.options import Options
from configs.refusal import Refusal
from datasets.pictures import Pictures, Shape, exact_pictures
from functions.metrics import frechet, neighbours
from functions.metrics.extractor import Extractor, load_extractor
from functions.metrics.metrics import METRICS, Reference
from functions.runtime import distributed
from runners.evaluation import measurements, reference


class Evaluator:
    """The metrics of a command, with the extractor and the reference that all its folders share."""

    def __init__(self, options: Options, config: Config, device: torch.device):
        """Raises Refusal where these are not to be had, or do not fit the metrics."""
        for name in options.metrics:
            if options.num_samples < (n := METRICS[name].fewest):
                has = f"--num_samples is {options.num_samples}"
                raise Refusal(f"--metrics {name} needs at least {n} images; {has}")
        self.exp, self.num_workers = options.exp, config.data.num_workers
        self.metrics = [name for name in METRICS if name in options.metrics]
        self.needs = {METRICS[name].samples for name in self.metrics}
        path = Path(options.features) if options.features else None
        self.extractor = load_extractor(path, config.data.image_size, device)
        if "logits" in self.needs and not self.extractor.classes:
            name = next(name for name in self.metrics if METRICS[name].samples == "logits")
            raise Refusal(f"--metrics {name} needs the classes of Inception; --features {path} has none")
        self.source = reference.find(options, config, self.extractor.dim)

    @cached_property
    def reference(self) -> Reference:
        """Computed once. Every rank must ask for it."""
        needs = {part for name in self.metrics for part in METRICS[name].reference}
        folder = Path(self.exp, "fid_stats")
        return reference.compute(self.source, needs, self.extractor, folder, self.num_workers)

    def samples(
        self, n: int, batch_size: int, folder: Path, shape: Shape, pictures: Pictures | None = None
    ) -> "Samples":
        """For n images (c, h, w). The reference is computed first: what is wrong with it shows early."""
        _ = self.reference
        return Samples(self.extractor, self.needs, n, batch_size, folder, shape, pictures)

    def deciding(self, num_samples: int) -> dict[str, Any]:
        """What the numbers depend on besides the images."""
        of, by = self.source, self.extractor
        n = None if of.images is None else len(of.images)
        return {
            "num_samples": num_samples,
            "reference": {"name": of.name, "hash": of.hash, "num_images": n},
            "extractor": {"name": by.name, "hash": by.hash, "dim": by.dim},
        }

    def measure(self, samples: "Samples", identity: dict[str, Any], began: float) -> dict[str, Any]:
        """The measurement, kept beside the folder too. Every rank must ask."""
        samples.sum_over_ranks()
        samples.reference, deciding = self.reference, self.deciding(samples.n)
        versions = {name: version(name) for name in ("torch-fidelity", "numpy", "scipy", "pillow")}
        measured = deciding | {
            "metrics": {name: METRICS[name].compute(samples) for name in self.metrics},
            "device": str(self.extractor.device),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": round(time.monotonic() - began, 1),
            "versions": {"python": platform.python_version(), "torch": str(torch.__version__)} | versions,
        }
        if distributed.is_main():
            measurements.store(samples.folder, identity, deciding, measured)
        return measured


class Samples:
    """The `Evidence` of n images, taken by aligned batches: order, ranks and restarts do not change it."""

    reference: Reference  # known when they are measured

    def __init__(
        self,
        extractor: Extractor,
        needs: set[str],
        n: int,
        batch_size: int,
        folder: Path,
        shape: Shape,
        pictures: Pictures | None = None,
    ):
        """needs: the parts that the metrics need; the others stay empty.

        pictures: the images that exist; None for {i}.png in `folder`.
        """
        self.extractor, self.n, self.batch_size, self.pictures = extractor, n, batch_size, pictures
        self.folder, self.shape, self.sheet = folder, shape, folder.parent / f"{folder.name}.nn.png"
        self.seen = torch.zeros(n, dtype=torch.int32)
        groups = frechet.GROUPS if n >= 2 * frechet.GROUPS else 1  # fewer images give no interval
        sizes = {"moments": groups, "features": n, "logits": n, "pixels": min(n, neighbours.EXAMINED)}
        rows = {part: size if part in needs else 0 for part, size in sizes.items()}
        self.moments = [frechet.Moments(extractor.dim, extractor.device) for _ in range(rows["moments"])]
        self.features = torch.zeros(rows["features"], extractor.dim)
        self.logits = torch.zeros(rows["logits"], extractor.classes)
        self.pixels = torch.zeros(rows["pixels"], *shape, dtype=torch.uint8)

    def read(self, batches: Iterable[int]) -> None:
        """Take the aligned batches of these numbers from the folder."""
        for k in batches:
            self.add([k * self.batch_size], self._read(k * self.batch_size)[None])

    def add(self, indices: Sequence[int], pictures: Tensor) -> None:
        """Take images of one aligned batch, uint8 (b, c, h, w) on any device. The folder has its others."""
        first = indices[0] // self.batch_size * self.batch_size
        batch = range(first, min(first + self.batch_size, self.n))
        if len(indices) < len(batch):
            made = dict(zip(indices, pictures.cpu(), strict=True))
            pictures = torch.stack([made[i] if i in made else self._read(i) for i in batch])
        features, logits = self.extractor(pictures)
        self.seen[batch.start : batch.stop] += 1
        for part, found in ((self.features, features), (self.logits, logits), (self.pixels, pictures)):
            rows = part[batch.start : batch.stop]  # of the pixels only the first, of an empty part none
            rows.copy_(found[: len(rows)])
        for k, block in enumerate(self.moments):
            members = [row for row, i in enumerate(batch) if i * len(self.moments) // self.n == k]
            if members:
                block.add(features[members])

    def sum_over_ranks(self) -> None:
        """Bring the ranks' shares together. Raises Refusal where images are missing."""
        for part in (self.seen, self.features, self.logits, self.pixels):
            distributed.sum_over_ranks(part, self.extractor.device)
        for block in self.moments:
            block.sum_over_ranks()
        if (complete := int((self.seen == 1).sum())) < self.n:
            only = f"only {complete} have features: there is no number"
            raise Refusal(f"{self.n} images were asked for, and {only}")

    def _read(self, i: int) -> Tensor:
        if self.pictures is not None:
            return self.pictures[i]
        return exact_pictures(self.folder, [f"{i}.png"], self.shape)[0]
