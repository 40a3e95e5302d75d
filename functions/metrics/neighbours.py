"""Samples beside their nearest reference images, in pixels and in features, mirrored ones too."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from functions.disk import images
from functions.metrics.extractor import CHUNK, Extractor
from functions.runtime import distributed

EXAMINED, SHOWN = 64, 16


class Nearest:
    """For each query (q, D) the nearest vector seen so far: its number and its Euclidean distance."""

    def __init__(self, queries: Tensor, own: Tensor):
        """own (q,): the number of the vector that is the query itself and does not count; -1 for none."""
        self.queries, self.own = queries, own
        self.distances, self.indices = torch.full((len(queries),), torch.inf), torch.zeros_like(own)

    def add(self, vectors: Tensor, first: int) -> None:
        """Look at `vectors` (b, D), whose numbers begin with `first`. Of equals the first stays."""
        # Not by a product of matrices, in which small distances between large vectors would drown.
        distances = torch.cdist(self.queries, vectors, compute_mode="donot_use_mm_for_euclid_dist")
        numbers = first + torch.arange(len(vectors))
        nearest, position = distances.masked_fill(self.own[:, None] == numbers, torch.inf).min(dim=1)
        closer = nearest < self.distances
        self.distances = torch.where(closer, nearest, self.distances)
        self.indices = torch.where(closer, numbers[position], self.indices)

    def summary(self, n: int) -> dict[str, Any]:
        """Of the first n queries, and the median of the others. Half the queries mirror the first half."""
        distances, mirrored = self.distances.view(2, -1).min(dim=0)
        nearest = self.indices.view(2, -1).gather(0, mirrored[None])[0]
        medians = {"median": distances[:n].median().item(), "typical": distances[n:].median().item()}
        each = {"nearest": nearest, "distances": distances, "mirrored": mirrored.bool()}
        return medians | {name: values[:n].tolist() for name, values in each.items()}


def examine(
    samples: Tensor, dataset: Any, features: Tensor, extractor: Extractor, sheet: Path
) -> dict[str, Any]:
    """The images of `dataset`, of features (m, D), nearest to `samples`, uint8 (n, c, h, w), as plain JSON.

    "typical" is the median distance of a reference image to its nearest other: the samples of a model that
    has memorised lie far closer. A picture of the closest goes to `sheet`.
    """
    # The samples, some images of the data set for comparison, and the mirror images of both.
    own = torch.from_numpy(np.linspace(0, len(dataset) - 1, min(EXAMINED, len(dataset))).astype(int))
    queries = torch.cat([samples, torch.stack([dataset[i] for i in own.tolist()])])
    queries = torch.cat([queries, queries.flip(-1)])
    own = torch.cat([torch.full((len(samples),), -1), own]).repeat(2)

    # Look at the data set in chunks.
    by_pixels = Nearest(_pixels(queries), own)
    by_features = Nearest(extractor(queries)[0].cpu(), own)
    for numbers in torch.arange(len(dataset)).split(CHUNK):
        by_pixels.add(_pixels(torch.stack([dataset[i] for i in numbers.tolist()])), int(numbers[0]))
        by_features.add(features[numbers], int(numbers[0]))
    n = len(samples)
    found = {"pixels": by_pixels.summary(n), "features": by_features.summary(n)}

    # Show the closest.
    if distributed.is_main():
        closest = sorted(range(n), key=found["features"]["distances"].__getitem__)[:SHOWN]
        rows = [[samples[i] for i in closest]]
        for match in found.values():
            pictures = {i: dataset[match["nearest"][i]] for i in closest}
            rows.append([pictures[i].flip(-1) if match["mirrored"][i] else pictures[i] for i in closest])
        images.sheet(sheet, rows)
    return found


def _pixels(pictures: Tensor) -> Tensor:
    return pictures.flatten(1).float() / 255
