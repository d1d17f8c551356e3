"""Noise: as often as asked, the same again, independent over samples, and never on what is undecided."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest

from bridge_mcore.errors import ConfigError
from bridge_mcore.rewards.noise import NoisyReward, flips
from bridge_mcore.rewards.protocol import Attempt
from bridge_mcore.rewards.verdict import Verdict


class Fixed:
    """Gives the verdict that the response names."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.closed = 0

    def judge(self, attempts: Sequence[Attempt]) -> list[Verdict]:
        return [Verdict(attempt.response, "so", 0.5) for attempt in attempts]  # type: ignore[arg-type]

    def close(self) -> None:
        self.closed += 1


def attempts(n: int, response: str = "correct", samples: int = 4) -> list[Attempt]:
    return [Attempt("g", response, f"p{i // samples}", f"id{i // samples}", i % samples) for i in range(n)]


@pytest.mark.parametrize("p", [0.05, 0.3, 0.5])
def test_as_often_as_asked(p: float) -> None:
    """Within five standard deviations; hashes of fixed names, so this never fails by chance."""
    n = 20_000
    flipped = [flips(7, attempt, p) for attempt in attempts(n)]
    assert abs(sum(flipped) - n * p) < 5 * (n * p * (1 - p)) ** 0.5
    # Samples of one prompt are independent: pairs flip together with probability p².
    together = sum(a and b for a, b in zip(flipped[::4], flipped[1::4], strict=True))
    assert abs(together - n / 4 * p * p) < 5 * (n / 4 * p * p) ** 0.5 + 1


def test_the_same_again_and_in_any_company() -> None:
    batch = attempts(400)
    noisy = NoisyReward(Fixed(), 0.3, seed=1)
    first = noisy.judge(batch)
    assert NoisyReward(Fixed(), 0.3, seed=1).judge(batch) == first
    assert noisy.judge(batch[::-1]) == first[::-1]
    assert noisy.judge(batch[100:101]) == first[100:101]
    assert NoisyReward(Fixed(), 0.3, seed=2).judge(batch) != first
    # What is flipped at a small probability is flipped at a larger one.
    small = {i for i, attempt in enumerate(batch) if flips(1, attempt, 0.1)}
    assert small < {i for i, attempt in enumerate(batch) if flips(1, attempt, 0.3)}


def test_verdicts_are_exchanged_and_counted() -> None:
    reward = Fixed()
    noisy = NoisyReward(reward, 1.0)
    names = ["correct", "incorrect", "timeout", "error"]
    verdicts = noisy.judge([Attempt("g", name, id="x", sample=i) for i, name in enumerate(names)])
    assert [verdict.verdict for verdict in verdicts] == ["incorrect", "correct", "timeout", "error"]
    assert verdicts[0] == Verdict("incorrect", "flipped by noise; was: so")
    assert verdicts[2] == Verdict("timeout", "so", 0.5)
    assert noisy.counts == {**dict.fromkeys(names, 1), "flipped_to_correct": 1, "flipped_to_incorrect": 1}
    noisy.close()
    assert reward.closed == 1
    assert NoisyReward(reward, 0.0).judge(attempts(100)) == reward.judge(attempts(100))


def test_without_an_id_the_prompt_decides() -> None:
    several = [Attempt("g", "correct", f"p\ud800{i}") for i in range(200)]
    assert 0 < sum(flips(0, attempt, 0.5) for attempt in several) < 200


@pytest.mark.parametrize("p", [-0.1, 1.1, float("nan")])
def test_bad_probabilities(p: float) -> None:
    with pytest.raises(ConfigError, match="is no probability"):
        NoisyReward(Fixed(), p)
