r"""Are two single values the same: numbers and formulas, with their units."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from fractions import Fraction

from bridge_mcore.rewards.exact import number
from bridge_mcore.rewards.formula import read_formula
from bridge_mcore.rewards.numeric import clearly_different, real_value, same_constant
from bridge_mcore.rewards.primes import TooHard
from bridge_mcore.rewards.structure import INFINITIES, flat, plain_words
from bridge_mcore.rewards.terms import Arithmetic, Quotient, rational
from bridge_mcore.rewards.tokens import Foreign, Unreadable
from bridge_mcore.rewards.units import Measure, measure

#: True, False, or None where an oracle is missing.
Decision = bool | None
Oracle = Callable[[str, str], bool]

_DECISIVE = ("p:", "v:", "c:pi", "c:i")
_EXACT_DECIMAL = re.compile(r"\d*\.\d|e[+-]?\d")
#: What Math-Verify may be asked. It reads what it can of anything else, and so finds 5 in `4 # 5`.
_FORMULA = re.compile(r"(?:[A-Za-z0-9+\-*/^_(){}\[\]|!.,'&=<> ]|\\[A-Za-z]+(?![A-Za-z])|\\\\)*", re.ASCII)
_DEGREES = re.compile(
    r"((?<![\d.])\d+(?:\.\d+)?|\\frac\{[^{}]*\}\{[^{}]*\}|\\[A-Za-z]+|[A-Za-z]|\([^()]*\)|\{[^{}]*\})"
    r"\^(?:\{\\circ\}|\\circ(?![A-Za-z])) ?"
)
_PRODUCT = re.compile(r"(?<![_^\d.A-Za-z])(\d+(?:\.\d+)?)\(")
_COMMANDS_NAMES = """
    frac sqrt binom dbinom tbinom cdot times div pi infty sin cos tan cot sec csc arcsin arccos arctan arccot arcsec
    arccsc sinh cosh
    tanh ln log exp sum prod int max min gcd lcm lfloor rfloor lceil rceil lvert rvert lVert rVert vert begin
    end alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta kappa lambda mu nu xi rho sigma tau
    phi varphi chi psi omega Gamma Delta Theta Lambda Xi Sigma Phi Psi Omega ell hbar le ge ne
    mathbf limits det operatorname
