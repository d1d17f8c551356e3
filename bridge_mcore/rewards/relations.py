"""Are two equations, inequalities or labelled values the same?"""

from __future__ import annotations

import re
from fractions import Fraction

from bridge_mcore.rewards.answers import read
from bridge_mcore.rewards.names import is_matrix_name, is_name
from bridge_mcore.rewards.notation import PLAIN_WORDS
from bridge_mcore.rewards.primes import TooHard
from bridge_mcore.rewards.structure import Answer, flat
from bridge_mcore.rewards.terms import Quotient, atom, rational
from bridge_mcore.rewards.tokens import Unreadable
from bridge_mcore.rewards.values import Decision, Values, decisive, free_of_variables, measure_value


class Relations(Values):
    """The rules for what has a sign of relation."""

    def answers(self, gold: Answer, answer: Answer) -> Decision:
        """Compare two answers of any kind."""
        raise NotImplementedError

    def _relations(self, gold: Answer, answer: Answer) -> Decision:
        if answer.kind == "relation" and not self._approximations_fit(answer):
            return self._no("an approximation that does not fit")
        gold, answer = _matrix_of(gold), _matrix_of(answer)
        if "relation" not in (gold.kind, answer.kind):
            return self.answers(gold, answer)
        if renamed := _same_variables(gold, answer):
            answer = renamed
        gold_side, answer_side = labelled(gold), labelled(answer)
        if gold_side is None and answer_side is None:
            return self._statements(gold, answer)
        if gold_side is None:
            values = chain(gold)
            if values and all(self._is_constant(value) for value in values):
                return self.answers(values[0], answer)
            # `2x - y = 3`, and the answer is y = 2x - 3
            return self._statements(gold, answer) if answer.kind == "relation" else self._no("no equation")
        if answer_side is None:
            if gold.kind == "relation":
                return self._statements(gold, answer)
            values = chain(answer)
            if values is None:
                return self._no("an equation or inequality, not a value")
            return self._all(self.answers(gold, value) for value in values)
        (gold_label, gold_values), (answer_label, answer_values) = gold_side, answer_side
        if gold.kind == "words" and answer_label.startswith(r"\text"):
            return self._no("two answers in words")
        if gold_label and answer_label and not same_label(gold_label, answer_label):
            if len(gold.items) == len(answer.items) == 2:
                return self._statements(gold, answer)
            return self._no(f"{answer_label} is given, not {gold_label}")
        # All members of a chain must agree, so that `1 = 2 = 5` is not 1, 2 and 5 at once.
        return self._all(self.answers(gold_values[0], value) for value in answer_values)

    def _is_constant(self, value: Answer) -> bool:
        formula = self._formula(measure_value(value.text))
        return formula is not None and free_of_variables(formula)

    def _statements(self, gold: Answer, answer: Answer) -> Decision:
        """Equations up to a factor; inequalities up to a positive one."""
        if gold.kind != "relation" or answer.kind != "relation" or len(gold.items) != len(answer.items):
            return self._no("not the same kind of statement")
        if len(gold.items) != 2:
            if gold.signs != answer.signs:
                return self._no("not the same signs")
            pairs = zip(gold.items, answer.items, strict=True)
            return self._all(self.answers(one, other) for one, other in pairs)
        gold_sign, answer_sign = gold.signs[0], answer.signs[0]
        turned = {"<": ">", r"\le": r"\ge"}
        gold_down, answer_down = (turned.get(sign, sign) for sign in (gold_sign, answer_sign))
        if gold_down != answer_down:
            return self._no("not the same sign of relation")
        sides = [self._difference(one, sign in turned) for one, sign in ((gold, gold_sign), (answer, answer_sign))]
        if sides[0] is None or sides[1] is None:
            return self._text_statement(gold, answer)
        try:
            one, other = sides if gold_down != "=" else [self._cleared(side) for side in sides if side is not None]
            factor = None if one is None or other is None else self._arithmetic.proportional(one, other)
        except TooHard:
            return self._text_statement(gold, answer)
        if factor is not None:
            return factor > 0 or gold_down in ("=", r"\ne") or self._no("the inequality points the other way")
        plain = all(side is not None and decisive(side) and list(side.bottom) == [()] for side in sides)
        if plain and not free_of_variables(sides[0]):
            return self._no("another equation")
        return self._text_statement(gold, answer)

    def _cleared(self, side: Quotient) -> Quotient:
        """``side`` without its denominators: y = 1/x is xy = 1."""
        lowest: dict[str, Fraction] = {}
        for monomial in side.top:
            for name, power in monomial:
                if name[0] == "v":
                    lowest[name] = min(lowest.get(name, Fraction(0)), power)
        whole = Quotient(side.top, rational(1).bottom)
        for name, power in lowest.items():
            whole = self._arithmetic.multiply(whole, atom(name, -power)) if power else whole
        return whole

    def _difference(self, relation: Answer, turned: bool) -> Quotient | None:
        left, right = (self._formula(item.text) for item in relation.items)
        if left is None or right is None:
            return None
        try:
            return self._arithmetic.subtract(right, left) if turned else self._arithmetic.subtract(left, right)
        except TooHard:
            return None

    def _text_statement(self, gold: Answer, answer: Answer) -> Decision:
        """Side by side; Math-Verify is not asked about whole statements, of which it drops one side."""
        sides = [tuple(item.text for item in one.items) for one in (gold, answer)]
        if sides[0] == sides[1][::-1] and gold.signs == answer.signs == ("=",):
            return True
        if gold.signs != answer.signs:
            return self._no("another statement")
        return self._all(self.answers(one, other) for one, other in zip(gold.items, answer.items, strict=True))

    def _approximations_fit(self, answer: Answer) -> bool:
        """What stands after an \\approx is near what stands before it; else two answers are given."""
        for left, right, sign in zip(answer.items, answer.items[1:], answer.signs, strict=False):
            if sign != r"\approx":
                continue
            if is_name(left.text):
                if right.kind == "value" and not self._is_constant(right):
                    return False  # `f(x) \approx 2x`
            else:
                one, other = self._real(left.text), self._real(right.text)
                if one is None or other is None or not abs(one - other) <= 0.01 * abs(one):
                    return False
        return True


