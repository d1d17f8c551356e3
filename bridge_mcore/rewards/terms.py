r"""Exact arithmetic on formulas: quotients of sums of monomials with rational coefficients.

A monomial is a product of *atoms* with rational exponents: primes under a root (``2^{1/2}``), ``\pi``, ``e``, ``i``,
variables, and functions that are not understood further (``sin`` of some quotient). Between primes under roots,
``\pi``, ``i`` and variables there are no relations but those applied here (roots of integers are linearly independent
over the rationals; ``\pi`` is transcendental), so two quotients without other atoms are equal if and only if
cross-multiplying says so. That is decided in microseconds, and exactly, where a computer algebra system guesses.

Everything is bounded: :class:`TooHard` is raised where numbers or sums grow beyond what an answer needs.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from bridge_mcore.rewards.angles import known_cosine, known_sine
from bridge_mcore.rewards.primes import TooHard, factors

#: Atoms by their first letters: "p:2" a prime, "c:pi" "c:e" "c:i" "c:deg" constants, "v:x" a variable; "f:..." a
#: function and "b:..." a power with a symbolic exponent are opaque.
Monomial = tuple[tuple[str, Fraction], ...]
Sum = dict[Monomial, Fraction]

MAX_TERMS = 120
MAX_BITS = 6000
#: Term multiplications in one comparison, some tens of milliseconds.
MAX_WORK = 20_000
_ONE: Monomial = ()
_I_PI: Monomial = (("c:i", Fraction(1)), ("c:pi", Fraction(1)))


class _NoRule(TooHard):
    """A power that no rule used here can take apart."""


@dataclass(frozen=True, slots=True)
class Quotient:
    """``top / bottom``. Treat both as immutable; ``bottom`` is never the empty sum."""

    top: Sum
    bottom: Sum

    def atoms(self) -> set[str]:
        """The atoms of both sums."""
        return {atom for terms in (self.top, self.bottom) for monomial in terms for atom, _ in monomial}

    def constant(self) -> Fraction | None:
        """The value, where it is a rational number."""
        if not self.top:
            return Fraction(0)
        if list(self.bottom) == [_ONE] and list(self.top) == [_ONE]:
            return self.top[_ONE] / self.bottom[_ONE]
        return None

    def key(self) -> str:
        """A name; equal names mean equal quotients, but not the other way round."""
        return f"{_sum_key(self.top)}/{_sum_key(self.bottom)}"


def _sum_key(terms: Sum) -> str:
    return "+".join(sorted(f"{factor}{monomial_key(monomial)}" for monomial, factor in terms.items()))


def monomial_key(monomial: Monomial) -> str:
    """A name for a product of atoms, equal for equal products only."""
    return "*".join(f"{atom}^{power}" for atom, power in monomial)


def rational(value: Fraction | int) -> Quotient:
    """A rational number as a quotient."""
    value = _bounded(Fraction(value))
    return Quotient({_ONE: value} if value else {}, {_ONE: Fraction(1)})


def atom(name: str, power: Fraction | int = 1) -> Quotient:
    """One atom to a power."""
    return Quotient({((name, Fraction(power)),): Fraction(1)}, {_ONE: Fraction(1)})


def _bounded(value: Fraction) -> Fraction:
    if value.numerator.bit_length() > MAX_BITS or value.denominator.bit_length() > MAX_BITS:
        raise TooHard
    return value


class Arithmetic:
    """The operations, with a budget that all of one comparison shares."""

    def __init__(self, work: int = MAX_WORK) -> None:
        self._work = work
        #: What the opaque atoms stand for: a function ("^" for a power) and its arguments.
        self.opaque: dict[str, tuple[str, tuple[Quotient, ...]]] = {}

    def function(self, name: str, *arguments: Quotient) -> Quotient:
        """A function that is not understood further, as an atom."""
        key = f"f:{name}({','.join(argument.key() for argument in arguments)})"
        if len(key) > MAX_BITS:
            raise TooHard
        self.opaque[key] = (name, arguments)
        return atom(key)

    def _spend(self, work: int) -> None:
        self._work -= work
        if self._work < 0:
            raise TooHard

    def add(self, one: Quotient, other: Quotient) -> Quotient:
        """``one + other``."""
        if one.bottom == other.bottom:
            return Quotient(self._sum(one.top, other.top), one.bottom)
        top = self._sum(self._product(one.top, other.bottom), self._product(other.top, one.bottom))
        return self._quotient(top, self._product(one.bottom, other.bottom))

    def subtract(self, one: Quotient, other: Quotient) -> Quotient:
        """``one - other``."""
        return self.add(one, self.multiply(rational(-1), other))

    def multiply(self, one: Quotient, other: Quotient) -> Quotient:
        """``one * other``."""
        return self._quotient(self._product(one.top, other.top), self._product(one.bottom, other.bottom))

    def divide(self, one: Quotient, other: Quotient) -> Quotient:
        """``one / other``.

        :raises TooHard: ``other`` is zero.
        """
        if not other.top:
            raise TooHard
        return self.multiply(one, Quotient(other.bottom, other.top))

    def equal(self, one: Quotient, other: Quotient) -> bool:
        """The two have one normal form. False says nothing where there are opaque atoms."""
        return self._product(one.top, other.bottom) == self._product(other.top, one.bottom)

    def proportional(self, one: Quotient, other: Quotient) -> Fraction | None:
        """The rational that ``one`` is times ``other``; None where there is none."""
        left, right = self._product(one.top, other.bottom), self._product(other.top, one.bottom)
        if not left or left.keys() != right.keys():
            return None
        ratios = {left[monomial] / right[monomial] for monomial in left}
        return ratios.pop() if len(ratios) == 1 else None

    def power(self, base: Quotient, exponent: Quotient) -> Quotient:
        """``base ** exponent``; opaque where no rule holds for all values of the variables.

        :raises TooHard: the result is too large.
        """
        try:
            return self._power(base, exponent)
        except _NoRule:
            return self.function("^", base, exponent)

    def _power(self, base: Quotient, exponent: Quotient) -> Quotient:
        number = exponent.constant()
        if number is not None and number.denominator == 1:
            return self._integer_power(base, int(number))
        value = base.constant()
        if value == 0 and number is not None:
            if number < 0:
                raise TooHard
            return rational(0)
        if value is not None and value > 0:
            result = rational(1)
            for prime, count in factors(value).items():
                result = self.multiply(result, self._root_power(f"p:{prime}", prime, count, exponent))
            return result
        if list(base.bottom) != [_ONE] or len(base.top) != 1:
            raise _NoRule
        ((monomial, factor),) = base.top.items()
        factor /= base.bottom[_ONE]
        # (a b)^r = a^r b^r holds if all but one of the factors are positive; and (x^2)^{1/2} is not x.
        variables = [name for name, power in monomial if name[0] != "p" and name not in ("c:pi", "c:e")]
        # The odd root of a negative number is the real one, for which both hold without condition.
        odd = number is not None and number.denominator % 2 and all(name[0] == "v" for name in variables)
        unlike = len(variables) > 1 or any(power != 1 for name, power in monomial if name in variables)
        if not factor or (not odd and (factor < 0 or unlike)):
            raise _NoRule
        if any(name[0] == "b" and "c:i" in name for name in variables):
            raise _NoRule  # of e^{ix} the root is e^{ix/2} or its negative
        result = self._power(rational(abs(factor)), exponent)
        if factor < 0 and number is not None and number.numerator % 2:
            result = self.multiply(rational(-1), result)
        for name, times in monomial:
            if name[0] == "p":
                piece = self._root_power(name, int(name[2:]), times, exponent)
            else:
                piece = self._symbolic_power(name, times, exponent)
            result = self.multiply(result, piece)
        return result

    def _integer_power(self, base: Quotient, number: int) -> Quotient:
        if number < 0:
            return self.divide(rational(1), self._integer_power(base, -number))
        value = base.constant()
        if value is not None:
            size = max(value.numerator.bit_length(), value.denominator.bit_length())
            if size > 1 and size * number > MAX_BITS + number:
                raise TooHard
            return rational(value**number)
        single = len(base.top) == 1 and len(base.bottom) == 1
        if number > (100_000 if single else 40):
            raise TooHard
        result = rational(1)
        while number:
            if number & 1:
                result = self.multiply(result, base)
            number >>= 1
            if number:
                base = self.multiply(base, base)
        return result

    def _root_power(self, name: str, prime: int, times: Fraction | int, exponent: Quotient) -> Quotient:
        number = exponent.constant()
        if number is None:
            return self._symbolic_power(name, times, exponent)
        whole = number * times
        if abs(whole) * prime.bit_length() > MAX_BITS:
            raise TooHard
        outside = whole.numerator // whole.denominator
        factor = Fraction(prime) ** outside
        inside = whole - outside
        return self.multiply(rational(factor), atom(name, inside)) if inside else rational(factor)

    def _symbolic_power(self, name: str, times: Fraction | int, exponent: Quotient) -> Quotient:
        """``name ** (times * exponent)`` as a product over the terms of the exponent: e^{a+2b} is e^a (e^b)^2."""
        if list(exponent.bottom) != [_ONE]:
            raise _NoRule
        result = rational(1)
        for monomial, factor in exponent.top.items():
            power = _bounded(factor / exponent.bottom[_ONE] * times)
            if name == "c:e" and monomial == _I_PI and (known := _on_circle(power)) is not None:
                piece = known
            elif monomial != _ONE:
                key = f"b:{name}^({monomial_key(monomial)})"
                power = power % 2 if name == "c:e" and monomial == _I_PI else power
                base = rational(int(name[2:])) if name[0] == "p" else atom(name)
                self.opaque[key] = ("^", (base, Quotient({monomial: Fraction(1)}, {_ONE: Fraction(1)})))
                piece = atom(key, power)
            elif name[0] == "p":
                piece = self._root_power(name, int(name[2:]), 1, rational(power))
            else:
                piece = atom(name, power)
            result = self.multiply(result, piece)
        return result

    def _quotient(self, top: Sum, bottom: Sum) -> Quotient:
        if len(bottom) > 1 or not bottom or (list(bottom) == [_ONE] and bottom[_ONE] == 1):
            if not bottom:
                raise TooHard
            return Quotient(top, bottom)
        ((monomial, factor),) = bottom.items()
        inverse = {tuple((name, -power) for name, power in monomial): 1 / factor}
        return Quotient(self._product(top, inverse), {_ONE: Fraction(1)})

    def _sum(self, one: Sum, other: Sum) -> Sum:
        self._spend(len(other))
        result = dict(one)
        for monomial, factor in other.items():
            total = _bounded(result.get(monomial, Fraction(0)) + factor)
            if total:
                result[monomial] = total
            else:
                result.pop(monomial, None)
        if len(result) > MAX_TERMS:
            raise TooHard
        return result

    def _product(self, one: Sum, other: Sum) -> Sum:
        self._spend(len(one) * len(other))
        result: Sum = {}
        for left, left_factor in one.items():
            for right, right_factor in other.items():
                monomial, factor = _join(left, right)
                total = _bounded(result.get(monomial, Fraction(0)) + left_factor * right_factor * factor)
                if total:
                    result[monomial] = total
                else:
                    result.pop(monomial, None)
        if len(result) > MAX_TERMS:
            raise TooHard
        return result


def _on_circle(turn: Fraction) -> Quotient | None:
    r"""e^{i \pi turn}, where its sine and cosine are roots."""
    cosine, sine = known_cosine(turn), known_sine(turn)
    if cosine is None or sine is None:
        return None
    terms: Sum = {}
    for (factor, under_root), unit in ((cosine, _ONE), (sine, (("c:i", Fraction(1)),))):
        if factor:
            root: Monomial = ((f"p:{under_root}", Fraction(1, 2)),) if under_root > 1 else _ONE
            terms[unit + root] = factor
    return Quotient(terms, {_ONE: Fraction(1)})


def _join(one: Monomial, other: Monomial) -> tuple[Monomial, Fraction]:
    """The product of two monomials and the rational that comes out of its roots and of ``i``."""
    if not one or not other:
        whole = one or other
        if not any(name[0] == "p" or name == "c:i" for name, _ in whole):
            return whole, Fraction(1)
    powers = dict(one)
    for name, power in other:
        powers[name] = powers.get(name, Fraction(0)) + power
    factor = Fraction(1)
    for name, power in powers.items():
        if name[0] == "p":
            outside = power.numerator // power.denominator
            if abs(outside) * int(name[2:]).bit_length() > MAX_BITS:
                raise TooHard
            factor *= Fraction(int(name[2:])) ** outside
            powers[name] = power - outside
        elif name == "c:i":
            if power.denominator != 1:
                raise TooHard
            if power.numerator % 4 >= 2:
                factor = -factor
            powers[name] = Fraction(power.numerator % 2)
    return tuple(sorted((name, power) for name, power in powers.items() if power)), factor
