"""Which training prompts are, or hold, problems of the evaluation sets.

Two rules, over the tokens of the normal form (:mod:`bridge_mcore.data.prepare.text`; drawings in Asymptote left out):

exact   both problems have the same normal form
n-gram  the passages of n tokens that the two share cover at least `overlap` of the evaluation problem's tokens. One of
        fewer than n tokens (but at least 4) must stand in the prompt as a whole.

A single shared passage, which is all that the common 13-gram rule asks for, says little in mathematics: "relatively
prime positive integers. Find m + n" is longer than that, and stands in every other AIME problem. So how much of the
problem is covered decides, as in Tülu 3, and every match is reported with its share.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from bridge_mcore.data.prepare.text import tokens
from bridge_mcore.data.problem import Problem

#: Shorter evaluation problems ("Compute 2 + 2" has four tokens) match by their normal form alone.
_FEWEST = 4


@dataclass(frozen=True)
class Contact:
    """A training prompt that meets an evaluation problem.

    Attributes:
        problem: of the evaluation set.
        rule: "exact" or "n-gram".
        overlap: share of the evaluation problem's tokens that shared passages cover, 0 to 1.
    """

    problem: Problem
    rule: str
    overlap: float


class EvaluationIndex:
    """Evaluation problems by normal form and by their passages of `ngram` tokens; some 10 kB a problem."""

    def __init__(self, problems: Sequence[Problem], ngram: int, overlap: float) -> None:
        self.ngram, self.overlap, self.problems = ngram, overlap, list(problems)
        self._lengths: list[int] = []
        self._exact: dict[tuple[str, ...], int] = {}
        self._passages: dict[tuple[str, ...], list[tuple[int, int]]] = defaultdict(list)
        self._short: set[int] = set()
        for number, problem in enumerate(self.problems):
            form = tuple(tokens(problem.prompt, drawings=False))
            self._lengths.append(len(form))
            self._exact.setdefault(form, number)
            size = min(ngram, len(form))
            if size >= _FEWEST:
                self._short.add(size)
                for start in range(len(form) - size + 1):
                    self._passages[form[start : start + size]].append((number, start))

    def find(self, prompt: str) -> Contact | None:
        """The evaluation problem that a prompt shares most with, if that is enough to be a contact."""
        form = tuple(tokens(prompt, drawings=False))
        if (number := self._exact.get(form)) is not None:
            return Contact(self.problems[number], "exact", 1.0)
        covered: dict[int, set[int]] = defaultdict(set)
        for size in self._short:
            for start in range(len(form) - size + 1):
                for number, at in self._passages.get(form[start : start + size], ()):
                    covered[number].update(range(at, at + size))
        shares = {number: len(places) / self._lengths[number] for number, places in covered.items()}
        best = max(shares, key=lambda number: (shares[number], -number), default=None)
        if best is None or shares[best] < self.overlap:
            return None
        return Contact(self.problems[best], "n-gram", shares[best])
