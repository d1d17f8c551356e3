r"""Verify mathematical answers: the last ``\boxed{}`` of a response against a gold answer."""

from __future__ import annotations

import math
import threading
from collections import Counter, OrderedDict
from collections.abc import Sequence
from types import TracebackType

from bridge_mcore.config.rewards import Unfinished
from bridge_mcore.errors import BridgeError, ConfigError
from bridge_mcore.rewards.boxed import answer_boxes
from bridge_mcore.rewards.exact import clean
from bridge_mcore.rewards.pool import Outcome, Pool
from bridge_mcore.rewards.protocol import Attempt
from bridge_mcore.rewards.same import Decision, decide
from bridge_mcore.rewards.thoughts import after_thought
from bridge_mcore.rewards.unfinished import why_unfinished
from bridge_mcore.rewards.verdict import Verdict

#: Longest answer in characters that is compared as mathematics. The longest of MATH500 has 53.
MAX_ANSWER = 4096
#: Decided pairs that are remembered. A group of rollouts, and an epoch later the same prompt, repeat themselves.
CACHE_PAIRS = 1 << 15
#: Characters in all of a pair that is remembered, so that the cache stays below some 50 MB.
CACHE_CHARACTERS = 512
#: Pairs from which on a batch is decided by the workers, and those in one job of theirs.
SHARED_BATCH, SHARE = 1024, 64
#: A gold and an answer, both out of their boxes and cleaned.
_Pair = tuple[str, str]


class MathVerifier:
    """Says of (gold, response) pairs whether the response's boxed answer is right.

    The last balanced box is the answer. The structure of an answer, and all formulas that exact arithmetic can settle,
    are decided in microseconds (:mod:`bridge_mcore.rewards.same`); the rest goes to Math-Verify in a pool of killable
    processes (:mod:`bridge_mcore.rewards.equivalence`), which starts when it is first needed. Any thread may call.

    :param workers: processes that run Math-Verify.
    :param cpu_seconds: CPU seconds that one comparison may take. CPU time: a wall limit rejects right answers on a
        loaded machine.
    :param wall_seconds: seconds after which a comparison is given up however little CPU time it got.
    :param memory_gib: address space in GiB that one process may take.
    :param tolerance: relative error that is allowed where the gold answer is an integer or a decimal: 0.01 for answers
        of physics problems that were rounded. For evaluations only: a reward that is not exact teaches to estimate.
    :param thoughts: boxes inside a thought (``<think>…``) count; else only what follows its end is read.
    :param unfinished: "refuse" an answer that is still to be computed where the gold is a number, or only one that
        "repeats" the question. :meth:`judge` alone looks at that, and only where there is a question.
    :raises ConfigError: a limit that is not positive, or a tolerance outside [0, 1).
    """

    def __init__(
        self,
        workers: int = 2,
        cpu_seconds: float = 5.0,
        wall_seconds: float = 60.0,
        memory_gib: float = 2.0,
        tolerance: float = 0.0,
        thoughts: bool = False,
        unfinished: Unfinished = "refuse",
    ) -> None:
        if not (math.isfinite(tolerance) and 0 <= tolerance < 1):
            raise ConfigError(f"tolerance is {tolerance}; give a relative error from 0 to below 1")
        self._tolerance = float(tolerance)
        self._thoughts, self._unfinished = thoughts, unfinished
        self._pool = Pool("bridge_mcore.rewards.equivalence:equivalent", workers, cpu_seconds, wall_seconds, memory_gib)
        self._cache: OrderedDict[_Pair, Verdict] = OrderedDict()
        self._lock = threading.Lock()
        self._closed = False
        #: Verdicts ever given, by name. Log it: a rising "timeout" or "error" is a broken or gamed reward.
        self.counts: Counter[str] = Counter()

    def verify(self, pairs: Sequence[tuple[str, str]]) -> list[Verdict]:
        """The verdict on every (gold, response) pair, in order.

        :raises BridgeError: the worker processes cannot be started, or the verifier is closed.
        """
        if self._closed:
            raise BridgeError("this verifier is closed; make a new one")
        verdicts: dict[int, Verdict] = {}
        asked: dict[_Pair, list[int]] = {}  # equal pairs of a batch are compared once
        for index, (gold, response) in enumerate(pairs):
            extracted = _extract(gold, response if self._thoughts else after_thought(response))
            if isinstance(extracted, Verdict):
                verdicts[index] = extracted
            else:
                asked.setdefault(extracted, []).append(index)
        for pair, verdict in self._decide_all(list(asked)).items():
            for index in asked[pair]:
                verdicts[index] = verdict
        with self._lock:
            self.counts.update(verdict.verdict for verdict in verdicts.values())
        return [verdicts[index] for index in range(len(pairs))]

    def judge(self, attempts: Sequence[Attempt]) -> list[Verdict]:
        """See :class:`bridge_mcore.rewards.protocol.Reward`."""
        said = [one.response if self._thoughts else after_thought(one.response, one.thinking) for one in attempts]
        verdicts = self.verify([(attempt.gold, text) for attempt, text in zip(attempts, said, strict=True)])
        for index, (attempt, text) in enumerate(zip(attempts, said, strict=True)):
            if verdicts[index].verdict != "correct" or not attempt.prompt.strip():
                continue
            gold, answer = gold_text(attempt.gold), clean(_boxed(text) or "")
            if why := why_unfinished(gold, answer, attempt.prompt, self._unfinished == "refuse"):
                verdicts[index] = Verdict("incorrect", why)
                with self._lock:
                    self.counts.update({"correct": -1, "incorrect": 1})
        return verdicts

    def close(self) -> None:
        """End the worker processes."""
        self._closed = True
        self._pool.close()

    def __enter__(self) -> MathVerifier:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _decide_all(self, pairs: list[_Pair]) -> dict[_Pair, Verdict]:
        verdicts = {pair: known for pair in pairs if (known := self._recall(pair)) is not None}
        open_pairs = [pair for pair in pairs if pair not in verdicts]
        undecided = []
        for pair, (decision, note) in zip(open_pairs, self._decide_exactly(open_pairs), strict=True):
            if decision is None:
                undecided.append(pair)
            else:
                verdicts[pair] = Verdict("correct" if decision else "incorrect", note)
        if undecided:
            jobs = [[gold, answer, self._tolerance] for gold, answer in undecided]
            for pair, outcome in zip(undecided, self._pool.map(jobs), strict=True):
                verdicts[pair] = _judge(outcome)
                self._remember(pair, verdicts[pair])
        return verdicts

    def _decide_exactly(self, pairs: list[_Pair]) -> list[tuple[Decision, str]]:
        """Decide without Math-Verify; a large batch in shares by the workers, so that it gains from every core."""
        if len(pairs) < SHARED_BATCH or self._pool.limits["workers"] < 2:
            return [decide(gold, answer, tolerance=self._tolerance) for gold, answer in pairs]
        shares = [pairs[start : start + SHARE] for start in range(0, len(pairs), SHARE)]
        decisions: list[tuple[Decision, str]] = []
        for share, outcome in zip(shares, self._pool.map([[share, self._tolerance] for share in shares]), strict=True):
            if outcome.kind == "done":
                decisions += [(decision, note) for decision, note in outcome.value["decisions"]]
            else:
                decisions += [(None, "")] * len(share)  # one by one then, so that each has a verdict of its own
        return decisions

    def _recall(self, pair: _Pair) -> Verdict | None:
        with self._lock:
            if pair in self._cache:
                self._cache.move_to_end(pair)
            return self._cache.get(pair)

    def _remember(self, pair: _Pair, verdict: Verdict) -> None:
        if not verdict.decided or len(pair[0]) + len(pair[1]) > CACHE_CHARACTERS:
            return
        with self._lock:
            self._cache[pair] = verdict
            if len(self._cache) > CACHE_PAIRS:
                self._cache.popitem(last=False)


