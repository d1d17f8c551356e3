r"""How an expression is written, in one form for what differs only by a trifle: order, brackets, ``+0``, ``\cdot 1``.

Unlike :mod:`bridge_mcore.rewards.formula` nothing is computed: ``2^{10}`` and ``1024`` have different shapes.
"""

from __future__ import annotations

import re
from fractions import Fraction

from bridge_mcore.rewards.exact import canonical
from bridge_mcore.rewards.functions import repeating
from bridge_mcore.rewards.primes import TooHard

#: A number or name as text; "+" and "*" with their parts in order; "^" with base and exponent; a command with parts.
Shape = str | tuple["Shape", ...]

_TOKEN = re.compile(
    r" *(\d*\.\d*\\overline\{\d+\}|\d{1,3}(?:,\d{3})+(?:\.\d+)?(?!\d)|"
    r"\d+(?:\.\d+)?|\.\d+|\\[A-Za-z]+|\\.|[A-Za-z]|[-+*/^_(){}\[\]|!'=<>,])",
    re.ASCII,
)
_TIMES = frozenset(["*", r"\cdot", r"\times", r"\ast"])
_CLOSING = {"(": ")", "{": "}", "[": "]", "|": "|", r"\lfloor": r"\rfloor", r"\lceil": r"\rceil"}
_ENDS = frozenset(["", "+", "-", ")", "}", "]", "|", "=", "<", ">", ",", r"\rfloor", r"\rceil", "^", "_", "!", "'"])
_ARGUMENTS = {r"\frac": 2, r"\binom": 2, r"\sqrt": 1}
_MOST_CHARACTERS, _MOST_DEPTH = 300, 25


class _NoShape(Exception):
    """This is no expression, or too deep a one."""


def shape_of(text: str) -> Shape | None:
    """The shape of an expression; None where it is none."""
    text = canonical(text)
    if not text or len(text) > _MOST_CHARACTERS:
        return None
    try:
        reader = _Reader(text)
        shape = reader.sum(0)
        return shape if not reader.peek() else None
    except (_NoShape, TooHard):
        return None


class _Reader:
    def __init__(self, text: str) -> None:
        self._tokens: list[str] = []
        at = 0
        while at < len(text):
            found = _TOKEN.match(text, at)
            if found is None:
                raise _NoShape
            self._tokens.append(found[1])
            at = found.end()
        self._at = 0

    def peek(self) -> str:
        return self._tokens[self._at] if self._at < len(self._tokens) else ""

    def _take(self, expected: str = "") -> str:
        token = self.peek()
        if not token or (expected and token != expected):
            raise _NoShape
        self._at += 1
        return token

    def sum(self, depth: int) -> Shape:
        if depth > _MOST_DEPTH:
            raise _NoShape
        parts: list[Shape] = []
        negative = self.peek() in ("+", "-") and self._take() == "-"
        while True:
            term = self._product(depth)
            parts.append(_product(["-1", term]) if negative else term)
            if self.peek() not in ("+", "-"):
                return _sum(parts)
            negative = self._take() == "-"

    def _product(self, depth: int) -> Shape:
        parts = [self._power(depth)]
        while True:
            token = self.peek()
            if token in _TIMES:
                self._take()
                parts.append(self._signed(depth))
            elif token in ("/", r"\div"):
                self._take()
                parts.append(_power(self._signed(depth), "-1"))
            elif token in _ENDS:
                return _product(parts)
            else:
                parts.append(self._power(depth))

    def _signed(self, depth: int) -> Shape:
        if self.peek() == "-":
            self._take()
            return _product(["-1", self._power(depth)])
        return self._power(depth)

    def _power(self, depth: int) -> Shape:
        base = self._base(depth)
        while self.peek() in ("^", "!", "'"):
            base = _power(base, self._argument(depth)) if self._take() == "^" else ("mark", base)
        return base

    def _base(self, depth: int) -> Shape:
        token = self._take()
        if token[0].isdigit() or token[0] == ".":
            return str(repeating(token) if "overline" in token else Fraction(token.replace(",", "")))
        if token in _CLOSING:
            inner = self.sum(depth + 1)
            self._take(_CLOSING[token])
            return inner if token in "({[" else (token, inner)
        if token.isalpha():
            return (token, self._lowered(depth)) if self.peek() == "_" else token
        if not token.startswith("\\") or not token[1:].isalpha():
            raise _NoShape
        if token in _ARGUMENTS:
            degree = (self._base(depth),) if token == r"\sqrt" and self.peek() == "[" else ()
            parts = [self._argument(depth) for _ in range(_ARGUMENTS[token])]
            if token == r"\frac":
                return _product([parts[0], _power(parts[1], "-1")])
            return (token, *(one for one in degree if one != "2"), *parts)
        return (token, self._lowered(depth)) if self.peek() == "_" else token

    def _lowered(self, depth: int) -> Shape:
        """What stands below, which may be an equation: ``\\sum_{k=1}``."""
        self._take("_")
        if self.peek() != "{":
            return self._take()
        level, parts = 0, []
        while True:
            token = self._take()
            level += (token == "{") - (token == "}")
            parts.append(token)
            if not level:
                return "".join(parts[1:-1])

    def _argument(self, depth: int) -> Shape:
        if self.peek() in ("{", "("):
            return self._base(depth)
        token = self.peek()
        if token.isdigit() and len(token) > 1:  # TeX takes one digit
            self._tokens[self._at : self._at + 1] = [token[0], token[1:]]
        return self._signed(depth) if token == "-" else self._base(depth)


