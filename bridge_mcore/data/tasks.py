r"""A generated task that a tiny model learns in minutes: running sums with labels.

    prompt  Q:a3b2c1A:               three terms, labelled a, b, c
    trace   a3=3b2=5c1=6\boxed{6}    each label with its term, then the sum so far; then the answer

With one token per number, label and mark, a step of the trace is one look-up and then one addition, each of its own
token. That is on purpose: where a small model must look up and add in one token (`a3b5c6`), how well it learns to add
within a thousand steps depends on rounding, so on the kind of processor. More terms are harder, as an error anywhere
spoils the answer.

Held-out by construction: a hash of the prompt alone says whether a problem belongs to the test split (one in ten) or to
the train split. So no seed, size or difficulty can put a test problem among the training problems.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import count, islice
from string import ascii_lowercase

from bridge_mcore.config.nearest import nearest
from bridge_mcore.config.schema import DataSource
from bridge_mcore.data.problem import Problem, problem_id
from bridge_mcore.errors import ConfigError, DataError

TASKS = ("running_sums",)
LARGEST_TERM = 9
LARGEST_NUMBER = 99
#: 11 terms: their sum still is one token.
MOST_TERMS = LARGEST_NUMBER // LARGEST_TERM

# So many draws in a row without a new problem: there are (all but) no more.
_FRUITLESS_DRAWS = 20_000


def running_sum(terms: list[int]) -> tuple[str, str, str]:
    """(prompt, trace, answer) of these terms, each 0..9; at most MOST_TERMS of them."""
    prompt, trace, total = "", "", 0
    for label, term in zip(ascii_lowercase, terms, strict=False):
        total += term
        prompt += f"{label}{term}"
        trace += f"{label}{term}={total}"
    return f"Q:{prompt}A:", f"{trace}\\boxed{{{total}}}", str(total)


def held_out(prompt: str) -> bool:
    """Whether a prompt belongs to the test split: one in ten, decided by nothing but its text."""
    return int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:8], "big") % 10 == 0


def draw(seed: int, index: int, difficulty: tuple[int, int]) -> list[int]:
    """Terms number `index` of a seed: a pure function, the same on every machine and in every version of Python."""
    value = int.from_bytes(hashlib.sha256(f"running_sums/{seed}/{index}".encode()).digest(), "big")
    low, high = difficulty
    value, offset = divmod(value, high - low + 1)
    terms = []
    for _ in range(low + offset):
        value, term = divmod(value, LARGEST_TERM + 1)
        terms.append(term)
    return terms


def stream_problems(
    seed: int, split: str, difficulty: tuple[int, int], name: str = "running_sums"
) -> Iterator[Problem]:
    """Problems of a split without end, numbers of terms drawn evenly; short ones come again and again."""
    wanted = _is_test(split)
    _check_difficulty(difficulty)
    for index in count():
        prompt, trace, answer = running_sum(draw(seed, index, difficulty))
        if held_out(prompt) == wanted:
            yield Problem(problem_id(prompt, answer), prompt, answer, trace, name)


def generate_problems(source: DataSource, name: str | None = None) -> list[Problem]:
    """`source.size` different problems of a generated task; a smaller size gives the first of a larger one.

    Raises ConfigError for an unknown task, split or difficulty; DataError if there are not so many problems.
    """
    if source.task not in TASKS:
        raise ConfigError(
            f"unknown task '{source.task}'{nearest(str(source.task), TASKS)}; there is {', '.join(TASKS)}"
        )
    size = min(source.size, source.limit or source.size)
    problems: dict[str, Problem] = {}
    fruitless = 0
    for problem in stream_problems(source.seed, source.split, source.difficulty, name or source.task):
        fruitless = fruitless + 1 if problem.prompt in problems else 0
        problems.setdefault(problem.prompt, problem)
        if len(problems) == size:
            break
        if fruitless == _FRUITLESS_DRAWS:
            raise DataError(
                f"{source.task} of {source.difficulty[0]} to {source.difficulty[1]} terms has only about "
                f"{len(problems)} different problems in its {source.split} split, {size} are asked for; "
                f"lower size or raise difficulty"
            )
    return list(islice(problems.values(), size))


def _is_test(split: str) -> bool:
    if split not in ("train", "test"):
        raise ConfigError(f"split: a generated task has the splits train and test, not '{split}'")
    return split == "test"


def _check_difficulty(difficulty: tuple[int, int]) -> None:
    low, high = difficulty
    if not 1 <= low <= high <= MOST_TERMS:
        raise ConfigError(
            f"difficulty: [{low}, {high}] is no range of terms; running_sums has 1 to {MOST_TERMS}, smallest first"
        )
