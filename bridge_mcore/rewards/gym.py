"""The tasks of reasoning-gym by name, scored by its own scorers in killable workers.

The gold answer is JSON, {"dataset": name, "entry": what the scorer needs}; :mod:`bridge_mcore.data.gym` makes it. The
package is optional: `pip install reasoning-gym`.
"""

from __future__ import annotations

import importlib.util
import json
import re
import threading
from collections import Counter
from collections.abc import Sequence
from typing import Any

from bridge_mcore.errors import ConfigError
from bridge_mcore.rewards.extract import final_answer
from bridge_mcore.rewards.pool import Outcome, Pool
from bridge_mcore.rewards.protocol import Attempt
from bridge_mcore.rewards.verdict import Verdict

#: Longest answer in characters that is scored.
MAX_ANSWER = 20_000
#: Tasks whose scorers evaluate the answer as Python, by `eval` or sympy's `parse_expr` (reasoning-gym 0.1.25).
EVALUATED = {
    "binary_matrix",
    "countdown",
    "intermediate_integration",
    "n_queens",
    "polynomial_multiplication",
    "puzzle24",
    "simple_integration",
    "spiral_matrix",
    "string_insertion",
}
_WORD = re.compile(r"[^\W\d]\w*")
_LETTER = re.compile(r".\d*", re.ASCII)  # x, x1, and the e3 of 7e3
_FUNCTION_NAMES = "sin cos tan sec csc cot asin acos atan sinh cosh tanh asinh acosh atanh exp log ln sqrt abs Abs pi"
_FUNCTIONS = frozenset(_FUNCTION_NAMES.split())


def require_gym() -> None:
    """Raises ConfigError, with the mend, where reasoning-gym is not installed."""
    if importlib.util.find_spec("reasoning_gym") is None:
        raise ConfigError("the tasks of reasoning-gym need the package: pip install reasoning-gym")


class GymReward:
    """Scores answers: correct at a score of 1, else incorrect.

    :param partial: keep the score of an answer that is not quite right in :attr:`Verdict.score`.
    :raises ConfigError: reasoning-gym is not installed.
    """

    def __init__(
        self,
        workers: int = 2,
        cpu_seconds: float = 10.0,
        wall_seconds: float = 60.0,
        memory_gib: float = 4.0,
        partial: bool = False,
    ) -> None:
        require_gym()
        self._partial = partial
        self._pool = Pool("bridge_mcore.rewards.gym_score:run", workers, cpu_seconds, wall_seconds, memory_gib)
        self._lock = threading.Lock()
        #: Verdicts ever given, by name.
        self.counts: Counter[str] = Counter()

    def judge(self, attempts: Sequence[Attempt]) -> list[Verdict]:
        """See :class:`bridge_mcore.rewards.protocol.Reward`."""
        verdicts: dict[int, Verdict] = {}
        jobs: dict[int, dict[str, Any]] = {}
        for index, attempt in enumerate(attempts):
            prepared = _prepare(attempt)
            if isinstance(prepared, Verdict):
                verdicts[index] = prepared
            else:
                jobs[index] = prepared
        for index, outcome in zip(jobs, self._pool.map(list(jobs.values())), strict=True):
            verdicts[index] = self._verdict(outcome)
        with self._lock:
            self.counts.update(verdict.verdict for verdict in verdicts.values())
        return [verdicts[index] for index in range(len(attempts))]

    def close(self) -> None:
        """End the workers."""
        self._pool.close()

    def _verdict(self, outcome: Outcome) -> Verdict:
        if outcome.kind == "timeout":
            return Verdict("timeout", f"scoring was stopped: {outcome.reason}")
        if outcome.kind != "done":
            return Verdict("error", f"scoring failed: {outcome.reason}")
        score = outcome.value["score"]
        if score >= 1.0:
            return Verdict("correct", "score 1", 1.0 if self._partial else None)
        return Verdict("incorrect", f"score {score:.3g}", max(0.0, score) if self._partial else None)


def _prepare(attempt: Attempt) -> Verdict | dict[str, Any]:
    try:
        gold = json.loads(attempt.gold)
        name, entry = gold["dataset"], gold["entry"]
        if not isinstance(name, str):
            raise TypeError
    except (ValueError, TypeError, KeyError, RecursionError):
        return Verdict("error", 'the gold answer is not {"dataset": …, "entry": …} as JSON')
    answer = final_answer(attempt.response)
    if answer is None:
        return Verdict("incorrect", "no <answer>…</answer> or \\boxed{} answer")
    if len(answer) > MAX_ANSWER:
        return Verdict("incorrect", f"an answer of {len(answer)} characters")
    if name in EVALUATED and not is_expression(answer):
        return Verdict("incorrect", "an answer that is no expression")
    return {"dataset": name, "entry": entry, "answer": answer}


def is_expression(answer: str) -> bool:
    """Whether evaluating an answer can do no more than arithmetic: no names but single letters and functions.

    Code that would reach for anything else, such as the scorer itself, has to name it.
    """
    return all(_LETTER.fullmatch(word) or word in _FUNCTIONS for word in _WORD.findall(answer))
