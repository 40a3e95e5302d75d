"""Has the model memorised? Samples beside their nearest reference images, in pixels and in features, flips considered."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from datasets import Images
from datasets.batches import load, plain_order
from functions.disk import images
from functions.metrics.extractor import CHUNK, Extractor
from functions.metrics.neighbours import Nearest
from functions.runtime import distributed

EXAMINED, SHOWN = 64, 16


class Match(NamedTuple):
    """The nearest reference image of each sample, its distance, and whether it is the mirrored sample's."""

    nearest: Tensor
    distances: Tensor
    mirrored: Tensor


def examine(
    samples: Tensor, dataset: Images, features: Tensor, extractor: Extractor, sheet: Path
) -> dict[str, Any]:
    """The nearest of `dataset` to each of `samples`, uint8 (n, c, h, w), and the picture `sheet` of the closest ones.

    features: those of `dataset`, (m, D) float32. "typical" is the median distance of as many reference images to their
    nearest others: the samples of a model that has memorised lie far closer. Plain JSON values.
    """
    own = torch.from_numpy(np.linspace(0, len(dataset) - 1, min(EXAMINED, len(dataset))).astype(int))
    queries = torch.cat([samples, torch.stack([dataset[i] for i in own.tolist()])])
    queries = torch.cat([queries, queries.flip(-1)])
    numbers = torch.cat([torch.full((len(samples),), -1), own]).repeat(2)

    by_features = Nearest(extractor(queries).features.cpu(), numbers)
    for first in range(0, len(features), CHUNK):
        by_features.add(features[first : first + CHUNK], first)
    by_pixels = Nearest(_pixels(queries), numbers)
    for batch, pictures in load(
        dataset, plain_order(len(dataset), CHUNK), lambda n: slice(0, n), num_workers=0
    ):
        by_pixels.add(_pixels(pictures), int(batch.indices[0]))

    found = {"pixels": _matches(by_pixels), "features": _matches(by_features)}
    if distributed.is_main():
        closest = found["features"].distances[: len(samples)].argsort()[:SHOWN].tolist()
        matches = [[_picture(dataset, match, i) for i in closest] for match in found.values()]
        images.sheet(sheet, [[samples[i] for i in closest], *matches])
    return {space: _summary(match, len(samples)) for space, match in found.items()}


def _pixels(pictures: Tensor) -> Tensor:
    return pictures.flatten(1).float() / 255


def _matches(nearest: Nearest) -> Match:
    """The closer of each query and its mirror image, which are the two halves of the queries."""
    distances, indices = nearest.distances.view(2, -1), nearest.indices.view(2, -1)
    mirrored = distances.argmin(dim=0)
    pick = mirrored[None]
    return Match(indices.gather(0, pick)[0], distances.gather(0, pick)[0], mirrored.bool())


def _picture(dataset: Images, match: Match, i: int) -> Tensor:
    picture = dataset[int(match.nearest[i])]
    return picture.flip(-1) if match.mirrored[i] else picture


def _summary(match: Match, n: int) -> dict[str, Any]:
    median, typical = match.distances[:n].median().item(), match.distances[n:].median().item()
    per_sample = {name: values[:n].tolist() for name, values in match._asdict().items()}
    return {"median": median, "typical": typical, **per_sample}
