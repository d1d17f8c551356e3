r"""Which prompt a trace's question is: the same text, the same normal form, or nearly the same words.

The index is over the prompts, which are few; trace sets of any size are streamed past it.

exact       the same text, but for white space around it
normalised  the same normal form (:mod:`bridge_mcore.data.prepare.text`)
fuzzy       similarity of the normal forms' tokens (difflib's ratio: twice the matching tokens over all tokens) at or
            above a threshold, and nothing but wording differs (:mod:`bridge_mcore.data.prepare.wording`): every number,
            variable, operator and content word is the same, in the same place. "Find x if 2x = 6" and "Find x if
            3x = 6" never pair.

Fuzzy candidates are found without comparing all pairs, and without losing any (prefix filtering): two token multisets
whose ratio reaches t share one of the rarest 1 - t/(2 - t) of the tokens of each.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Literal, get_args

from bridge_mcore.data.prepare.text import digest, tokens
from bridge_mcore.data.prepare.wording import hard_tokens, same_question, without_request

TierName = Literal["own", "exact", "normalised", "fuzzy"]
#: From the surest on; "own" is a trace that came in the prompt's own row.
TIERS: tuple[TierName, ...] = get_args(TierName)


@dataclass(frozen=True)
class Match:
    """A prompt that a question is: its number in the index, how it was found, and how alike they are (0 to 1)."""

    prompt: int
    tier: TierName
    similarity: float


class PromptIndex:
    """Prompts by text, normal form and rare tokens. Memory: 11 kB a prompt of MATH.

    Args:
        tiers: those in use, of exact, normalised and fuzzy.
        threshold: least similarity of the fuzzy tier, above 0.5.
    """

    def __init__(self, prompts: Sequence[str], tiers: Sequence[TierName], threshold: float) -> None:
        self.tiers, self.threshold = tuple(tiers), threshold
        self._exact: dict[bytes, int] = {}
        self._normal: dict[bytes, int] = {}
        self._forms: list[list[str]] = []
        self._counts: list[Counter[str]] = []
        self._hard: list[bytes] = []
        for number, prompt in enumerate(prompts):
            self._exact.setdefault(digest(prompt.strip()), number)
            self._normal.setdefault(digest(" ".join(tokens(prompt))), number)
            if "fuzzy" in self.tiers:
                form = tokens(without_request(prompt))
                self._forms.append(form)
                self._counts.append(Counter(form))
                self._hard.append(hard_tokens(form))
        self._frequency: Counter[str] = Counter()
        for count in self._counts:
            self._frequency.update(count.keys())
        self._postings: dict[tuple[bytes, str, int], list[int]] = defaultdict(list)
        for number, count in enumerate(self._counts):
            for entry in self._prefix(count, self._hard[number]):
                self._postings[entry].append(number)

    def find(self, question: str) -> Match | None:
        """The prompt that this question is, by the surest tier; of fuzzy ones the likest, then the first."""
        if "exact" in self.tiers:
            number = self._exact.get(digest(question.strip()))
            if number is not None:
                return Match(number, "exact", 1.0)
        if "normalised" in self.tiers:
            form = tokens(question)
            number = self._normal.get(digest(" ".join(form))) if form else None
            if number is not None:
                return Match(number, "normalised", 1.0)
        return max(self.alike(question), key=lambda match: (match.similarity, -match.prompt), default=None)

    def alike(self, question: str) -> Iterator[Match]:
        """All prompts of the fuzzy tier; none where that tier is not in use."""
        form = tokens(without_request(question))
        count, hard = Counter(form), hard_tokens(form)
        matcher: SequenceMatcher[str] = SequenceMatcher(None, autojunk=False)
        matcher.set_seq2(form)
        entries = self._prefix(count, hard)
        for number in sorted({number for entry in entries for number in self._postings.get(entry, ())}):
            other = self._forms[number]
            shared = sum(min(n, self._counts[number][token]) for token, n in count.items())
            if 2 * shared < self.threshold * (len(form) + len(other)):
                continue  # an upper bound of the ratio, and cheap
            matcher.set_seq1(other)
            ratio = matcher.ratio()
            if ratio >= self.threshold and same_question(other, form, matcher):
                yield Match(number, "fuzzy", ratio)

    def _prefix(self, count: Counter[str], hard: bytes) -> list[tuple[bytes, str, int]]:
        """The rarest tokens, so many that whatever is alike enough shares one; the k-th of a kind is one of its own.

        Problems with other numbers or formulas are kept apart from the start.
        """
        size = count.total()
        needed = math.ceil(self.threshold * size / (2 - self.threshold) - 1e-9)
        order = sorted(count, key=lambda token: (self._frequency[token], token))
        entries = [(hard, token, k) for token in order for k in range(count[token])]
        return entries[: size - needed + 1] if size else []