def _sum(parts: list[Shape]) -> Shape:
    flat = [one for part in parts for one in (part[1:] if part[0] == "+" and isinstance(part, tuple) else (part,))]
    flat = sorted((one for one in flat if one != "0"), key=repr)
    return "0" if not flat else flat[0] if len(flat) == 1 else ("+", *flat)


def _product(parts: list[Shape]) -> Shape:
    flat = [one for part in parts for one in (part[1:] if part[0] == "*" and isinstance(part, tuple) else (part,))]
    signs = sum(one == "-1" for one in flat)
    flat = sorted((one for one in flat if one not in ("1", "-1")), key=repr)
    if signs % 2:
        flat.insert(0, "-1")
    return "1" if not flat else flat[0] if len(flat) == 1 else ("*", *flat)


def _power(base: Shape, exponent: Shape) -> Shape:
    if base == "1" or exponent == "1":
        return base
    if exponent in ("1/2", ("^", "2", "-1")):
        return (r"\sqrt", base)
    return ("^", base, exponent)


def is_unreduced(shape: Shape) -> bool:
    r"""Numbers in it are still to be added or multiplied, or cancel: ``x+1-1``, ``\sqrt{4\cdot 2}``, ``2x/2``."""
    if isinstance(shape, str):
        return False
    if shape[0] == "+":
        if sum(_is_numeral(term) for term in _terms(shape)) > 1:
            return True
    elif shape[0] == "*":
        factors = [one for one in shape[1:] if isinstance(one, str) and _is_numeral(one) and one != "-1"]
        if len(factors) > 1 or any(("^", one, "-1") in shape for one in shape[1:]):
            return True
    elif shape[0] == r"\sqrt" and isinstance(shape[1], tuple) and shape[1][0] == "^" and shape[1][2:] == ("2",):
        return True
    return any(is_unreduced(part) for part in shape[1:])


def _terms(shape: Shape) -> list[Shape]:
    """The terms of a sum, and of the sums that it adds or takes away."""
    if isinstance(shape, tuple) and shape[0] == "+":
        return [term for part in shape[1:] for term in _terms(part)]
    if isinstance(shape, tuple) and shape[:2] == ("*", "-1") and len(shape) == 3:
        return _terms(shape[2])
    return [shape]


def _is_numeral(shape: Shape) -> bool:
    """A number, or a fraction of numbers."""
    if isinstance(shape, str):
        return shape.lstrip("-")[:1].isdigit()
    return shape[0] in ("*", "^") and shape[-1] != "1" and all(_is_numeral(part) for part in shape[1:])
