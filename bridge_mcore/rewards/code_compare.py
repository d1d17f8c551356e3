"""Whether a program's output is the expected one. Runs in trusted processes only, on text that nobody trusts."""

from __future__ import annotations

import math
import re
from decimal import Decimal, InvalidOperation
from typing import Any

_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,6})?", re.ASCII)
#: Longer tokens are compared as text only.
_MAX_NUMBER = 10_000


def same_output(expected: str, found: str) -> bool:
    """The rule of LiveCodeBench: equal lines without the white space around them; else equal numbers, token by token.

    White space around the whole output does not count, empty lines inside it do. `1.50` equals `1.5` and `3` equals
    `3.0`, exactly: there is no tolerance. Infinities and NaN are not numbers here.
    """
    wanted, given = expected.strip().split("\n"), found.strip().split("\n")
    return len(wanted) == len(given) and all(
        left.strip() == right.strip() or _same_numbers(left, right) for left, right in zip(wanted, given, strict=True)
    )


def _same_numbers(expected: str, found: str) -> bool:
    wanted, given = expected.split(), found.split()
    if len(wanted) != len(given):
        return False
    for left, right in zip(wanted, given, strict=True):
        numbers = _number(left), _number(right)
        if None in numbers or numbers[0] != numbers[1]:
            return False
    return True


def _number(token: str) -> Decimal | None:
    if len(token) > _MAX_NUMBER or not _NUMBER.fullmatch(token):
        return None
    try:
        return Decimal(token)
    except InvalidOperation:
        return None


def same_value(expected: Any, found: Any) -> bool:
    """Equality of JSON values as Python has it (1 equals 1.0), but for True, which is not 1, and NaN, which is NaN.

    Without recursion, since the depth of ``found`` is the program's choice.
    """
    pairs = [(expected, found)]
    while pairs:
        left, right = pairs.pop()
        if isinstance(left, list) and isinstance(right, list):
            if len(left) != len(right):
                return False
            pairs.extend(zip(left, right, strict=True))
        elif isinstance(left, dict) and isinstance(right, dict):
            if left.keys() != right.keys():
                return False
            pairs.extend((left[key], right[key]) for key in left)
        elif isinstance(left, float) and isinstance(right, float) and math.isnan(left):
            if not math.isnan(right):
                return False
        elif isinstance(left, bool) is not isinstance(right, bool) or left != right:
            return False
    return True
