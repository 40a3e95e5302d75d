"""The other scores over features that were kept, in the order of their images: torch-fidelity's formulas."""

from itertools import pairwise
from typing import NamedTuple

import numpy as np
from torch import Tensor

IS_SPLITS = 10
KID_SUBSETS, KID_SUBSET_SIZE = 100, 1000
PR_NEIGHBOURS = 3
SEED = 2020  # torch-fidelity's, so that its numbers come out


class MeanStd(NamedTuple):
    mean: float
    std: float


def inception_score(logits: Tensor) -> MeanStd:
    """Over ten splits (arXiv 1606.03498). logits: float32 (N, K), N ≥ 10; shuffled as torch-fidelity does.

    A split at a time, so that its float64 copies stay small.
    """
    from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, isc_features_to_metric

    order = np.random.RandomState(SEED).permutation(len(logits))
    bounds = [k * len(logits) // IS_SPLITS for k in range(IS_SPLITS + 1)]
    splits = [logits[order[start:stop]] for start, stop in pairwise(bounds)]
    scores = [isc_features_to_metric(split, splits=1, shuffle=False)[KEY_METRIC_ISC_MEAN] for split in splits]
    return MeanStd(float(np.mean(scores)), float(np.std(scores)))


def kernel_distance(features: Tensor, reference: Tensor) -> MeanStd:
    """KID (arXiv 1801.01401): mean and spread over 100 pairs of subsets of 1000, or of all where there are fewer.

    features (N, D) and reference (M, D), float32.
    """
    from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric

    size = kid_subset_size(len(features), len(reference))
    settings = {"kid_subsets": KID_SUBSETS, "kid_subset_size": size, "rng_seed": SEED, "verbose": False}
    result = kid_features_to_metric(features, reference, **settings)
    return MeanStd(result[KEY_METRIC_KID_MEAN], result[KEY_METRIC_KID_STD])


def kid_subset_size(n: int, m: int) -> int:
    return min(KID_SUBSET_SIZE, n, m)


class PrecisionRecall(NamedTuple):
    precision: float
    recall: float


def precision_recall(features: Tensor, reference: Tensor) -> PrecisionRecall:
    """With balls to the third neighbour (arXiv 1904.06991). features (N, D) and reference (M, D), float32, N and M > 3."""
    from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

    settings = {
        "prc_neighborhood": PR_NEIGHBOURS,
        "prc_batch_size": 1000,
        "save_cpu_ram": True,
        "verbose": False,
    }
    result = prc_features_to_metric(features, reference, **settings)
    return PrecisionRecall(result[KEY_METRIC_PRECISION], result[KEY_METRIC_RECALL])
