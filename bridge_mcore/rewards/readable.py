"""Gold answers that the mathematics here cannot read: only their own spelling is ever right."""

from __future__ import annotations

import re

from bridge_mcore.rewards.answers import read
from bridge_mcore.rewards.exact import canonical, number
from bridge_mcore.rewards.formula import read_formula
from bridge_mcore.rewards.names import is_name
from bridge_mcore.rewards.primes import TooHard
from bridge_mcore.rewards.structure import INFINITIES, Answer
from bridge_mcore.rewards.terms import Arithmetic
from bridge_mcore.rewards.tokens import Foreign, Unreadable
from bridge_mcore.rewards.units import measure
from bridge_mcore.rewards.values import admissible

_SIGNS = re.compile(r"\\(?:pm|mp)(?![A-Za-z]) ?")


def is_only_text(gold: str) -> bool:
    """Whether a gold answer, out of its box and cleaned, or a part of it is compared letter by letter.

    Words such as a name are meant to be; they do not count.
    """
    try:
        return _is_text(read(canonical(gold)))
    except (Unreadable, TooHard, ValueError, RecursionError):
        return True


def _is_text(answer: Answer) -> bool:
    if answer.kind in ("words", "choice", "numeral", "time"):
        return False
    if answer.kind == "value":
        return not _is_value(answer.text)
    if answer.kind == "relation":
        return any(_is_text(item) for item in answer.items if not is_name(item.text))
    if answer.kind == "region":
        return not all(_is_value(end) for piece in answer.pieces for end in (piece.low, piece.high))
    return any(_is_text(item) for item in answer.items)


def _is_value(text: str) -> bool:
    value = measure(_SIGNS.sub("+", text).removeprefix("+"))
    if value is None:
        return False
    if value.value in INFINITIES or number(value.value) is not None:
        return True
    try:
        read_formula(value.value, Arithmetic())
    except (Foreign, TooHard):
        return admissible(value.value)  # Math-Verify may be asked
    except Unreadable:
        return False
    return True
