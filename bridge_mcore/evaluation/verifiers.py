"""The rewards that judge an evaluation, and equality of answers for votes."""

from __future__ import annotations

from collections.abc import Sequence

from bridge_mcore.data.problem import Problem
from bridge_mcore.evaluation.run import Judge
from bridge_mcore.evaluation.suites import Benchmark
from bridge_mcore.rewards import MathVerifier, Verdict
from bridge_mcore.rewards.protocol import Attempt


class Verifiers:
    """Rewards by benchmark; their processes end with the context."""

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._math: dict[float, MathVerifier] = {}

    def judge_of(self, benchmark: Benchmark) -> Judge:
        """What judges answers to a benchmark."""
        verifier = self._verifier(benchmark.tolerance)

        def judge(problems: Sequence[Problem], attempts: Sequence[Attempt]) -> list[Verdict]:
            return verifier.judge(attempts)

        return judge

    def _verifier(self, tolerance: float) -> MathVerifier:
        if tolerance not in self._math:
            self._math[tolerance] = MathVerifier(self._workers)
        return self._math[tolerance]

    def same(self, pairs: Sequence[tuple[str, str]]) -> list[bool]:
        """Whether the answers of each pair are equal, as mathematics."""
        verdicts = self._verifier(0.0).verify([(one, f"\\boxed{{{other}}}") for one, other in pairs])
        return [verdict.verdict == "correct" for verdict in verdicts]

    def __enter__(self) -> Verifiers:
        return self

    def __exit__(self, *_: object) -> None:
        for verifier in self._math.values():
            verifier.close()
