"""A problem with several right answers of which a response must give one (`golds: any` of a data source)."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from bridge_mcore.data.problem import ANY_OF
from bridge_mcore.rewards.protocol import Attempt, Reward
from bridge_mcore.rewards.verdict import Verdict


class AnyOfReward:
    """Another reward, asked once for each of an attempt's golds: the best of its verdicts counts."""

    def __init__(self, reward: Reward) -> None:
        self.reward = reward
        self._lock = threading.Lock()
        #: Verdicts ever given, one an attempt, by name.
        self.counts: Counter[str] = Counter()

    def judge(self, attempts: Sequence[Attempt]) -> list[Verdict]:
        """See :class:`bridge_mcore.rewards.protocol.Reward`."""
        golds = [attempt.gold.split(ANY_OF) for attempt in attempts]
        asked = [
            replace(attempt, gold=gold) if len(several) > 1 else attempt
            for attempt, several in zip(attempts, golds, strict=True)
            for gold in several
        ]
        judged = iter(self.reward.judge(asked))
        verdicts = [max((next(judged) for _ in several), key=_rank) for several in golds]
        with self._lock:
            self.counts.update(verdict.verdict for verdict in verdicts)
        return verdicts

    def close(self) -> None:
        """Close the reward underneath."""
        self.reward.close()


def _rank(verdict: Verdict) -> tuple[bool, bool, float]:
    """Right before undecided before wrong, then by score."""
    return verdict.verdict == "correct", not verdict.decided, verdict.score or 0.0
