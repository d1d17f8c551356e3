"""What several answers to each problem say, and how sure of it one may be.

Problems are the unit that is resampled: answers to one problem are not independent of one another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb

import numpy as np

from bridge_mcore.monitoring.curves import wilson

#: Draws of the bootstrap and of the permutation test. Their own error is below 0.002 (one standard deviation).
RESAMPLES = 20_000
_LOW, _HIGH = 2.5, 97.5


@dataclass(frozen=True)
class Interval:
    """A mean over problems, in [0, 1], and the ends of its 95 % interval."""

    value: float
    low: float
    high: float


def pass_at_k(correct: int, samples: int, k: int) -> float:
    """Unbiased estimate of the chance that one of k answers is right (Chen et al., 2021, arXiv 2107.03374, Eq. 1)."""
    if not 0 < k <= samples:
        raise ValueError(f"k = {k} must be between 1 and the {samples} samples")
    return 1.0 - comb(samples - correct, k) / comb(samples, k)


def mean_pass_at_k(correct: Sequence[int], samples: int, k: int) -> float:
    """Mean over problems; `correct` counts each problem's right answers. k = 1 is avg@samples."""
    return sum(pass_at_k(c, samples, k) for c in correct) / len(correct)


def powers_of_two(samples: int) -> list[int]:
    """The k of pass@k that a table shows: 2, 4, 8, … and all samples; none for a single one."""
    return sorted({k for i in range(1, samples.bit_length()) if (k := 1 << i) <= samples} | {samples} - {1})


def bootstrap(sets: Sequence[Sequence[float]], seed: int = 0) -> Interval:
    """Mean over sets of the mean over each set's problems, with its percentile interval (Efron, 1979).

    Problems are drawn within each set, as the sets are what they are. Where no problem differs from another in any
    set, the bootstrap would claim certainty: then the ends are Wilson's, of all problems as one set.
    """
    values = [np.asarray(scores, dtype=np.float64) for scores in sets]
    mean = float(np.mean([v.mean() for v in values]))
    if all(v.min() == v.max() for v in values):
        low, high = wilson(mean, sum(len(v) for v in values))
        return Interval(mean, low, high)
    draws = np.mean([_resampled(v, seed + i) for i, v in enumerate(values)], axis=0)
    low, high = np.percentile(draws, [_LOW, _HIGH])
    return Interval(mean, float(low), float(high))


def _resampled(values: np.ndarray, seed: int) -> np.ndarray:
    """Means of RESAMPLES draws with replacement. Counts of equal values suffice: no matrix of draws × problems."""
    found, counts = np.unique(values, return_counts=True)
    drawn = np.random.default_rng(seed).multinomial(len(values), counts / len(values), size=RESAMPLES)
    return drawn @ found / len(values)


@dataclass(frozen=True)
class Difference:
    """Of two models on the same problems: mean of second minus first, its 95 % interval, and how likely as large a
    difference is if the models do not differ."""

    value: float
    low: float
    high: float
    p: float


def paired_difference(first: Sequence[Sequence[float]], second: Sequence[Sequence[float]], seed: int = 0) -> Difference:
    """Compare per-problem scores, set by set: paired bootstrap, and a paired permutation test (two-sided).

    The test flips the sign of each problem's difference at random (Fisher, 1935): exact, up to RESAMPLES draws,
    whatever the scores' distribution. It assumes no more than that, without a difference, each model could have had
    the other's scores.
    """
    differences = [np.asarray(b, float) - np.asarray(a, float) for a, b in zip(first, second, strict=True)]
    observed = float(np.mean([d.mean() for d in differences]))
    if not any(d.any() for d in differences):
        return Difference(0.0, 0.0, 0.0, 1.0)
    draws = np.mean([_resampled(d, seed + i) for i, d in enumerate(differences)], axis=0)
    low, high = np.percentile(draws, [_LOW, _HIGH])
    flipped = np.mean([_flipped(d, seed + i) for i, d in enumerate(differences)], axis=0)
    # The observed assignment is one of those possible, so p is never 0.
    extreme = int((np.abs(flipped) >= abs(observed) - 1e-12).sum())
    return Difference(observed, float(low), float(high), (extreme + 1) / (RESAMPLES + 1))


def _flipped(differences: np.ndarray, seed: int) -> np.ndarray:
    """Means after random flips of signs. Among n equal sizes, the number that stays positive is binomial."""
    sizes, counts = np.unique(np.abs(differences), return_counts=True)
    positive = np.random.default_rng(seed).binomial(counts, 0.5, size=(RESAMPLES, len(sizes)))
    return (2 * positive - counts) @ sizes / len(differences)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values of several tests, adjusted so that the chance of any false claim is kept (Holm, 1979)."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted
