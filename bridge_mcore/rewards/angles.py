"""The angles whose sines and cosines roots of small numbers say."""

from __future__ import annotations

from fractions import Fraction

#: Cosines of angles in degrees: a rational times a root.
_COSINES = {
    0: (Fraction(1), 1),
    30: (Fraction(1, 2), 3),
    45: (Fraction(1, 2), 2),
    60: (Fraction(1, 2), 1),
    90: (Fraction(0), 1),
    120: (Fraction(-1, 2), 1),
    135: (Fraction(-1, 2), 2),
    150: (Fraction(-1, 2), 3),
    180: (Fraction(-1), 1),
}


def known_cosine(turn: Fraction) -> tuple[Fraction, int] | None:
    r"""``(a, n)`` with \cos(turn \pi) = a \sqrt n, for multiples of \pi/6 and \pi/4; None for other angles."""
    degrees = abs((turn * 180 + 180) % 360 - 180)
    return _COSINES.get(int(degrees)) if degrees.denominator == 1 else None


def known_sine(turn: Fraction) -> tuple[Fraction, int] | None:
    r"""The same for \sin(turn \pi)."""
    return known_cosine(turn - Fraction(1, 2))
