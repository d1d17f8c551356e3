"""The rewards that judge an evaluation, and equality of answers for votes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from bridge_mcore.data.problem import Problem
from bridge_mcore.evaluation.suites import Benchmark
from bridge_mcore.rewards.mixed import Rewards, RewardSettings
from bridge_mcore.rewards.protocol import Attempt
from bridge_mcore.rewards.verdict import Verdict

if TYPE_CHECKING:
    from bridge_mcore.evaluation.run import Judge


class Verifiers:
    """Rewards by benchmark; their processes end with the context."""

    def __init__(self, workers: int, settings: RewardSettings = RewardSettings()) -> None:
        self._settings = replace(settings, workers=workers, noise=0.0)
        self._rewards: dict[float, Rewards] = {}

    def judge_of(self, benchmark: Benchmark) -> Judge:
        """What judges answers to a benchmark."""
        rewards = self._of(benchmark.tolerance)

        def judge(problems: Sequence[Problem], attempts: Sequence[Attempt]) -> list[Verdict]:
            return rewards.judge([problem.reward for problem in problems], attempts)

        return judge

    def prepare(self, benchmark: Benchmark, names: Iterable[str]) -> None:
        """Build what a benchmark needs: what is missing is said before anything is answered."""
        self._of(benchmark.tolerance).prepare(names)

    def _of(self, tolerance: float) -> Rewards:
        if tolerance not in self._rewards:
            self._rewards[tolerance] = Rewards(replace(self._settings, tolerance=tolerance))
        return self._rewards[tolerance]

    def same(self, pairs: Sequence[tuple[str, str]]) -> list[bool]:
        """Whether the answers of each pair are equal: as mathematics, or word for word."""
        attempts = [Attempt(one, f"\\boxed{{{other}}}") for one, other in pairs]
        verdicts = self._of(0.0).judge(["math"] * len(attempts), attempts)
        return [verdict.verdict == "correct" for verdict in verdicts]

    def __enter__(self) -> Verifiers:
        return self

    def __exit__(self, *_: object) -> None:
        for rewards in self._rewards.values():
            rewards.close()
