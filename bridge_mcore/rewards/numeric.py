"""Evaluate formulas, to tell apart what is certainly different, and to find constants that are the same.

At random points machine numbers only ever say "different": agreement at some points is no proof. Formulas without
variables are compared with so many digits that no short formula agrees with another by chance.
"""

from __future__ import annotations

import cmath
import math
import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from bridge_mcore.rewards.terms import Arithmetic, Quotient, Sum

#: Relative difference that rounding of machine numbers does not explain.
_CLEAR = 1e-7
#: Most digits that constants are compared with; formulas that need more are not equal.
_MOST_DIGITS = 4000


class _Unknown(Exception):
    """No value can be given with confidence."""


class _OutOfReach(_Unknown):
    """A term or argument is so small or large that it needs more digits: about as many as ``places``."""

    def __init__(self, places: float) -> None:
        super().__init__()
        self.places = places


@dataclass(frozen=True)
class _Numbers:
    """One kind of numbers.

    Attributes:
        library: its functions and constants, as cmath calls them.
        of: a rational as such a number.
        least, largest: magnitudes of terms beyond which values are not to be trusted.
        largest_argument: of a function, but for the base of a power.
        cancelled: relative size of a sum below which its value may be nothing but rounding.
        real: relative size of an imaginary part below which it is nothing but rounding.
    """

    library: Any
    of: Callable[[Fraction], Any]
    least: float
    largest: float
    largest_argument: float
    cancelled: float
    real: float


_MACHINE = _Numbers(cmath, lambda value: complex(float(value)), 0.0, 1e100, 1e4, 1e-6, 1e-12)
#: By a library and a value.
_FUNCTIONS: dict[str, Callable[[Any, Any], Any]] = {
    "sin": lambda library, value: library.sin(value),
    "cos": lambda library, value: library.cos(value),
    "arcsin": lambda library, value: library.asin(value),
    "arccos": lambda library, value: library.acos(value),
    "arctan": lambda library, value: library.atan(value),
    "arccsc": lambda library, value: library.asin(1 / value),
    "arcsec": lambda library, value: library.acos(1 / value),
    "arccot": lambda library, value: library.atan(1 / value),
    "sinh": lambda library, value: library.sinh(value),
    "cosh": lambda library, value: library.cosh(value),
    "tanh": lambda library, value: library.tanh(value),
    "ln": lambda library, value: library.log(value),
}


def clearly_different(arithmetic: Arithmetic, one: Quotient, other: Quotient) -> bool:
    """The two have clearly different values at several random points (the same in every process)."""
    bases: set[int] = set()  # \\log is taken to both of its usual bases, by turns
    for point in range(6):
        evaluate = _Evaluator(arithmetic, _MACHINE, point)
        try:
            a, a_size = evaluate.quotient(one)
            b, b_size = evaluate.quotient(other)
        except (_Unknown, ArithmeticError, ValueError):
            continue
        if abs(a - b) <= _CLEAR * (a_size + b_size):
            return False
        bases.add(point % 2)
        if len(bases) == 2:
            return True
    return False


def real_value(arithmetic: Arithmetic, quotient: Quotient) -> float | None:
    """The value of a formula without variables, where it is real and can be given to some ten digits."""
    try:
        value, size = _Evaluator(arithmetic, _MACHINE, -1).quotient(quotient)
    except (_Unknown, ArithmeticError, ValueError):
        return None
    return float(value.real) if abs(value.imag) <= _CLEAR * size else None


def same_constant(arithmetic: Arithmetic, one: Quotient, other: Quotient) -> bool | None:
    """Whether two formulas without variables have one value; None where that cannot be said.

    They are compared with 150 digits, and eight more for each digit in them: two algebraic numbers that short
    formulas can name are further apart, and an approximation, whatever its length, is too. Very small and very large
    terms ask for more, so that nothing hides behind them; what asks for too many is different.
    """
    digits = 150 + 8 * (_digits(arithmetic, one, set()) + _digits(arithmetic, other, set()))
    reach = 60.0
    while digits <= _MOST_DIGITS:
        try:
            return _same_with(arithmetic, one, other, digits, reach)
        except _OutOfReach as wanted:
            digits += 4 * math.ceil(wanted.places)
            reach = max(2 * reach, wanted.places)
        except (_Unknown, ArithmeticError, ValueError, TypeError):
            return None
    return False


