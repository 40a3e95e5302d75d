"""The Fréchet distance, its interval and the scores: against closed forms, numpy and torch-fidelity."""

from types import SimpleNamespace

import numpy as np
import pytest
import scipy.linalg
import torch

from functions.metrics import frechet
from functions.metrics.frechet import Gaussian, Moments, frechet_distance, root
from functions.metrics.metrics import METRICS

CPU = torch.device("cpu")


def random_gaussian(rng, dim, rank) -> Gaussian:
    factor = rng.standard_normal((dim, rank))
    return Gaussian(torch.tensor(rng.standard_normal(dim)), torch.tensor(factor @ factor.T))


@pytest.mark.parametrize("rank", [12, 5])
def test_the_distance_is_the_closed_form_for_gaussians(rank):
    """Against scipy's matrix root and torch-fidelity's formula; 5 of 12 dimensions: singular covariances.

    pytorch-fid's own function is scipy's root of the product; with scipy 1.18 it no longer runs.
    """
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric

    rng = np.random.default_rng(0)
    one, other = (random_gaussian(rng, 12, rank) for _ in range(2))
    (m1, s1), (m2, s2) = ((g.mean.numpy(), g.covariance.numpy()) for g in (one, other))
    ours = frechet_distance(one, other, root(other.covariance))
    r = scipy.linalg.sqrtm(s1).real
    middle = scipy.linalg.sqrtm(r @ s2 @ r).real
    assert ours == pytest.approx(((m1 - m2) ** 2).sum() + np.trace(s1 + s2 - 2 * middle), rel=1e-5)
    theirs = fid_statistics_to_metric({"mu": m1, "sigma": s1}, {"mu": m2, "sigma": s2}, False)[KEY_METRIC_FID]
    assert ours == pytest.approx(theirs, rel=1e-6)
    assert ours == pytest.approx(
        ((m1 - m2) ** 2).sum() + np.trace(s1 + s2 - 2 * scipy.linalg.sqrtm(s1 @ s2).real), rel=1e-4
    )
    assert frechet_distance(one, one, root(one.covariance)) == pytest.approx(0, abs=1e-5)


def test_the_distance_of_independent_gaussians_is_the_sum_over_dimensions():
    deviations = torch.tensor([[1.0, 2, 3], [4, 0.5, 3]], dtype=torch.float64)
    means = torch.tensor([[0.0, 0, 1], [3, 0, 1]], dtype=torch.float64)
    one, other = (Gaussian(m, torch.diag(d**2)) for m, d in zip(means, deviations, strict=True))
    assert frechet_distance(one, other, root(other.covariance)) == pytest.approx(9 + 9 + 2.25)


def test_moments_merged_in_any_order_are_numpys():
    """Features far from 0, where a sum of squares would lose its digits."""
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((50, 6)) + 1e5)
    whole, parts = Moments(6, CPU), [Moments(6, CPU) for _ in range(3)]
    for part, rows in zip(parts, (x[30:], x[:7], x[7:30]), strict=True):
        for few in rows.split(4):
            part.add(few)
        whole.merge(part)
    mean, covariance = whole.gaussian()
    assert whole.n == len(x)
    np.testing.assert_allclose(mean, x.numpy().mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(covariance, np.cov(x.numpy(), rowvar=False), rtol=1e-6)


def test_the_interval_covers_the_spread_of_independent_draws():
    """FIDs of 200 sets of 100 draws: the jackknife tells their standard deviation, and takes off the bias."""
    generator = torch.Generator().manual_seed(0)
    reference = Gaussian(torch.zeros(4, dtype=torch.float64), torch.eye(4, dtype=torch.float64))
    found = []
    for _ in range(200):
        groups = [Moments(4, CPU) for _ in range(frechet.GROUPS)]
        for group in groups:
            group.add(0.5 + 1.2 * torch.randn(100 // frechet.GROUPS, 4, generator=generator))
        found.append(frechet.fid(groups, reference))
    values = np.array([f.value for f in found])
    spread = np.sqrt(np.mean([(f.half_width / 2.776) ** 2 for f in found]))
    assert spread == pytest.approx(values.std(), rel=0.15)
    truth = 4 * (0.25 + 0.04)
    inside = np.mean([abs(f.bias_corrected - truth) < f.half_width for f in found])
    assert 0.9 <= inside <= 0.99
    assert abs(np.mean([f.bias_corrected for f in found]) - truth) < 0.3 * abs(values.mean() - truth)


def test_the_scores_are_torch_fidelitys():
    from torch_fidelity.metric_isc import isc_features_to_metric

    logits = torch.randn(53, 7, generator=torch.Generator().manual_seed(0)) * 3
    theirs = isc_features_to_metric(logits)
    ours = METRICS["is"].compute(SimpleNamespace(logits=logits))
    expected = {"mean": theirs["inception_score_mean"], "std": theirs["inception_score_std"]}
    assert ours == pytest.approx(expected, rel=1e-12)