def _boxed(text: str) -> str | None:
    """The answer in the last box; None without one.

    Boxes in one breath are a list, which is wrong where one value is asked for, and right where those are. Two that say
    the same (``\\boxed{1\\frac12}, or \\boxed{\\frac32}``) are one.
    """
    contents = answer_boxes(text)
    if len(contents) > 1 and sum(map(len, contents)) <= MAX_ANSWER:
        last = clean(contents[-1])
        contents = [*(one for one in contents[:-1] if decide(last, clean(one))[0] is not True), contents[-1]]
    return ", ".join(contents) if contents else None


def gold_text(gold: str) -> str:
    """A gold answer, out of its box and cleaned; empty where there is none."""
    boxed = _boxed(gold)
    return clean(gold if boxed is None else boxed)


def _extract(gold: str, response: str) -> Verdict | _Pair:
    """The gold and the answer to compare, or the verdict where there is nothing to compare."""
    gold = gold_text(gold)
    if not gold:
        return Verdict("error", "the gold answer is empty")
    answer = _boxed(response)
    if answer is None:
        return Verdict("incorrect", "no \\boxed{} answer")
    if len(answer) > MAX_ANSWER and len(answer) > 2 * len(gold):
        return Verdict("incorrect", f"an answer of {len(answer)} characters")
    answer = clean(answer)
    if not answer:
        return Verdict("incorrect", "an empty \\boxed{} answer")
    if gold == answer:
        return Verdict("correct", "identical")
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
