r"""Read one formula, in LaTeX or as plain text, into an exact quotient (:mod:`bridge_mcore.rewards.terms`).

The reader is a strict one. What is ambiguous (``1/2x``, ``x^10`` for ``x^{10}``) or unknown to it is refused, and then
decided elsewhere; nothing is skipped to make sense of the rest.
"""

from __future__ import annotations

import re
from fractions import Fraction

from bridge_mcore.rewards.functions import INVERSES, NAMED, apply, binomial, factorial, repeating, root, rounded
from bridge_mcore.rewards.notation import (
    ACCENTED,
    ACCENTS,
    ARGUMENT,
    CIRC,
    CLOSING,
    DERIVATIVE,
    GREEK,
    MIXED,
    PLAIN_DERIVATIVE,
    PLAIN_WORDS,
    PRIMES,
    ROUNDED,
    SUBSCRIPT,
)
from bridge_mcore.rewards.primes import TooHard
from bridge_mcore.rewards.terms import Arithmetic, Quotient, atom, rational
from bridge_mcore.rewards.tokens import Foreign, Tokens, Unreadable

#: Characters in a formula, and brackets in brackets, that are read here.
MAX_FORMULA = 400
MAX_DEPTH = 30


def read_formula(text: str, arithmetic: Arithmetic) -> Quotient:
    """The value of the formula ``text``, in canonical spelling.

    :raises Unreadable: it is not one formula, or an ambiguous one.
    :raises TooHard: its value is undefined, or larger than this arithmetic goes.
    """
    if len(text) > MAX_FORMULA:
        raise TooHard
    if DERIVATIVE.search(PLAIN_DERIVATIVE.sub("", text)):
        raise Unreadable
    return _Reader(text, arithmetic).whole()


#: A degree where an angle is asked for. Elsewhere it is a unit, which is not converted.
_RADIANS = Arithmetic().multiply(rational(Fraction(1, 180)), atom("c:pi"))


