"""Unions, intersections and differences of intervals whose ends have values."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

from bridge_mcore.rewards.formula import read_formula
from bridge_mcore.rewards.numeric import real_value
from bridge_mcore.rewards.primes import TooHard
from bridge_mcore.rewards.structure import INFINITIES, Piece
from bridge_mcore.rewards.terms import Arithmetic
from bridge_mcore.rewards.tokens import Unreadable

REALS = Piece(r"-\infty", r"\infty", False, False)
#: Ends nearer than this are one.
_CLOSE = 1e-9


@lru_cache(512)
def _value(text: str) -> float:
    if text in INFINITIES:
        return float("-inf") if text.startswith("-") else float("inf")
    arithmetic = Arithmetic()
    try:
        value = real_value(arithmetic, read_formula(text, arithmetic))
    except TooHard:
        value = None
    if value is None:
        raise Unreadable
    return value


def _same(one: float, other: float) -> bool:
    return one == other or abs(one - other) < _CLOSE


def point(text: str) -> Piece:
    """The set of one number."""
    return Piece(text, text, True, True)


def joined(pieces: Sequence[Piece]) -> list[Piece]:
    """The pieces from left to right, those that touch as one.

    :raises Unreadable: an end has no value.
    """
    done: list[Piece] = []
    for piece in sorted(pieces, key=lambda piece: (_value(piece.low), not piece.closed_low, _value(piece.high))):
        low, high = _value(piece.low), _value(piece.high)
        if low > high and not _same(low, high):
            raise Unreadable
        if done:
            before = done[-1]
            end = _value(before.high)
            if (low < end and not _same(low, end)) or (_same(low, end) and (piece.closed_low or before.closed_high)):
                closed_low = before.closed_low or (piece.closed_low and _same(low, _value(before.low)))
                further = high > end and not _same(high, end)
                closed_high = piece.closed_high if further else before.closed_high
                if _same(high, end):
                    closed_high = piece.closed_high or before.closed_high
                done[-1] = Piece(before.low, piece.high if further else before.high, closed_low, closed_high)
                continue
        done.append(piece)
    return done


def overlap(pieces: Sequence[Piece]) -> bool:
    """Two of the pieces have more than an end in common; False where ends have no values."""
    try:
        ends = sorted((_value(piece.low), _value(piece.high)) for piece in pieces)
    except Unreadable:
        return False
    return any(low < high and not _same(low, high) for (_, high), (low, _) in pairwise(ends))


def complement(pieces: Sequence[Piece]) -> list[Piece]:
    """All reals that are in none of the pieces. One point that has no value, such as ``a``, still has two sides.

    :raises Unreadable: any other end has no value.
    """
    pieces = pieces if len(pieces) == 1 and pieces[0].low == pieces[0].high else joined(pieces)
    rest: list[Piece] = []
    low, closed = REALS.low, False
    for piece in pieces:
        if piece.low != REALS.low:
            rest.append(Piece(low, piece.low, closed, not piece.closed_low))
        low, closed = piece.high, not piece.closed_high
    if low not in (REALS.high, "+" + REALS.high):
        rest.append(Piece(low, REALS.high, closed, False))
    return rest


def intersection(one: Sequence[Piece], other: Sequence[Piece]) -> list[Piece]:
    """What is in both.

    :raises Unreadable: an end has no value.
    """
    if list(one) == [REALS]:
        return list(other)
    if list(other) == [REALS]:
        return list(one)
    both = []
    for a in one:
        for b in other:
            low = _inner(a, b, True)
            high = _inner(a, b, False)
            start, end = _value(low[0]), _value(high[0])
            if (start < end and not _same(start, end)) or (_same(start, end) and low[1] and high[1]):
                both.append(Piece(low[0], high[0], low[1], high[1]))
    return both


def _inner(a: Piece, b: Piece, low: bool) -> tuple[str, bool]:
    """The inner one of two ends, and whether it belongs to both pieces."""
    ends = [(piece.low, piece.closed_low) if low else (piece.high, piece.closed_high) for piece in (a, b)]
    x, y = _value(ends[0][0]), _value(ends[1][0])
    if _same(x, y):
        return ends[0][0], ends[0][1] and ends[1][1]
    return ends[0] if (x > y) is low else ends[1]
