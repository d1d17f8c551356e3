r"""Verify mathematical answers: the last ``\boxed{}`` of a response against a gold answer."""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Sequence
from types import TracebackType

from bridge_mcore.rewards.boxed import last_boxed
from bridge_mcore.rewards.exact import clean, compare
from bridge_mcore.rewards.pool import Outcome, Pool
from bridge_mcore.rewards.protocol import Attempt
from bridge_mcore.rewards.verdict import Verdict

#: Longest answer in characters that is compared as mathematics. The longest of MATH500 has 53.
MAX_ANSWER = 4096
#: Decided pairs that are remembered. A group of rollouts, and an epoch later the same prompt, repeat themselves.
CACHE_PAIRS = 1 << 15
#: Characters in all of a pair that is remembered, so that the cache stays below some 50 MB.
CACHE_CHARACTERS = 512


class MathVerifier:
    """Says of (gold, response) pairs whether the response's boxed answer is right.

    Rules, in this order: the last balanced box is the answer; identical text is correct; plain numbers, numerals in a
    base and units are compared exactly in this process (:mod:`bridge_mcore.rewards.exact`); the rest goes to
    Math-Verify in a pool of killable processes (:mod:`bridge_mcore.rewards.equivalence`), which starts when it is
    first needed. Any thread may call.

    :param workers: processes that run Math-Verify.
    :param cpu_seconds: CPU seconds that one comparison may take. CPU time: a wall limit rejects right answers on a
        loaded machine.
    :param wall_seconds: seconds after which a comparison is given up however little CPU time it got.
    :param memory_gib: address space in GiB that one process may take.
    :raises ConfigError: a limit that is not positive.
    """

    def __init__(
        self, workers: int = 2, cpu_seconds: float = 5.0, wall_seconds: float = 60.0, memory_gib: float = 2.0
    ) -> None:
        self._pool = Pool("bridge_mcore.rewards.equivalence:equivalent", workers, cpu_seconds, wall_seconds, memory_gib)
        self._cache: OrderedDict[tuple[str, str], Verdict] = OrderedDict()
        self._lock = threading.Lock()
        #: Verdicts ever given, by name. Log it: a rising "timeout" or "error" is a broken or gamed reward.
        self.counts: Counter[str] = Counter()

    def verify(self, pairs: Sequence[tuple[str, str]]) -> list[Verdict]:
        """The verdict on every (gold, response) pair, in order.

        :raises BridgeError: the worker processes cannot be started, or the verifier is closed.
        """
        verdicts: dict[int, Verdict] = {}
        undecided: dict[tuple[str, str], list[int]] = {}  # equal pairs of a batch are compared once
        for index, (gold, response) in enumerate(pairs):
            decided = _prepare(gold, response)
            if isinstance(decided, Verdict):
                verdicts[index] = decided
            else:
                undecided.setdefault(decided, []).append(index)
        for pair in list(undecided):
            if (known := self._recall(pair)) is not None:
                for index in undecided.pop(pair):
                    verdicts[index] = known
        if undecided:
            for (pair, indices), outcome in zip(undecided.items(), self._pool.map(list(undecided)), strict=True):
                verdict = _judge(outcome)
                self._remember(pair, verdict)
                for index in indices:
                    verdicts[index] = verdict
        with self._lock:
            self.counts.update(verdict.verdict for verdict in verdicts.values())
        return [verdicts[index] for index in range(len(pairs))]

    def judge(self, attempts: Sequence[Attempt]) -> list[Verdict]:
        """See :class:`bridge_mcore.rewards.protocol.Reward`."""
        return self.verify([(attempt.gold, attempt.response) for attempt in attempts])

    def close(self) -> None:
        """End the worker processes."""
        self._pool.close()

    def __enter__(self) -> MathVerifier:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _recall(self, pair: tuple[str, str]) -> Verdict | None:
        with self._lock:
            if pair in self._cache:
                self._cache.move_to_end(pair)
            return self._cache.get(pair)

    def _remember(self, pair: tuple[str, str], verdict: Verdict) -> None:
        if not verdict.decided or len(pair[0]) + len(pair[1]) > CACHE_CHARACTERS:
            return
        with self._lock:
            self._cache[pair] = verdict
            if len(self._cache) > CACHE_PAIRS:
                self._cache.popitem(last=False)


def _prepare(gold: str, response: str) -> Verdict | tuple[str, str]:
    """The verdict where it needs no computer algebra, else the (gold, answer) pair to compare."""
    gold_box = last_boxed(gold)
    gold = clean(gold if gold_box is None else gold_box)
    if not gold:
        return Verdict("error", "the gold answer is empty")
    answer = last_boxed(response)
    if answer is None:
        return Verdict("incorrect", "no \\boxed{} answer")
    if len(answer) > MAX_ANSWER and len(answer) > 2 * len(gold):
        return Verdict("incorrect", f"an answer of {len(answer)} characters")
    answer = clean(answer)
    if not answer:
        return Verdict("incorrect", "an empty \\boxed{} answer")
    if (verdict := compare(gold, answer)) is not None:
        return verdict
    if len(gold) > MAX_ANSWER:
        return Verdict("error", f"the gold answer has {len(gold)} characters; at most {MAX_ANSWER} can be compared")
    if len(answer) > MAX_ANSWER:
        return Verdict("incorrect", f"an answer of {len(answer)} characters")
    return gold, answer


def _judge(outcome: Outcome) -> Verdict:
    if outcome.kind == "timeout":
        return Verdict("timeout", f"the comparison was stopped: {outcome.reason}")
    if outcome.kind != "done":
        return Verdict("error", f"the comparison failed: {outcome.reason}")
    if outcome.value["equal"]:
        return Verdict("correct", outcome.value["note"])
    if outcome.retired:
        # Math-Verify answers False to a MemoryError inside it, so this False may mean nothing.
        return Verdict("error", "the comparison failed: it came too near the limit of memory")
    return Verdict("incorrect", outcome.value["note"])
