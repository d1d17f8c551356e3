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
from bridge_mcore.rewards.box.values import decode
from bridge_mcore.rewards.extract import final_answer
from bridge_mcore.rewards.pool import Outcome, Pool
from bridge_mcore.rewards.protocol import Attempt
from bridge_mcore.rewards.verdict import Verdict

#: Longest answer in characters that is scored.
MAX_ANSWER = 20_000
#: Tasks whose scorers evaluate the answer (reasoning-gym 0.1.25): by `eval`, and by sympy's `parse_expr`.
_BY_EVAL = {"binary_matrix", "n_queens", "spiral_matrix", "string_insertion"}
_BY_SYMPY = {
    "countdown", "intermediate_integration", "polynomial_multiplication", "puzzle24", "simple_integration"
}  # fmt: skip
EVALUATED = _BY_EVAL | _BY_SYMPY
#: What scorers evaluate of the entry, which is a row of data: keys that lead there.
_EVALUATED_OF_ENTRY = {
    "bitwise_arithmetic": ("metadata", "problem"),
    "intermediate_integration": ("metadata", "integrand"),
    "number_sorting": ("answer",),
    "polynomial_multiplication": ("answer",),
    "simple_integration": ("metadata", "integrand"),
}
_WORD = re.compile(r"[^\W\d]\w*")
_HEXADECIMAL = re.compile(r"\b0x[0-9a-f]+\b", re.ASCII)
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


def read_gold(text: str) -> tuple[str, Any] | str:
    """(task, entry as it was written down) of a gold answer; a text that says why it is none."""
    try:
        gold = json.loads(text)
        name, entry = gold["dataset"], gold["entry"]
        if not isinstance(name, str):
            raise TypeError
        problem = _entry_problem(name, decode(entry))
    except (ValueError, TypeError, LookupError, RecursionError):
        return 'it is not {"dataset": …, "entry": …} as JSON'
    return problem or (name, entry)


def _prepare(attempt: Attempt) -> Verdict | dict[str, Any]:
    gold = read_gold(attempt.gold)
    if isinstance(gold, str):
        return Verdict("error", f"the gold answer cannot be used: {gold}")
    name, entry = gold
    answer = final_answer(attempt.response)
    if answer is None:
        return Verdict("incorrect", "no <answer>…</answer> or \\boxed{} answer")
    if len(answer) > MAX_ANSWER:
        return Verdict("incorrect", f"an answer of {len(answer)} characters")
    # Letters alone are a string to insert, say: a name that is not called does nothing.
    harmless = name in _BY_EVAL and answer.isascii() and answer.isalpha()
    if name in EVALUATED and not harmless and not is_expression(answer, strings=name in _BY_EVAL):
        return Verdict("incorrect", "an answer that is no expression")
    return {"dataset": name, "entry": entry, "answer": answer}


def _entry_problem(name: str, entry: Any) -> str | None:
    """Why an entry must not be scored: what the scorer would evaluate of it is code. None if nothing is."""
    if name == "composite":
        return "its dataset is composite, which has no tasks of its own"
    text = entry
    for key in _EVALUATED_OF_ENTRY.get(name, ()):
        text = text[key]
    if name in _EVALUATED_OF_ENTRY and not (isinstance(text, str) and is_expression(text, name not in _BY_SYMPY)):
        return f"the scorer of {name} would evaluate {'.'.join(_EVALUATED_OF_ENTRY[name])}, which is no expression"
    return None


def is_expression(text: str, strings: bool = True) -> bool:
    """Whether evaluating a text can do no more than arithmetic: no names but single letters and functions.

    Code that would reach for anything else, such as the scorer itself, has to name it. strings: it may hold texts in
    quotes; sympy evaluates what is in those too (`S("…")`), however it is put together. Escapes could spell any name.
    """
    if "\\" in text or (not strings and ("'" in text or '"' in text)):
        return False
    words = _WORD.findall(_HEXADECIMAL.sub("0", text))
    return all(_LETTER.fullmatch(word) or word in _FUNCTIONS for word in words)
