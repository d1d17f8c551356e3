"""Random answers that are equal by construction or unequal by value, judged right and wrong."""

from __future__ import annotations

import random

import pytest

from bridge_mcore.rewards import MathVerifier
from tests.rewards.expressions import fuzzed_pair


def misjudged(rng: random.Random, count: int) -> list[object]:
    pairs = [fuzzed_pair(rng) for _ in range(count)]
    with MathVerifier(workers=1) as verifier:
        verdicts = verifier.verify([(gold, f"so \\boxed{{{answer}}}") for (gold, answer), _ in pairs])
    assert 0.3 < sum(equal for _, equal in pairs) / count < 0.7
    return [
        (*pair, f"equal: {equal}", verdict)
        for (pair, equal), verdict in zip(pairs, verdicts, strict=True)
        if (verdict.verdict == "correct") != equal  # what is unequal may also be too hard to tell
    ]


def test_fuzzed_pairs(seed: int) -> None:
    assert misjudged(random.Random(seed), 400) == []


@pytest.mark.slow
def test_five_thousand_fuzzed_pairs(seed: int) -> None:
    assert misjudged(random.Random(seed), 5000) == []
