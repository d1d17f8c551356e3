"""No answer opens a door that it does not fit: hostile answers, each clearly wrong for its gold, and none accepted."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from bridge_mcore.rewards import MathVerifier
from tests.rewards.false_keys import GOLDS, KEYS, PAIRS, hostile_pairs


@pytest.fixture(scope="module")
def verifier() -> Iterator[MathVerifier]:
    with MathVerifier(workers=1, cpu_seconds=2.0) as shared:
        yield shared


def accepted(verifier: MathVerifier, pairs: list[tuple[str, str]]) -> list[tuple[str, str, str]]:
    verdicts = verifier.verify([(gold, f"so \\boxed{{{answer}}}.") for gold, answer in pairs])
    return [(*pair, v.reason) for pair, v in zip(pairs, verdicts, strict=True) if v.verdict == "correct"]


def test_the_golds_accept_themselves(verifier: MathVerifier) -> None:
    """So a verifier that refuses everything fails here."""
    golds = [gold for gold, _ in GOLDS]
    assert len(accepted(verifier, [(gold, f" {gold} ") for gold in golds])) == len(golds)


def test_no_hostile_answer_is_right(verifier: MathVerifier, seed: int) -> None:
    every = hostile_pairs()
    assert len(every) > 5000 and len(PAIRS) >= 200 and len(KEYS) >= 100
    drawn = random.Random(seed).sample(every[len(PAIRS) :], 600)
    assert accepted(verifier, PAIRS + drawn) == []


@pytest.mark.slow
def test_none_of_all_hostile_answers_is_right(verifier: MathVerifier) -> None:
    assert accepted(verifier, hostile_pairs()) == []
