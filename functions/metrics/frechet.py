"""Mean and covariance of features, batch by batch; the Fréchet distance of two pairs, and its interval."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from functions.runtime import distributed

GROUPS = 5  # each holds a matrix of 33 MB for Inception
T_QUANTILE = 2.776  # 97.5 % of Student's t with GROUPS - 1 degrees of freedom


class Gaussian(NamedTuple):
    """mean (D,) and covariance (D, D), float64 on the CPU."""

    mean: Tensor
    covariance: Tensor


class FID(NamedTuple):
    """The distance; by the jackknife its 95 % half-width and the distance less its bias, or None."""

    value: float
    half_width: float | None = None
    bias_corrected: float | None = None


class Moments:
    """Mean (D,) and scatter Σ (x - mean)(x - mean)ᵀ of n rows, float64 (Chan, Golub & LeVeque 1979)."""

    def __init__(self, dim: int, device: torch.device):
        self.device = torch.device("cpu") if device.type == "mps" else device  # Metal has no float64
        self.n, self.mean = 0, torch.zeros(dim, dtype=torch.float64, device=self.device)
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

    def _shift(self, n: int, mean: Tensor) -> None:
        """Take the mean of n more rows into this one, and what that does to the scatter."""
        delta, total = mean - self.mean, self.n + n
        self.scatter.addr_(delta, delta, alpha=self.n * n / max(total, 1))
        self.mean += delta * (n / max(total, 1))
        self.n = total

    def sum_over_ranks(self) -> None:
        """Merge those of all ranks."""
        own, mean = self.n, self.mean
        self.n = int(distributed.all_reduce_sum(torch.tensor(own, device=self.device)))
        self.mean = distributed.all_reduce_sum(own * mean) / max(self.n, 1)
        delta = mean - self.mean
        self.scatter.addr_(delta, delta, alpha=own)
        distributed.all_reduce_sum(self.scatter)

    def gaussian(self) -> Gaussian:
        """The mean and the unbiased covariance; of at least two rows."""
        assert self.n > 1
        return Gaussian(self.mean.cpu(), (self.scatter / (self.n - 1)).cpu())


def root(covariance: Tensor) -> Tensor:
    """A with A·Aᵀ = covariance, which may be singular."""
    eigenvalues, vectors = torch.linalg.eigh(covariance)
    return vectors * eigenvalues.clamp(min=0).sqrt()


def frechet_distance(one: Gaussian, other: Gaussian, root_of_other: Tensor) -> float:
    """|μ₁ - μ₂|² + tr(Σ₁ + Σ₂ - 2·√(Σ₁Σ₂)) (Dowson & Landau 1982; FID: arXiv 1706.08500), never below 0."""
    # With Σ₂ = A·Aᵀ the product's eigenvalues are those of AᵀΣ₁A: symmetric, so ten times faster to find.
    eigenvalues = torch.linalg.eigvalsh(root_of_other.T @ one.covariance @ root_of_other)
    trace_of_root = eigenvalues.clamp(min=0).sqrt().sum()
    traces = (one.mean - other.mean).square().sum() + one.covariance.trace() + other.covariance.trace()
    return max(0.0, (traces - 2 * trace_of_root).item())


def fid(groups: Sequence[Moments], reference: Gaussian) -> FID:
    """The distance of all rows of `groups` to a reference, taken as exact; of GROUPS, with an interval."""
    A = root(reference.covariance)

    def distance(parts: Sequence[Moments]) -> float:
        total = Moments(len(reference.mean), parts[0].device)
        for part in parts:
            total.merge(part)
        return frechet_distance(total.gaussian(), reference, A)

    value = distance(groups)
    if len(groups) == 1:
        return FID(value)
    # The delete-a-group jackknife (Shao & Wu 1989) measures how the distance varies with the images drawn.
    left = torch.tensor([distance([*groups[:k], *groups[k + 1 :]]) for k in range(GROUPS)])
    spread = ((GROUPS - 1) * left.var(correction=0)).sqrt().item()
    return FID(value, T_QUANTILE * spread, GROUPS * value - (GROUPS - 1) * left.mean().item())
