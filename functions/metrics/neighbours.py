"""The nearest of many vectors, which come batch by batch."""

import torch
from torch import Tensor


class Nearest:
    """For each of some queries (q, D) the nearest vector seen so far: its number and its Euclidean distance."""

    def __init__(self, queries: Tensor, own: Tensor):
        """own (q,): the number of the vector that is the query itself and does not count; -1 for none."""
        self.queries, self.own = queries, own
        self.distances = torch.full((len(queries),), torch.inf)
        self.indices = torch.zeros(len(queries), dtype=torch.long)

    def add(self, vectors: Tensor, first: int) -> None:
        """Look at `vectors` (b, D), which are number `first` and those after it. The first of equals stays."""
        # Not by way of a product, in which small distances between large vectors would drown.
        distances = torch.cdist(self.queries, vectors, compute_mode="donot_use_mm_for_euclid_dist")
        numbers = first + torch.arange(len(vectors))
        distances = distances.masked_fill(self.own[:, None] == numbers, torch.inf)
        nearest, where = distances.min(dim=1)
        closer = nearest < self.distances
        self.distances = torch.where(closer, nearest, self.distances)
        self.indices = torch.where(closer, numbers[where], self.indices)
