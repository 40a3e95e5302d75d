"""Mean and covariance as features come, the Fréchet distance between two such pairs, and how sure it is."""

from typing import NamedTuple

import torch
from torch import Tensor

from functions.runtime import distributed

GROUPS = 5  # each holds a matrix of 33 MB for Inception
T_QUANTILE = 2.776  # 97.5 % of Student's t with GROUPS - 1 degrees of freedom


class Moments:
    """The mean (D,) and scatter Σ (x - mean)(x - mean)ᵀ (D, D) of rows, float64, merged batch by batch.

    Chan, Golub & LeVeque 1979. Memory does not grow with the number of rows.
    """

    def __init__(self, dim: int, device: torch.device):
        # Metal has no float64.
        self.device = torch.device("cpu") if device.type == "mps" else device
        self.n = 0
        self.mean = torch.zeros(dim, dtype=torch.float64, device=self.device)
        self.scatter = torch.zeros(dim, dim, dtype=torch.float64, device=self.device)

    def add(self, rows: Tensor) -> None:
        """Count in `rows` (b, D), b > 0."""
        rows = rows.to(self.device, torch.float64)
        mean = rows.mean(dim=0)
        rows = rows - mean
        self._shift(len(rows), mean)
        self.scatter.addmm_(rows.T, rows)

    def merge(self, other: "Moments") -> None:
        self._shift(other.n, other.mean)
        self.scatter += other.scatter

    def without(self, part: "Moments") -> "Moments":
        """These moments before `part` was merged into them."""
        rest = Moments(0, self.device)
        rest.n = self.n - part.n
        rest.mean = (self.n * self.mean - part.n * part.mean) / rest.n
        delta = part.mean - rest.mean
        rest.scatter = (self.scatter - part.scatter).addr_(delta, delta, alpha=-rest.n * part.n / self.n)
        return rest

    def sum_over_ranks(self) -> None:
        """Merge those of all ranks."""
        own, mean = self.n, self.mean.clone()
        counts = distributed.all_reduce_sum(
            torch.tensor([float(own)], dtype=torch.float64, device=self.device)
        )
        self.n = round(counts.item())
        self.mean = distributed.all_reduce_sum(own * mean) / max(self.n, 1)
        delta = mean - self.mean
        self.scatter.addr_(delta, delta, alpha=own)
        distributed.all_reduce_sum(self.scatter)

    def gaussian(self) -> "Gaussian":
        """The mean and the unbiased covariance; of at least two rows."""
        assert self.n > 1
        return Gaussian(self.mean.cpu(), (self.scatter / (self.n - 1)).cpu())

    def _shift(self, n: int, mean: Tensor) -> None:
        """Take the mean of n more rows into this one, and what that does to the scatter."""
        delta, total = mean - self.mean, self.n + n
        self.scatter.addr_(delta, delta, alpha=self.n * n / max(total, 1))
        self.mean += delta * (n / max(total, 1))
        self.n = total


class Gaussian(NamedTuple):
    """mean (D,) and covariance (D, D), float64 on the CPU."""

    mean: Tensor
    covariance: Tensor


class FID(NamedTuple):
    """The distance, and by the jackknife its 95 % half-width and the distance less its bias; None for too few images."""

    value: float
    half_width: float | None
    bias_corrected: float | None


def root(covariance: Tensor) -> Tensor:
    """A with A·Aᵀ = covariance, which may be singular."""
    eigenvalues, vectors = torch.linalg.eigh(covariance)
    return vectors * eigenvalues.clamp(min=0).sqrt()


def frechet_distance(one: Gaussian, other: Gaussian, root_of_other: Tensor) -> float:
    """|μ₁ - μ₂|² + tr(Σ₁ + Σ₂ - 2·√(Σ₁Σ₂)) (Dowson & Landau 1982; FID: arXiv 1706.08500), never below 0.

    With Σ₂ = A·Aᵀ the product's eigenvalues are those of the symmetric AᵀΣ₁A: real, and ten times faster to find.
    """
    eigenvalues = torch.linalg.eigvalsh(root_of_other.T @ one.covariance @ root_of_other)
    trace_of_root = eigenvalues.clamp(min=0).sqrt().sum()
    shift = (one.mean - other.mean).square().sum()
    distance = shift + one.covariance.trace() + other.covariance.trace() - 2 * trace_of_root
    return max(0.0, distance.item())


def fid(groups: list[Moments], reference: Gaussian) -> FID:
    """The distance of all rows of `groups` to the reference, and its interval by leaving out a group at a time.

    The delete-a-group jackknife (Shao & Wu 1989) measures how the distance varies with the draw of the images;
    the reference is taken as exact. One group gives no interval.
    """
    total = Moments(len(groups[0].mean), groups[0].device)
    for group in groups:
        total.merge(group)
    A = root(reference.covariance)
    value = frechet_distance(total.gaussian(), reference, A)
    if len(groups) == 1:
        return FID(value, None, None)
    left = torch.tensor([frechet_distance(total.without(group).gaussian(), reference, A) for group in groups])
    spread = ((GROUPS - 1) * left.var(correction=0)).sqrt().item()
    return FID(value, T_QUANTILE * spread, GROUPS * value - (GROUPS - 1) * left.mean().item())
