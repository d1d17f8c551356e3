"""The prime factors of the numbers under roots."""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache


class TooHard(Exception):
    """The formula is beyond the limits of this arithmetic, or not defined; someone else must decide."""


def factors(value: Fraction) -> dict[int, int]:
    """The primes of a positive rational with their exponents.

    :raises TooHard: a factor above the square of 10^4 is left.
    """
    result: dict[int, int] = {}
    for number, sign in ((value.numerator, 1), (value.denominator, -1)):
        for prime, times in _factors(number).items():
            result[prime] = sign * times
    return result


@lru_cache(4096)
def _factors(number: int) -> dict[int, int]:
    result: dict[int, int] = {}
    if number.bit_length() > 200:
        raise TooHard
    prime = 2
    while prime * prime <= number and prime < 10_000:
        while number % prime == 0:
            result[prime] = result.get(prime, 0) + 1
            number //= prime
        prime += 1 if prime == 2 else 2
    if number > 1:
        if number >= 10**8:
            raise TooHard
        result[number] = 1
    return result
