"""What several answers to each problem say."""

from __future__ import annotations

from collections.abc import Sequence
from math import comb


def pass_at_k(correct: int, samples: int, k: int) -> float:
    """Unbiased estimate of the chance that one of k answers is right (Chen et al., 2021, arXiv 2107.03374, Eq. 1)."""
    if not 0 < k <= samples:
        raise ValueError(f"k = {k} must be between 1 and the {samples} samples")
    return 1.0 - comb(samples - correct, k) / comb(samples, k)


def mean_pass_at_k(correct: Sequence[int], samples: int, k: int) -> float:
    """Mean over problems; `correct` counts each problem's right answers. k = 1 is avg@samples."""
    return sum(pass_at_k(c, samples, k) for c in correct) / len(correct)