class _Reader(Tokens):
    def __init__(self, text: str, arithmetic: Arithmetic) -> None:
        super().__init__(text)
        self.depth = 0
        self.angle = False
        self.do = arithmetic

    def whole(self) -> Quotient:
        value = self.expression()
        self.space()
        if self.at != len(self.text):
            raise Unreadable
        return value

    def expression(self) -> Quotient:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise TooHard
        total = self.signed_term()
        while self.peek() in ("+", "-"):
            total = self.do.add(total, self.signed_term())
        self.depth -= 1
        return total

    def signed_term(self) -> Quotient:
        negative = False
        for _ in range(2):  # `1 + -2`, but not `1 --- 2`
            if self.peek() in ("+", "-"):
                negative ^= self.take() == "-"
        term = self.term()
        return self.do.multiply(rational(-1), term) if negative else term

    def term(self) -> Quotient:
        value = self.factor(first=True)
        divided = False
        while True:
            token = self.peek()
            if token in ("*", r"\cdot", r"\times", r"\ast"):
                self.take()
                if self.peek() == "-":
                    raise Unreadable
                value = self.do.multiply(value, self.factor())
            elif token in ("/", r"\div"):
                self.take()
                negative = self.peek() == "-" and bool(self.take())
                value = self.do.divide(value, self.factor())
                value = self.do.multiply(rational(-1), value) if negative else value
                divided = True
            elif self.begins_factor(token):
                if divided:
                    raise Foreign  # is 1/2x half of x?
                value = self.do.multiply(value, self.factor())
            else:
                return value

    def begins_factor(self, token: str) -> bool:
        if not token or token in ("+", "-", ")", "]", "}", "|", "^", "_", "!", "**"):
            return False
        if token[0].isdigit() or token[0] == ".":
            if self.text[: self.at].rstrip().endswith((")", "!")):
                return True  # `(n-2)2^n`, `3!6!`
            raise Unreadable  # `2 3`, `x2`
        return token not in (r"\rvert", r"\rfloor", r"\rceil")

    def factor(self, first: bool = False) -> Quotient:
        value = self.base(first)
        while True:
            if found := CIRC.match(self.text, self.at):
                self.at = found.end()
                value = self.do.multiply(value, _RADIANS if self.angle else atom("c:deg"))
                continue
            token = self.peek()
            if token == "!":
                self.take()
                if self.peek() == "!":
                    raise Unreadable
                value = factorial(self.do, value)
            elif token in ("^", "**"):
                self.take()
                value = self.do.power(value, self.exponent(plain=token == "**"))
                if self.peek() in ("^", "**"):
                    raise Unreadable
            else:
                return value

    def exponent(self, plain: bool) -> Quotient:
        if plain and self.peek() == "-":
            self.take()
            return self.do.multiply(rational(-1), self.argument())
        return self.argument(plain)

    def argument(self, plain: bool = False) -> Quotient:
        r"""What ``\frac``, ``^`` and the like take: a group, or one sign as TeX has it."""
        token = self.peek()
        if token == "{":
            return self.group("{")
        if token[:1].isdigit():
            if plain:
                return self.base()
            self.space()
            if self.text[self.at + 1 : self.at + 2] == ".":
                raise Unreadable
            self.at += 1
            return rational(int(self.text[self.at - 1]))
        if token == "(":
            return self.group("(")
        if token in ("", "-", "+", "*", "/", ".", ")", "}", "|", "[", "_"):
            raise Unreadable
        return self.base()

    def power_digits(self) -> None:
        """Refuse ``x^10`` and ``\\sqrt12``: TeX raises the 1 alone, and the writer hardly meant that."""
        if self.text[self.at : self.at + 1].isdigit():
            raise Foreign

    def group(self, opening: str) -> Quotient:
        self.take(opening)
        value = self.expression()
        self.take(CLOSING.get(opening, opening))
        return value

    def base(self, first: bool = False) -> Quotient:
        token = self.peek()
        if not token:
            raise Unreadable
        if token[0].isdigit() or token[0] == ".":
            return self.number(first)
        if token in ROUNDED:
            return self.rounded(token)
        if token in CLOSING:
            return self.group(token)
        name = token.removeprefix("\\")
        if len(name) == 1 and name.isalpha():
            return self.variable()
        if token.startswith("\\") or token in PLAIN_WORDS:
            return self.command(name)
        raise Unreadable

    def number(self, first: bool) -> Quotient:
        token = self.take()
        end = self.at
        if self.peek() == "_":
            raise Unreadable  # a numeral in a base is not read as a number here
        if "overline" in token:
            return rational(repeating(token))
        if len(token) > 1000:
            raise TooHard
        value = Fraction(token.replace(",", "").rstrip("."))
        mixed = MIXED.match(self.text, end) if first and token.isdigit() else None
        if mixed:
            top, bottom = (int(part) for part in mixed.groups() if part is not None)
            if top < bottom:
                self.at = mixed.end()
                return rational(value + Fraction(top, bottom))
        return rational(value)

    def rounded(self, token: str) -> Quotient:
        self.take()
        inside = self.expression()
        self.take(CLOSING.get(token, token))
        return rounded(self.do, ROUNDED[token], inside)

    def subscript(self) -> str:
        """``_1`` and ``_{\\text{red}}`` as a part of a name, "" where there is none."""
        if self.peek() != "_":
            return ""
        self.take()
        found = SUBSCRIPT.match(self.text, self.at)
        if found is None:
            raise Unreadable
        self.at = found.end()
        return "_" + (found["text"] or found["braced"] or found["one"]).removeprefix("\\")

    def variable(self) -> Quotient:
        name = self.take().removeprefix("\\")
        if lowered := self.subscript():
            name += lowered
        elif name in ("i", "e"):
            return atom(f"c:{name}")
        if primes := PRIMES.match(self.text, self.at):
            self.at = primes.end()
            name += "'" * (primes[0].count("'") + primes[0].count("prime"))
        if ARGUMENT.match(self.text, self.at) or (name in "fghFGH" and self.peek() == "("):
            return self.do.function(f"{name}()", self.group("("))  # f(x), not a product
        return atom(f"v:{name}")

    def command(self, name: str) -> Quotient:
        if name in GREEK:
            return self.variable_named(name)
        if name == "frac" and (found := PLAIN_DERIVATIVE.match(self.text, self.at)):
            self.at = found.end()
            return atom("v:" + re.sub(r"[{} ]", "", found[0]))
        self.take()
        if name == "pi":
            return atom("c:pi")
        if name in ACCENTS:
            return self.accented(name)
        if name in ("frac", "binom", "dbinom", "tbinom"):
            return self.two_arguments(name)
        if name == "sqrt":
            return self.root()
        if name in NAMED:
            return self.named(name)
        raise Foreign

    def accented(self, name: str) -> Quotient:
        self.space()
        found = ACCENTED.match(self.text, self.at)
        if found is None:
            raise Foreign
        self.at = found.end()
        letter = found[1] or found[2]
        # i, j and k with any mark are the unit vectors
        name = f"unit {letter}" if letter in ("i", "j", "k") else f"{ACCENTS[name]} {letter}{self.subscript()}"
        if ARGUMENT.match(self.text, self.at):
            return self.do.function(f"{name}()", self.group("("))
        return atom(f"v:{name}")

    def variable_named(self, name: str) -> Quotient:
        if not self.text.startswith("\\", self.at):
            self.take()
            return atom(f"v:{name}")
        return self.variable()

    def two_arguments(self, name: str) -> Quotient:
        top, bottom = self.argument(), self.argument()
        self.power_digits()
        if name == "frac":
            return self.do.divide(top, bottom)
        return binomial(self.do, top, bottom)

    def root(self) -> Quotient:
        degree = rational(2)
        if self.peek() == "[":
            degree = self.group("[")
        inside = self.argument(plain=False)
        self.power_digits()
        return root(self.do, inside, degree)

    def named(self, name: str) -> Quotient:
        base, power = None, None
        if name in ("log", "lg") and self.peek() == "_":
            self.take()
            base = self.argument()
            self.power_digits()
        if self.peek() == "^":
            self.take()
            power = self.argument().constant()
            if power == -1 and name in INVERSES:
                name, power = INVERSES[name], None  # \sin^{-1} x is \arcsin x
            elif power is None or power.denominator != 1 or power < 1:
                raise Foreign
        around, self.angle = self.angle, name in INVERSES or name == "cis"
        inside = self.function_argument()
        self.angle = around
        value = apply(self.do, name, inside, base)
        return value if power is None else self.do.power(value, rational(power))

    def function_argument(self) -> Quotient:
        """``\\sin(2t) x`` takes the bracket alone; ``\\sin 2 t`` and ``\\cos \\frac12 \\theta`` a run of factors."""
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise TooHard
        token = self.peek()
        if token in ("(", "{", "["):
            value = self.group(token)
            if self.angle and (found := CIRC.match(self.text, self.at)):
                self.at = found.end()
                value = self.do.multiply(value, _RADIANS)  # \sin(60)^\circ
            if self.peek() == "!" or (token == "{" and self.peek() in ("^", "**")):
                raise Foreign  # \sin{x}^2; of \sin(x)^2 the whole is squared
        else:
            value = self.factor()
            while (token := self.peek()) and token[0] not in "(|/*" and token != r"\cdot" and self.begins_factor(token):
                if token.removeprefix("\\") in NAMED:
                    break
                value = self.do.multiply(value, self.factor())
            if self.peek() in ("(", "/"):
                raise Foreign  # \sin x(x+1), \sin x/2
        self.depth -= 1
        return value