def _same_with(arithmetic: Arithmetic, one: Quotient, other: Quotient, digits: int, reach: float) -> bool | None:
    """The same with so many digits, for terms of at most ``reach`` places before and behind the point."""
    from mpmath import MPContext  # wanted by few formulas

    library = MPContext()
    library.dps = digits
    ten = library.mpf(10)
    numbers = _Numbers(
        library,
        lambda value: library.mpf(value.numerator) / value.denominator,
        ten**-reach,
        ten**reach,
        reach,
        1e-20,
        ten ** (40 - digits),
    )
    for point in (-2, -1):  # both bases of \\log
        evaluate = _Evaluator(arithmetic, numbers, point)
        a, a_size = evaluate.quotient(one)
        b, b_size = evaluate.quotient(other)
        apart, size = abs(a - b), a_size + b_size
        if apart > size * ten ** (40 - digits):
            return False
        if apart > size * ten ** (20 - digits):
            return None
    return True


def _digits(arithmetic: Arithmetic, quotient: Quotient, seen: set[str]) -> int:
    """Decimal digits of all numbers in a formula."""
    total = 0
    for terms in (quotient.top, quotient.bottom):
        for monomial, factor in terms.items():
            total += _size(factor) + sum(_size(power) for _, power in monomial)
    for name in quotient.atoms() - seen:
        seen.add(name)
        if name.startswith("p:"):
            total += len(name) - 2
        for argument in arithmetic.opaque.get(name, ("", ()))[1]:
            total += _digits(arithmetic, argument, seen)
    return total


def _size(value: Fraction) -> int:
    return (value.numerator.bit_length() + value.denominator.bit_length()) // 3


