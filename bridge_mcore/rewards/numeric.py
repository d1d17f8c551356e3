"""Evaluate formulas at random points, to tell apart what is certainly different.

Numbers only ever say "different": agreement at some points is no proof, and proves nothing about a decimal
approximation that is good to twelve digits.
"""

from __future__ import annotations

import cmath
import math
import random
import zlib
from collections.abc import Callable

from bridge_mcore.rewards.terms import Arithmetic, Quotient, Sum

_FUNCTIONS: dict[str, Callable[[complex], complex]] = {
    "sin": cmath.sin,
    "cos": cmath.cos,
    "arcsin": cmath.asin,
    "arccos": cmath.acos,
    "arctan": cmath.atan,
    "sinh": cmath.sinh,
    "cosh": cmath.cosh,
    "tanh": cmath.tanh,
    "ln": cmath.log,
    "abs": abs,
}
_CONSTANTS = {"pi": math.pi, "e": math.e, "i": 1j, "deg": math.pi / 180}
#: Beyond these magnitudes rounding spoils what a function makes of its argument.
_LARGEST, _LARGEST_ARGUMENT = 1e100, 1e4
#: Relative difference that rounding does not explain.
_CLEAR = 1e-7


class _Unknown(Exception):
    """No value can be given with confidence."""


def clearly_different(arithmetic: Arithmetic, one: Quotient, other: Quotient) -> bool:
    """The two have clearly different values at several random points (the same in every process)."""
    bases: set[int] = set()  # \log is taken to both of its usual bases, by turns
    for point in range(6):
        try:
            a, a_size = _value(arithmetic, one, point)
            b, b_size = _value(arithmetic, other, point)
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
        value, size = _value(arithmetic, quotient, -1)
    except (_Unknown, ArithmeticError, ValueError):
        return None
    return value.real if abs(value.imag) <= _CLEAR * size else None


def _value(arithmetic: Arithmetic, quotient: Quotient, point: int) -> tuple[complex, float]:
    """The value, and a size that its rounding error is small against."""
    top, top_size = _sum(arithmetic, quotient.top, point)
    bottom, bottom_size = _sum(arithmetic, quotient.bottom, point)
    if abs(bottom) <= 1e-6 * bottom_size:
        raise _Unknown
    value = top / bottom
    return value, top_size / abs(bottom) + abs(value) * bottom_size / abs(bottom)


def _sum(arithmetic: Arithmetic, terms: Sum, point: int) -> tuple[complex, float]:
    total, size = 0j, 0.0
    for monomial, factor in terms.items():
        value = complex(float(factor))
        for atom, power in monomial:
            value *= _atom(arithmetic, atom, point) ** float(power)
        if not abs(value) < _LARGEST:
            raise _Unknown
        total += value
        size += abs(value)
    return total, size


def _atom(arithmetic: Arithmetic, atom: str, point: int) -> complex:
    kind, name = atom[0], atom[2:]
    if kind == "p":
        return complex(int(name))
    if kind == "c":
        return complex(_CONSTANTS[name])
    if kind == "v":
        if point < 0:
            raise _Unknown
        # Real, of either sign, not close to 0, and not to be guessed by rounding.
        number = random.Random(zlib.crc32(f"{point} {name}".encode()))
        return complex(number.choice([-1, 1]) * number.uniform(0.3, 2.7))
    if atom not in arithmetic.opaque:
        raise _Unknown
    function, arguments = arithmetic.opaque[atom]
    values = [_value(arithmetic, argument, point) for argument in arguments]
    if any(size > _LARGEST_ARGUMENT for _, size in values):
        raise _Unknown
    value = values[0][0]
    if function == "^":
        if abs(value) < 1e-9:
            raise _Unknown
        return value ** values[1][0]
    if function in ("floor", "ceil"):
        nearest = round(value.real)
        if abs(value.imag) > 1e-9 or abs(value.real - nearest) < 1e-6:
            raise _Unknown
        return complex(math.floor(value.real) if function == "floor" else math.ceil(value.real))
    if function in ("!", "binom"):
        return _factorials(function, [number for number, _ in values])
    if function.endswith("()"):
        if point < 0:
            raise _Unknown
        # Some function, the same wherever its name stands; what holds for all functions holds for this one.
        shift = (zlib.crc32(function.encode()) % 1000) / 500
        return 1.3 + shift + cmath.sin(value * (1 + shift) + shift)
    if function == "log":
        return cmath.log(value) if point % 2 else cmath.log10(value)
    return complex(_FUNCTIONS[function](value))


def _factorials(function: str, values: list[complex]) -> complex:
    if any(abs(value.imag) > 1e-9 or not 0 <= value.real < 100 for value in values):
        raise _Unknown
    first, *rest = (value.real for value in values)
    if function == "!":
        return complex(math.gamma(first + 1))
    if rest[0] > first:
        raise _Unknown
    return complex(math.gamma(first + 1) / (math.gamma(rest[0] + 1) * math.gamma(first - rest[0] + 1)))