def _matrix_of(answer: Answer) -> Answer:
    r"""The matrix of ``A = \begin{pmatrix}...``, and of ``A^{-1} = ...``, whose name is no factor."""
    if answer.kind != "relation" or set(answer.signs) != {"="} or answer.items[-1].kind != "matrix":
        return answer
    return answer.items[-1] if all(is_matrix_name(item.text) for item in answer.items[:-1]) else answer


_FUNCTION = re.compile(r"(?P<name>[A-Za-z](?:_(?:\{\w+\}|\w))?)\((?P<variables>[A-Za-z](?:,[A-Za-z])*)\)")
_LETTERS = re.compile(r"\\[A-Za-z]+|[A-Za-z]+")


def _same_variables(gold: Answer, answer: Answer) -> Answer | None:
    """``f(t) = 2t`` with the variables of ``f(x) = 2x``; None where the two do not differ in that way."""
    if gold.kind != "relation" or answer.kind != "relation":
        return None
    heads = [_FUNCTION.fullmatch(one.items[0].text) for one in (gold, answer)]
    if heads[0] is None or heads[1] is None or heads[0]["name"] != heads[1]["name"]:
        return None
    old, new = (head["variables"].split(",") for head in (heads[1], heads[0]) if head)
    if old == new or len(old) != len(new) or len(set(old)) != len(old) or len(set(new)) != len(new):
        return None
    names = dict(zip(old, new, strict=True))
    letters = set("".join(word for word in _LETTERS.findall(answer.text) if not word.startswith("\\")))
    if letters & set(new) - set(old):
        return None  # f(t) = xt depends on x in another way

    def renamed(found: re.Match[str]) -> str:
        word = found[0]
        if word.startswith("\\") or word in PLAIN_WORDS:
            return word
        return "".join(names.get(letter, letter) for letter in word)

    try:
        return read(_LETTERS.sub(renamed, answer.text))
    except Unreadable:
        return None


def labelled(answer: Answer) -> tuple[str, tuple[Answer, ...]] | None:
    """(label, values) of ``x = 5``, ``S = 2 + 3 = 5``, and ("", itself) of what is no relation; None of an equation."""
    if answer.kind != "relation":
        return "", (answer,)
    if any(sign not in ("=", r"\approx") for sign in answer.signs):
        return None
    items, signs = answer.items, answer.signs
    if not is_name(items[0].text):
        if len(items) == 2 and is_name(items[1].text):
            return items[1].text, (items[0],)
        return None
    values, rest = items[1:], signs[1:]
    # Of an exact value and its approximation the exact one counts.
    exact = next((i for i, sign in enumerate(rest) if sign == r"\approx"), len(rest))
    return items[0].text, values[: exact + 1]


def chain(answer: Answer) -> tuple[Answer, ...] | None:
    """The members of ``2 + 3 = 5`` or ``\\frac23 \\approx 0.67`` that must all be the answer."""
    if any(sign not in ("=", r"\approx") for sign in answer.signs):
        return None
    exact = next((i for i, sign in enumerate(answer.signs) if sign == r"\approx"), len(answer.signs))
    return answer.items[: exact + 1]


def same_label(one: str, other: str) -> bool:
    one, other = (flat(label).replace(" ", "").replace("{", "").replace("}", "") for label in (one, other))
    if one == other:
        return True
    # y = 2x and f(x) = 2x say the same
    return {one[:1], other[:1]} == {"y", "f"} and {one, other} <= {"y", "f(x)"}


def named(answer: Answer) -> list[str]:
    sides = [labelled(item) for item in answer.items if item.kind == "relation"]
    return [side[0] for side in sides if side is not None and side[0]]
