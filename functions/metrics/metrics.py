"""The metrics of a set of images: a class for each, and a table of them.

A class says what it needs of the samples and of the reference, and computes a result of plain JSON values.
The formulas of IS, KID, precision and recall are torch-fidelity's.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Collection
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from functions.metrics import frechet, neighbours
from functions.metrics.extractor import Extractor

SEED = 2020  # torch-fidelity's, so that its numbers come out
Result = dict[str, Any]


class Reference(NamedTuple):
    """What samples are compared with, and a hash of what decides it. Parts that nothing needs are missing."""

    name: str
    hash: str
    images: Any = None  # m images, uint8 (c, h, w)
    gaussian: frechet.Gaussian | None = None
    features: Tensor = torch.empty(0)  # (m, D) float32


class Evidence(Protocol):
    """What metrics are computed from. A part of the samples that no metric needs is empty."""

    moments: list[frechet.Moments]  # of blocks of the samples
    features: Tensor  # (n, D) float32
    logits: Tensor  # (n, K) float32
    pixels: Tensor  # uint8 (k, c, h, w), the first 64 samples: for all n take features or moments
    reference: Reference
    extractor: Extractor
    sheet: Path  # where a picture of the nearest neighbours goes


class Number(NamedTuple):
    """A value with an optional ±: a standard deviation, or half of a 95 % interval."""

    value: float
    spread: float | None = None


class Metric(ABC):
    """What every metric has."""

    fewest: ClassVar[int]  # images that it needs
    samples: ClassVar[str]  # the one part of the samples that it needs: moments, features, logits or pixels
    reference: ClassVar[Collection[str]] = ()  # the parts of the reference that it needs
    usual_n: ClassVar[int] = 0  # images of published values, where all have as many
    shown: ClassVar[tuple[str, ...]] = ()  # in tables: a name, and the result's keys of value and spread
    spread: ClassVar[str] = ""  # what that ± is

    @abstractmethod
    def compute(self, evidence: Evidence) -> Result: ...

    def numbers(self, result: Result) -> dict[str, Number]:
        """The numbers of a result for tables, by name."""
        name, *keys = self.shown
        return {name: Number(*[result[key] for key in keys])}

    def notes(self, result: Result, n: int, dim: int) -> list[str]:
        """Caveats, printed beside the numbers, for n images and features of `dim` dimensions."""
        said = f"N is not {self.usual_n:,}: not comparable with published values"
        return [] if self.usual_n in (0, n) else [said]


class FID(Metric):
    """Fréchet distance (arXiv 1706.08500), with its 95 % interval."""

    fewest, samples, reference, usual_n = 2, "moments", ["gaussian"], 50_000
    shown, spread = ("fid", "value", "half_width"), "half of the 95 % interval of these images"

    def compute(self, evidence: Evidence) -> Result:
        assert evidence.reference.gaussian is not None
        return frechet.fid(evidence.moments, evidence.reference.gaussian)._asdict()

    def notes(self, result: Result, n: int, dim: int) -> list[str]:
        biased = [f"N is not above the {dim} features: biased"] if n <= dim else []
        return biased + super().notes(result, n, dim)


class InceptionScore(Metric):
    """Over ten splits (arXiv 1606.03498), shuffled as torch-fidelity does."""

    fewest, samples, usual_n, shown = 10, "logits", 50_000, ("is", "mean", "std")
    spread = "standard deviation over 10 splits"

    def compute(self, evidence: Evidence) -> Result:
        from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, isc_features_to_metric

        n = len(evidence.logits)
        order = np.random.RandomState(SEED).permutation(n)
        # A split at a time, so that its float64 copies stay small.
        parts = (evidence.logits[order[i:j]] for i, j in pairwise(k * n // 10 for k in range(11)))
        scores = [isc_features_to_metric(part, splits=1, shuffle=False) for part in parts]
        means = [score[KEY_METRIC_ISC_MEAN] for score in scores]
        return {"mean": float(np.mean(means)), "std": float(np.std(means))}


class KID(Metric):
    """Kernel distance (arXiv 1801.01401) over 100 pairs of subsets of 1000, or of all if fewer."""

    fewest, samples, reference, shown = 2, "features", ["features"], ("kid", "mean", "std")
    spread = "standard deviation over 100 pairs of subsets"

    def compute(self, evidence: Evidence) -> Result:
        from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric

        features, theirs = evidence.features, evidence.reference.features
        size = min(1000, len(features), len(theirs))
        settings = {"kid_subsets": 100, "kid_subset_size": size, "rng_seed": SEED, "verbose": False}
        scores = kid_features_to_metric(features, theirs, **settings)
        return {"mean": scores[KEY_METRIC_KID_MEAN], "std": scores[KEY_METRIC_KID_STD], "subset_size": size}

    def notes(self, result: Result, n: int, dim: int) -> list[str]:
        size = result["subset_size"]
        return [f"subsets of {size}, where 1000 are usual"] if size < 1000 else []


class PrecisionRecall(Metric):
    """With balls to the third neighbour (arXiv 1904.06991)."""

    fewest, samples, reference = 4, "features", ["features"]

    def compute(self, evidence: Evidence) -> Result:
        from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

        settings = {"prc_neighborhood": 3, "prc_batch_size": 1000, "save_cpu_ram": True, "verbose": False}
        scores = prc_features_to_metric(evidence.features, evidence.reference.features, **settings)
        return {"precision": scores[KEY_METRIC_PRECISION], "recall": scores[KEY_METRIC_RECALL]}

    def numbers(self, result: Result) -> dict[str, Number]:
        return {name: Number(value) for name, value in result.items()}


class NearestNeighbours(Metric):
    """Has the model memorised? The training images nearest to the first samples, in pixels and features."""

    fewest, samples, reference = 1, "pixels", ["features", "images"]

    def compute(self, evidence: Evidence) -> Result:
        of = evidence.reference
        return neighbours.examine(evidence.pixels, of.images, of.features, evidence.extractor, evidence.sheet)

    def numbers(self, result: Result) -> dict[str, Number]:
        """The median distance over the typical one of training images."""
        medians = {f"nn, {space}": (match["median"], match["typical"]) for space, match in result.items()}
        return {name: Number(ours / usual if usual else math.inf) for name, (ours, usual) in medians.items()}


# By the names in configs/choices.py, in the order of tables.
METRICS: dict[str, Metric] = {
    "fid": FID(), "is": InceptionScore(), "kid": KID(), "pr": PrecisionRecall(), "nn": NearestNeighbours(),
}  # fmt: skip