"""
_COMMANDS = frozenset(_COMMANDS_NAMES.split())
_NO_VALUE = {"dne": "does not exist", "none exists": "does not exist", "undefined": "does not exist"}


def near(gold: str, value: Fraction, answer: Fraction | float, tolerance: float) -> bool:
    """A tolerance is for golds that are decimals or integers, never for an exact fraction."""
    return "frac" not in gold and "/" not in gold and abs(Fraction(answer) - value) <= Fraction(tolerance) * abs(value)


class Values:
    """One comparison, with its budget and the formulas it has read."""

    def __init__(self, oracle: Oracle | None, tolerance: float, work: int) -> None:
        self.note = "different"
        self._oracle = oracle
        self._tolerance = tolerance
        self._arithmetic = Arithmetic(work)
        self._formulas: dict[str, Quotient | None] = {}
        self._malformed: set[str] = set()

    def _no(self, note: str) -> bool:
        self.note = note
        return False

    def _values(self, gold: str, answer: str) -> Decision:
        """Compare two values with their units."""
        if gold == answer:
            return True
        one, other = measure(gold), measure(answer)
        if one is None or other is None:
            return gold.replace(" ", "") == answer.replace(" ", "") or self._no("words that are no unit")
        if (one.doubtful or other.doubtful) and one.unit != other.unit:
            one = Measure(gold) if one.doubtful else one
            other = Measure(answer) if other.doubtful else other
        if one.unit and other.unit and one.unit != other.unit:
            return self._no(f"a different unit: {other.unit}, not {one.unit}")
        if (one.unit == "%") != (other.unit == "%"):
            percent, plain = (one, other) if one.unit == "%" else (other, one)
            return self._percent(percent.value, plain.value, gold_is_percent=percent is one)
        return self._formulas_equal(one.value, other.value)

    def _percent(self, percent: str, plain: str, gold_is_percent: bool) -> Decision:
        """50% is 0.5, and without its sign 50, unless that could be meant by 0.5%.

        A sign that the answer adds is read in one way: n% is n where the gold is larger than 1, else a hundredth of n.
        """
        hundredth = f"\\frac{{{percent}}}{{100}}"
        if not gold_is_percent:
            size = self._real(plain)
            return self._formulas_equal(plain, percent if size is not None and abs(size) > 1 else hundredth)
        decision = self._formulas_equal(hundredth, plain)
        value = number(percent)
        return decision if decision or value is None or abs(value) <= 1 else self._formulas_equal(percent, plain)

    def _formulas_equal(self, gold: str, answer: str) -> Decision:
        if gold == answer:
            return True
        if gold in INFINITIES or answer in INFINITIES:
            return gold.lstrip("+") == answer.lstrip("+") or self._no("only one is infinite")
        gold_number, answer_number = number(gold), number(answer)
        if gold_number is not None and answer_number is not None:
            close = self._tolerance and near(gold, gold_number, answer_number, self._tolerance)
            return gold_number == answer_number or bool(close) or self._no("a different number")
        one, other = self._formula(gold), self._formula(answer)
        if one is not None and other is not None:
            try:
                return self._quotients_equal(gold, answer, one, other)
            except TooHard:
                pass
        if answer in self._malformed or not admissible(_in_radians(answer)):
            return self._no("the answer cannot be read as mathematics")
        if gold in self._malformed or not admissible(_in_radians(gold)):
            return self._no("the gold answer cannot be read as mathematics; compared as text")
        return self._ask(gold, answer)

    def _quotients_equal(self, gold: str, answer: str, one: Quotient, other: Quotient) -> Decision:
        if self._arithmetic.equal(one, other):
            return True
        if self._tolerance and (value := number(gold)) is not None:
            real = real_value(self._arithmetic, other)
            if real is not None and near(gold, value, real, self._tolerance):
                return True
        different = (decisive(one) and decisive(other)) or clearly_different(self._arithmetic, one, other)
        if not different and free_of_variables(one) and free_of_variables(other):
            same = same_constant(self._arithmetic, one, other)
            if same:
                return True
            different = same is False
        if different:
            if _EXACT_DECIMAL.search(answer) and not _EXACT_DECIMAL.search(gold):
                return self._no("different; a decimal approximation is not the exact answer")
            return self._no("different")
        return self._ask(gold, answer)

    def _formula(self, text: str) -> Quotient | None:
        if text not in self._formulas:
            plain = number(text)
            try:
                self._formulas[text] = read_formula(text, self._arithmetic) if plain is None else rational(plain)
            except (Foreign, TooHard):
                self._formulas[text] = None
            except Unreadable:
                self._formulas[text] = None
                self._malformed.add(text)
        return self._formulas[text]

    def _real(self, text: str) -> float | None:
        """The value of a text as a real number, infinity included."""
        if text in INFINITIES:
            return float("-inf") if text.startswith("-") else float("inf")
        value = self._formula(measure_value(text))
        return None if value is None else real_value(self._arithmetic, value)

    def _ask(self, gold: str, answer: str) -> Decision:
        if self._oracle is None:
            return None
        # Math-Verify leaves out the sign of degrees, and adds 3 and 7 in `3(7)`.
        gold, answer = (_PRODUCT.sub(r"\1\\cdot(", _in_radians(text)) for text in (gold, answer))
        if r"\circ" in gold + answer:
            return self._no("degrees that cannot be read")
        return self._oracle(gold, answer) or self._no("different")

    @staticmethod
    def _all(decisions: Iterable[Decision]) -> Decision:
        unknown = False
        for decision in decisions:
            if decision is False:
                return False
            unknown |= decision is None
        return None if unknown else True

    @staticmethod
    def _any(decisions: Iterable[Decision]) -> Decision:
        unknown = False
        for decision in decisions:
            if decision:
                return True
            unknown |= decision is None
        return None if unknown else False


def measure_value(text: str) -> str:
    """The text of a value without its unit."""
    found = measure(text)
    return text if found is None or found.doubtful else found.value


def _in_radians(text: str) -> str:
    return _DEGREES.sub(r"(\1\\cdot\\frac{\\pi}{180})", text) if r"\circ" in text else text


def words(text: str) -> str:
    words = plain_words(flat(text))
    return _NO_VALUE.get(words, words)


def admissible(text: str) -> bool:
    """Whether Math-Verify may be asked about ``text``."""
    if _FORMULA.fullmatch(text) is None or ".." in text or text.count("|") % 2:
        return False
    if ("&" in text or r"\\" in text) and r"\begin" not in text:
        return False
    if re.search(r"[A-Za-z]{6,}", re.sub(r"\\[A-Za-z]+|matrix", "", text)):
        return False
    return all(command in _COMMANDS for command in re.findall(r"\\([A-Za-z]+)", text))


def decisive(quotient: Quotient) -> bool:
    return all(atom.startswith(_DECISIVE) for atom in quotient.atoms())


def free_of_variables(quotient: Quotient | None) -> bool:
    return quotient is None or not any(atom.startswith("v:") for atom in quotient.atoms())
