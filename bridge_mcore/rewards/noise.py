"""Noise on purpose: verdicts that are flipped with a probability, for the paper's experiment on robustness.

Which ones is decided by a hash of seed, problem and number of the sample, by nothing else: a run that is resumed, and
another method on the same problems, meet the same noise. Two samples of one prompt are flipped independently.
"""

from __future__ import annotations

import hashlib
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from bridge_mcore.errors import ConfigError
from bridge_mcore.rewards.protocol import Attempt, Reward
from bridge_mcore.rewards.verdict import Verdict, VerdictName


def flips(seed: int, attempt: Attempt, probability: float) -> bool:
    """Whether the verdict on this attempt is flipped; grows with ``probability``: what flips at 0.1 flips at 0.2."""
    problem = attempt.id or f"{attempt.prompt}\0{attempt.gold}"
    key = f"noise/{seed}/{problem}/{attempt.sample}".encode("utf-8", "surrogatepass")
    drawn = int.from_bytes(hashlib.sha256(key).digest()[:8], "big")
    return drawn < probability * 2**64


class NoisyReward:
    """Another reward whose verdicts "correct" and "incorrect" are exchanged with a probability.

    A flipped verdict has no score, since the true one would tell. Undecided verdicts stay.

    :param probability: of each verdict, from 0 to 1.
    :raises ConfigError: a probability outside.
    """

    def __init__(self, reward: Reward, probability: float, seed: int = 0) -> None:
        if not 0 <= probability <= 1:
            raise ConfigError(f"noise: {probability} is no probability; give a number from 0 to 1")
        self.reward, self.probability, self.seed = reward, probability, seed
        self._lock = threading.Lock()
        #: Verdicts ever given, after the noise; "flipped_to_correct" and "flipped_to_incorrect" count the flips.
        self.counts: Counter[str] = Counter()

    def judge(self, attempts: Sequence[Attempt]) -> list[Verdict]:
        """See :class:`bridge_mcore.rewards.protocol.Reward`."""
        verdicts = []
        counts: Counter[str] = Counter()
        for attempt, verdict in zip(attempts, self.reward.judge(attempts), strict=True):
            if verdict.decided and flips(self.seed, attempt, self.probability):
                other: VerdictName = "incorrect" if verdict.verdict == "correct" else "correct"
                verdict = replace(verdict, verdict=other, score=None, reason=f"flipped by noise; was: {verdict.reason}")
                counts[f"flipped_to_{other}"] += 1
            counts[verdict.verdict] += 1
            verdicts.append(verdict)
        with self._lock:
            self.counts.update(counts)
        return verdicts

    def close(self) -> None:
        """Close the reward underneath."""
        self.reward.close()
