"""Rewards that need no processes: reading an answer takes time linear in its length."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence

from bridge_mcore.rewards.extract import final_answer
from bridge_mcore.rewards.protocol import Attempt
from bridge_mcore.rewards.verdict import Verdict

#: Longest answer in characters that is read.
MAX_ANSWER = 2000


class LocalReward:
    """Judges one attempt after the other, here."""

    def __init__(self, judge_one: Callable[[Attempt], Verdict]) -> None:
        self._judge_one = judge_one
        self._lock = threading.Lock()
        #: Verdicts ever given, by name.
        self.counts: Counter[str] = Counter()

    def judge(self, attempts: Sequence[Attempt]) -> list[Verdict]:
        """See :class:`bridge_mcore.rewards.protocol.Reward`."""
        verdicts = [self._judge_one(attempt) for attempt in attempts]
        with self._lock:
            self.counts.update(verdict.verdict for verdict in verdicts)
        return verdicts

    def close(self) -> None:
        """Nothing to end."""


def given_answer(attempt: Attempt) -> str | Verdict:
    """What a response says in the end, or why that is no answer."""
    answer = final_answer(attempt.response)
    if answer is None:
        return Verdict("incorrect", "no \\boxed{} answer")
    if len(answer) > MAX_ANSWER:
        return Verdict("incorrect", f"an answer of {len(answer)} characters")
    return answer