class _Evaluator:
    """Values at one point, in one kind of numbers; points below 0 have no variables."""

    def __init__(self, arithmetic: Arithmetic, numbers: _Numbers, point: int) -> None:
        self._arithmetic, self._numbers, self._point = arithmetic, numbers, point

    def quotient(self, quotient: Quotient) -> tuple[Any, Any]:
        """The value, and a size that its rounding error is small against."""
        top, top_size = self._sum(quotient.top)
        bottom, bottom_size = self._sum(quotient.bottom)
        if abs(bottom) <= self._numbers.cancelled * bottom_size:
            raise _Unknown
        value = top / bottom
        return value, top_size / abs(bottom) + abs(value) * bottom_size / abs(bottom)

    def _sum(self, terms: Sum) -> tuple[Any, Any]:
        total, size = self._numbers.of(Fraction(0)) + 0j, self._numbers.of(Fraction(0)).real
        for monomial, factor in terms.items():
            value = self._numbers.of(factor) + 0j
            for atom, power in monomial:
                value *= self._factor(atom, power)
            if not self._numbers.least <= abs(value) < self._numbers.largest:
                raise self._out_of_reach(value)
            total += value
            size += abs(value)
        return total, size

    def _out_of_reach(self, value: Any) -> _Unknown:
        library = self._numbers.library
        if library is cmath or not abs(value):
            return _Unknown()
        return _OutOfReach(abs(float(library.log10(abs(value)))) + 1)

    def _factor(self, atom: str, power: Fraction) -> Any:
        """``atom ** power``. e^{ix} to the power q is e^{ixq}, of whose roots the principal one may be another."""
        if power != 1 and atom.startswith(("b:c:", "b:p:")) and atom in self._arithmetic.opaque:
            base, exponent = self._arguments(atom)
            return base ** (exponent * self._numbers.of(power))
        return self._power(self._atom(atom), power)

    def _power(self, value: Any, exponent: Fraction) -> Any:
        """``value ** exponent``; the odd root of a negative number is the real one."""
        if value.real < 0 and exponent.denominator > 1 and abs(value.imag) <= self._numbers.real * abs(value):
            if exponent.denominator % 2:
                size = (-value.real) ** self._numbers.of(exponent).real
                return (-size if exponent.numerator % 2 else size) + 0j
            value = value.real + 0j  # rounding must not say on which side of the real line it stands
        if exponent.denominator == 1:
            return value ** int(exponent)
        return value ** self._numbers.of(exponent)

    def _atom(self, atom: str) -> Any:
        kind, name = atom[0], atom[2:]
        if kind == "p":
            return self._numbers.of(Fraction(int(name))) + 0j
        if kind == "c":
            return self._constant(name)
        if kind == "v":
            if self._point < 0:
                raise _Unknown
            # Real, of either sign, not close to 0, and not to be guessed by rounding.
            number = random.Random(zlib.crc32(f"{self._point} {name}".encode()))
            return complex(number.choice([-1, 1]) * number.uniform(0.3, 2.7))
        if atom not in self._arithmetic.opaque:
            raise _Unknown
        function, arguments = self._arithmetic.opaque[atom]
        values = self._arguments(atom)
        exponent = arguments[1].constant() if function == "^" else None
        return self._function(function, values, exponent)

    def _arguments(self, atom: str) -> list[Any]:
        function, arguments = self._arithmetic.opaque[atom]
        values = []
        for i, argument in enumerate(arguments):
            value, size = self.quotient(argument)
            most = self._numbers.largest if function == "^" and i == 0 else self._numbers.largest_argument
            if size > most and self._numbers.library is not cmath:
                raise _OutOfReach(float(size) if size < _MOST_DIGITS else _MOST_DIGITS)
            if size > most or abs(value) < self._numbers.least * size:
                raise _Unknown
            values.append(value)
        return values

    def _constant(self, name: str) -> Any:
        library = self._numbers.library
        if name == "i":
            return self._numbers.of(Fraction(0)) + 1j
        return (+library.e if name == "e" else +library.pi / (180 if name == "deg" else 1)) + 0j

    def _function(self, name: str, values: list[Any], exponent: Fraction | None) -> Any:
        value, library = values[0], self._numbers.library
        if name == "^":
            if abs(value) < 1e-9:
                raise _Unknown
            return self._power(value, exponent) if exponent is not None else value ** values[1]
        if name in ("floor", "ceil"):
            nearest = round(float(value.real))
            if abs(value.imag) > 1e-9 or abs(value.real - nearest) < 1e-6:
                raise _Unknown
            rounded = math.floor(value.real) if name == "floor" else math.ceil(value.real)
            return self._numbers.of(Fraction(rounded)) + 0j
        if name in ("!", "binom"):
            if library is not cmath:
                raise _Unknown
            return _factorials(name, values)
        if name.endswith("()"):
            if self._point < 0:
                raise _Unknown
            # Some function, the same wherever its name stands; what holds for all functions holds for this one.
            shift = (zlib.crc32(name.encode()) % 1000) / 500
            return 1.3 + shift + cmath.sin(value * (1 + shift) + shift)
        if name == "log":
            return library.log(value) if self._point % 2 else library.log10(value)
        if name == "abs":
            return abs(value) + 0j
        return _FUNCTIONS[name](library, value) + 0j


def _factorials(function: str, values: list[Any]) -> complex:
    if any(abs(value.imag) > 1e-9 or not 0 <= value.real < 100 for value in values):
        raise _Unknown
    first, *rest = (value.real for value in values)
    if function == "!":
        return complex(math.gamma(first + 1))
    if rest[0] > first:
        raise _Unknown
    return complex(math.gamma(first + 1) / (math.gamma(rest[0] + 1) * math.gamma(first - rest[0] + 1)))
