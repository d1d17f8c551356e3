r"""Knights and Knaves, generated: knights always tell the truth, knaves always lie; who is what?

Each of 2 to 8 people says one thing. A puzzle is kept only if exactly one assignment fits all that is said, found by
trying every one. The trace is a proof: it supposes what is false and shows what that contradicts, so nothing in it is
guessed. Problem number `index` of a seed is a pure function, the same on every machine; whether it is a test problem is
decided by a hash of its prompt alone (:func:`bridge_mcore.data.tasks.held_out`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, islice, product

from bridge_mcore.data.knights_proof import prove
from bridge_mcore.data.knights_words import NAMES, Statement, assignment_text, evaluate, sentence
from bridge_mcore.data.problem import Problem, problem_id
from bridge_mcore.data.tasks import held_out
from bridge_mcore.errors import ConfigError, DataError

FEWEST, MOST = 2, 8
_CONNECTIVES = ("and", "or", "if", "iff")
# So many draws in a row without a new problem: there are (all but) no more.
_FRUITLESS_DRAWS = 5_000


@dataclass(frozen=True)
class Puzzle:
    """People, what each of them says, and who is a knight."""

    names: tuple[str, ...]
    statements: tuple[Statement, ...]
    solution: tuple[bool, ...]

    @property
    def prompt(self) -> str:
        """The question as text."""
        people = f"{', '.join(self.names[:-1])} and {self.names[-1]}"
        said = "\n".join(
            f'{name} says: "{sentence(statement, self.names, speaker)}"'
            for speaker, (name, statement) in enumerate(zip(self.names, self.statements, strict=True))
        )
        return (
            "On an island everyone is either a knight, who always tells the truth, or a knave, who always lies. "
            f"You meet {len(self.names)} people: {people}.\n{said}\nWho is a knight and who is a knave? "
            f"Give the final answer in \\boxed{{}}, in this form: {self.names[0]} is a knight, "
            f"{self.names[1]} is a knave{', …' if len(self.names) > 2 else ''}."
        )

    @property
    def answer(self) -> str:
        """The gold answer, people in the order of the question."""
        return assignment_text(self.names, self.solution)

    @property
    def trace(self) -> str:
        """A proof that ends in the boxed answer."""
        return prove(self.names, self.statements, self.solution)


class _Dice:
    """Even draws from a hash: the same on every machine and in every version of Python."""

    def __init__(self, key: str) -> None:
        self._key, self._blocks, self._value, self._range = key, 0, 0, 1

    def below(self, n: int) -> int:
        """A number from 0 to n - 1."""
        if self._range < n << 64:  # so that the bias of the division is below 2^-64
            block = hashlib.sha256(f"{self._key}/{self._blocks}".encode()).digest()
            self._value, self._range = int.from_bytes(block, "big"), 1 << 256
            self._blocks += 1
        self._value, drawn = divmod(self._value, n)
        self._range //= n
        return drawn

    def sample(self, n: int, k: int) -> list[int]:
        """k different numbers below n, in random order."""
        left = list(range(n))
        return [left.pop(self.below(len(left))) for _ in range(k)]


def solutions(statements: tuple[Statement, ...]) -> list[tuple[bool, ...]]:
    """Every assignment (knight: True) under which each knight's statement is true and each knave's false."""
    return [
        truth
        for truth in product((True, False), repeat=len(statements))
        if all(evaluate(said, truth) == truth[speaker] for speaker, said in enumerate(statements))
    ]


def draw(seed: int, index: int, sizes: tuple[int, int]) -> Puzzle:
    """Puzzle number `index` of a seed, its number of people drawn evenly from `sizes`."""
    low, high = sizes
    dice = _Dice(f"knights/{seed}/{index}")
    people = low + dice.below(high - low + 1)
    names = tuple(NAMES[i] for i in dice.sample(len(NAMES), people))
    while True:
        statements = tuple(_statement(dice, speaker, people) for speaker in range(people))
        found = solutions(statements)
        if len(found) == 1:
            return Puzzle(names, statements, found[0])


def _statement(dice: _Dice, speaker: int, people: int) -> Statement:
    """One thing said: of one person (a third), or of two, joined; sometimes denied. Not of the speaker alone."""
    others = [person for person in range(people) if person != speaker]
    if dice.below(3) == 0:
        simple: Statement = ("is", others[dice.below(len(others))], bool(dice.below(2)))
        return ("not", simple) if dice.below(4) == 0 else simple
    first, second = dice.sample(people, 2)
    left: Statement = ("is", first, bool(dice.below(2)))
    right: Statement = ("is", second, bool(dice.below(2)))
    joined: Statement = (_CONNECTIVES[dice.below(len(_CONNECTIVES))], left, right)
    return ("not", joined) if dice.below(6) == 0 and joined[0] in ("and", "or") else joined


def stream_knights(seed: int, split: str, sizes: tuple[int, int], name: str = "knights") -> Iterator[Problem]:
    """Problems of a split without end; small ones come again and again.

    Raises ConfigError for an unknown split, or sizes outside 2..8.
    """
    if split not in ("train", "test"):
        raise ConfigError(f"split: a generated task has the splits train and test, not '{split}'")
    if not FEWEST <= sizes[0] <= sizes[1] <= MOST:
        raise ConfigError(
            f"difficulty: [{sizes[0]}, {sizes[1]}] is no range of people; knights has {FEWEST} to {MOST}, "
            "smallest first"
        )
    for index in count():
        puzzle = draw(seed, index, sizes)
        prompt, answer = puzzle.prompt, puzzle.answer
        if held_out(prompt) == (split == "test"):
            yield Problem(problem_id(prompt, answer), prompt, answer, puzzle.trace, name, "logic")


def generate_knights(seed: int, split: str, sizes: tuple[int, int], size: int, name: str = "knights") -> list[Problem]:
    """`size` different problems; a smaller size gives the first of a larger one. DataError if there are not so many."""
    problems: dict[str, Problem] = {}
    fruitless = 0
    for problem in stream_knights(seed, split, sizes, name):
        fruitless = fruitless + 1 if problem.prompt in problems else 0
        problems.setdefault(problem.prompt, problem)
        if len(problems) >= size:
            break
        if fruitless == _FRUITLESS_DRAWS:
            raise DataError(
                f"knights of {sizes[0]} to {sizes[1]} people has only about {len(problems)} different problems in its "
                f"{split} split, {size} are asked for; lower size or raise difficulty"
            )
    return list(islice(problems.values(), size))
