"""What an answer is made of, and where a text falls apart: outside all brackets."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from bridge_mcore.rewards.tokens import Unreadable

Kind = Literal[
    "value", "list", "set", "tuple", "region", "matrix", "relation", "ratio", "time", "numeral", "words", "choice"
]


@dataclass(frozen=True, slots=True)
class Piece:
    """One interval, with its ends as text."""

    low: str
    high: str
    closed_low: bool
    closed_high: bool


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer, taken apart.

    Attributes:
        items: of a list, set, tuple, ratio; the rows of a matrix as tuples; the sides of a relation.
        signs: the relations between the sides.
        pieces: of a region, the intervals that it is made of.
        label: of a region, the variable it was given for; of a choice, its letter; of a numeral, its base; of a time,
            "a" or "p" where it says so.
        text: the whole.
    """

    kind: Kind
    text: str
    items: tuple[Answer, ...] = ()
    signs: tuple[str, ...] = ()
    pieces: tuple[Piece, ...] = ()
    label: str = ""


INFINITIES = (r"\infty", r"+\infty", r"-\infty")
_SCAN = re.compile(
    r"\\(?:begin|end)\{[a-z]+\*?\}|\\text\{,?(?:and|or),?\}|\\[A-Za-z]+|\\."
    r"|(?<![A-Za-z])(?:and|or)(?![A-Za-z])|[()\[\]{},;:=<>]"
)
_OPEN = frozenset(["(", "[", "{", r"\{", r"\langle", r"\lfloor", r"\lceil", r"\lvert"])
_CLOSE = frozenset([")", "]", "}", r"\}", r"\rangle", r"\rfloor", r"\rceil", r"\rvert"])
_THOUSANDS = re.compile(r"(?<![\d,.])\d{1,3}(?:,\d{3})+(?![\d,])")


def flat(text: str) -> str:
    r"""``text`` with the content of every ``\text{...}`` as plain words."""
    return re.sub(r"\s+", " ", re.sub(r"\\text\{([^{}]*)\}", r" \1 ", text)).strip()


def plain_words(text: str) -> str:
    """Words for comparing: lower case, without articles and outer punctuation."""
    words = re.sub(r"(?<=\w)-(?=\w)", " ", flat(text).lower().strip(" .,!;:'\"`"))
    return " ".join(word for word in words.split() if word not in ("the", "a", "an"))


def split(text: str, at: frozenset[str], thousands: bool = True) -> tuple[list[str], list[str]]:
    """The parts of ``text`` between the separators ``at`` that stand outside all brackets, and those separators.

    :raises Unreadable: the brackets do not match in number.
    """
    kept = {i for run in _THOUSANDS.finditer(text) for i in range(*run.span())} if thousands and "," in at else set()
    parts, separators, depth, start = [], [], 0, 0
    for token in _SCAN.finditer(text):
        sign = token[0]
        if sign in _OPEN or sign.startswith(r"\begin"):
            depth += 1
        elif sign in _CLOSE or sign.startswith(r"\end"):
            depth -= 1
            if depth < 0:
                raise Unreadable
        elif depth == 0:
            if sign.startswith(r"\text{"):
                sign = "or" if "or" in sign else "and"
            if sign in at and token.start() not in kept:
                parts.append(text[start : token.start()].strip())
                separators.append(sign)
                start = token.end()
    if depth:
        raise Unreadable
    return [*parts, text[start:].strip()], separators


def spans(text: str) -> bool:
    """The first bracket of ``text`` closes at its end."""
    depth = 0
    for token in _SCAN.finditer(text):
        if token[0] in _OPEN or token[0].startswith(r"\begin"):
            depth += 1
        elif token[0] in _CLOSE or token[0].startswith(r"\end"):
            depth -= 1
            if depth == 0:
                return token.end() == len(text)
    return False


def nesting(text: str) -> int:
    """How deep brackets stand in brackets."""
    depth = deepest = 0
    for token in _SCAN.finditer(text):
        if token[0] in _OPEN or token[0].startswith(r"\begin"):
            depth += 1
            deepest = max(deepest, depth)
        elif token[0] in _CLOSE or token[0].startswith(r"\end"):
            depth -= 1
    return deepest
