"""The functions of formulas, as far as they have exact values; the rest of them stays opaque."""

from __future__ import annotations

import math
from fractions import Fraction

from bridge_mcore.rewards.angles import known_cosine, known_sine
from bridge_mcore.rewards.numeric import real_value
from bridge_mcore.rewards.primes import TooHard, factors
from bridge_mcore.rewards.terms import Arithmetic, Quotient, atom, monomial_key, rational

#: Functions with the name under which they are compared.
_OPAQUE = {
    "sin": "sin",
    "cos": "cos",
    "arcsin": "arcsin",
    "arccos": "arccos",
    "arctan": "arctan",
    "asin": "arcsin",
    "acos": "arccos",
    "atan": "arctan",
    "arccot": "arccot",
    "arcsec": "arcsec",
    "arccsc": "arccsc",
    "sinh": "sinh",
    "cosh": "cosh",
    "tanh": "tanh",
}
#: The functions of angles, with the names of their inverses.
INVERSES = {name: "arc" + name for name in ("sin", "cos", "tan", "cot", "sec", "csc")}
#: Those that are quotients of these.
_DERIVED = {"tan": ("sin", "cos"), "cot": ("cos", "sin"), "sec": ("", "cos"), "csc": ("", "sin")}
#: All names that :func:`apply` knows.
NAMED = frozenset([*_OPAQUE, *_DERIVED, "cis", "ln", "log", "lg", "exp"])


def apply(do: Arithmetic, name: str, inside: Quotient, base: Quotient | None) -> Quotient:
    """The function ``name`` of ``inside``; ``base`` is that of a logarithm, where it is given.

    :raises TooHard: it has no value there, or none that this arithmetic knows.
    """
    if name in _OPAQUE:
        if name in ("sin", "cos") and (known := _known_angle(do, name, inside)) is not None:
            return known
        return do.function(_OPAQUE[name], inside)
    if name in _DERIVED:
        top, bottom = (apply(do, part, inside, None) if part else rational(1) for part in _DERIVED[name])
        return do.divide(top, bottom)
    if name == "cis":
        cosine, sine = (apply(do, part, inside, None) for part in ("cos", "sin"))
        return do.add(cosine, do.multiply(atom("c:i"), sine))
    if name == "exp":
        return do.power(atom("c:e"), inside)
    if base is not None:
        return do.divide(_logarithm(do, "ln", inside), _logarithm(do, "ln", base))
    if name == "lg":
        return do.divide(_logarithm(do, "ln", inside), _logarithm(do, "ln", rational(10)))
    return _logarithm(do, name, inside)  # the base of \log is not known, so it is not \ln


def _known_angle(do: Arithmetic, name: str, inside: Quotient) -> Quotient | None:
    r"""The sine or cosine of a multiple of \pi/6 or \pi/4."""
    turn = do.divide(inside, atom("c:pi")).constant()
    if turn is None:
        return None
    known = known_sine(turn) if name == "sin" else known_cosine(turn)
    if known is None:
        return None
    times, under_root = known
    return do.multiply(rational(times), do.power(rational(under_root), rational(Fraction(1, 2))))


def _logarithm(do: Arithmetic, name: str, inside: Quotient) -> Quotient:
    value = inside.constant()
    if value is not None and value <= 0:
        raise TooHard
    if value is None:
        if name == "ln" and inside.key() == atom("c:e").key():
            return rational(1)
        return do.function(name, inside)
    total = rational(0)
    for prime, times in factors(value).items():
        total = do.add(total, do.multiply(rational(times), do.function(name, rational(prime))))
    return total


def root(do: Arithmetic, inside: Quotient, degree: Quotient) -> Quotient:
    """The principal root; of a negative number i times that of its absolute value, or for odd degrees the real one."""
    value, order = inside.constant(), degree.constant()
    if value is not None and value < 0 and order is not None and order.denominator == 1:
        positive = root(do, rational(-value), degree)
        if order == 2:
            return do.multiply(atom("c:i"), positive)
        if order > 0 and order % 2:
            return do.multiply(rational(-1), positive)
        raise TooHard
    odd = order is not None and order.denominator == 1 and order > 1 and order % 2
    if value is None and odd and _is_negative(do, inside):
        inside = do.multiply(rational(-1), inside)
        return do.multiply(rational(-1), do.power(inside, do.divide(rational(1), degree)))
    return do.power(inside, do.divide(rational(1), degree))


def _is_negative(do: Arithmetic, inside: Quotient) -> bool:
    """Which of a formula and its negative stands under an odd root: the negative one goes out. With variables, where
    neither is negative, the first term says."""
    if (value := real_value(do, inside)) is not None:
        return value < 0
    first = inside.top[min(inside.top, key=monomial_key)]
    return first * inside.bottom[min(inside.bottom, key=monomial_key)] < 0


def factorial(do: Arithmetic, value: Quotient) -> Quotient:
    """``value!``"""
    number = value.constant()
    if number is None:
        return do.function("!", value)
    if number.denominator != 1 or not 0 <= number <= 400:
        raise TooHard
    return rational(math.factorial(int(number)))


def binomial(do: Arithmetic, top: Quotient, bottom: Quotient) -> Quotient:
    """``top`` over ``bottom``, a binomial coefficient."""
    n, k = top.constant(), bottom.constant()
    if n is None or k is None:
        return do.function("binom", top, bottom)
    if n.denominator != 1 or k.denominator != 1 or not 0 <= k <= n <= 1000:
        raise TooHard
    return rational(math.comb(int(n), int(k)))


def rounded(do: Arithmetic, name: str, inside: Quotient) -> Quotient:
    """The absolute value ("abs"), "floor" or "ceil" of ``inside``."""
    value = inside.constant()
    if value is None:
        return do.function(name, inside)
    if name == "abs":
        return rational(abs(value))
    return rational(math.floor(value) if name == "floor" else math.ceil(value))


def repeating(token: str) -> Fraction:
    """``0.1\\overline{6}`` is 1/6."""
    front, _, period = token.rstrip("}").partition(r"\overline{")
    whole, _, places = front.partition(".")
    if len(token) > 100:
        raise TooHard
    return Fraction(int((whole + places) or 0), 10 ** len(places)) + Fraction(
        int(period), (10 ** len(period) - 1) * 10 ** len(places)
    )
