r"""Are two answers the same answer? The rules for every kind of answer; docs/rewards_math.md has them as a table.

Structure is always decided here. Only single formulas that the exact arithmetic cannot settle are put to an *oracle*:
in the trainer's process there is none, and the pair goes to a worker; there the oracle is Math-Verify.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from bridge_mcore.rewards.answers import read
from bridge_mcore.rewards.exact import canonical, number
from bridge_mcore.rewards.primes import TooHard
from bridge_mcore.rewards.ratios import Ratios
from bridge_mcore.rewards.regions import Regions
from bridge_mcore.rewards.relations import Relations, named
from bridge_mcore.rewards.structure import Answer, nesting
from bridge_mcore.rewards.terms import MAX_WORK
from bridge_mcore.rewards.tokens import Unreadable
from bridge_mcore.rewards.values import Decision, Oracle, near, words

#: Brackets in brackets of an answer. Those of MATH500's solutions reach 4.
MAX_NESTING = 40


def decide(
    gold: str, answer: str, oracle: Oracle | None = None, tolerance: float = 0.0, work: int = MAX_WORK
) -> tuple[Decision, str]:
    """Whether two :func:`~bridge_mcore.rewards.exact.clean` answers are the same, and in words why."""
    if gold == answer:
        return True, "identical"
    gold, answer = canonical(gold), canonical(answer)
    if gold == answer:
        return True, "identical but for spelling"
    gold_number = number(gold)
    if gold_number is not None and (answer_number := number(answer)) is not None:
        if gold_number == answer_number:
            return True, "equal numbers"
        if tolerance and near(gold, gold_number, answer_number, tolerance):
            return True, "equal numbers within the tolerance"
        return False, "a different number"
    comparison = Comparison(oracle, tolerance, work)
    return comparison.whole(gold, answer), comparison.note


class Comparison(Relations, Regions, Ratios):
    """One comparison, with its budget and the formulas it has read."""

    def whole(self, gold: str, answer: str) -> Decision:
        """Compare two canonical texts."""
        if nesting(answer) > MAX_NESTING:
            return self._no(f"brackets in brackets, more than {MAX_NESTING} deep")
        try:
            gold_read = read(gold)
        except (Unreadable, ValueError):
            return self._unread_gold(gold, answer)
        try:
            answer_read = read(answer)
        except (Unreadable, ValueError):
            return self._no("the answer cannot be read as one answer")
        try:
            decision = self.answers(gold_read, answer_read)
        except (Unreadable, TooHard, ArithmeticError, ValueError, RecursionError):
            return self._no("a part of it cannot be read")
        if decision:
            self.note = "equivalent"
        return decision

    def answers(self, gold: Answer, answer: Answer) -> Decision:
        """Compare two answers of any kind."""
        gold, answer = _expanded(gold), _expanded(answer)
        if "choice" in (gold.kind, answer.kind):
            return self._choices(gold, answer)
        if "relation" in (gold.kind, answer.kind):
            return self._relations(gold, answer)
        if "words" in (gold.kind, answer.kind):
            return words(gold.text) == words(answer.text) or self._no("other words")
        if "region" in (gold.kind, answer.kind):
            return self._regions(gold, answer)
        if gold.kind in _COLLECTIONS or answer.kind in _COLLECTIONS:
            return self._collections(gold, answer)
        if gold.kind == answer.kind == "matrix":
            return self._matrices(gold, answer)
        if gold.kind == answer.kind == "numeral":
            return (gold.text, gold.label) == (answer.text, answer.label) or self._no("another number, or another base")
        if {gold.kind, answer.kind} == {"numeral", "value"}:
            return self._bare_binary(*((gold, answer) if gold.kind == "numeral" else (answer, gold)))
        if "time" in (gold.kind, answer.kind):
            return self._times(gold, answer)
        if "ratio" in (gold.kind, answer.kind):
            return self._ratios(gold, answer)
        if gold.kind == answer.kind == "value":
            return self._values(gold.text, answer.text)
        return self._no(f"a {answer.kind}, not a {gold.kind}")

    def _unread_gold(self, gold: str, answer: str) -> bool:
        return words(gold) == words(answer) or self._no("the gold answer cannot be read; compared as text")

    def _choices(self, gold: Answer, answer: Answer) -> Decision:
        if gold.kind == answer.kind:
            return gold.label == answer.label or self._no("another choice")
        if gold.kind == "choice":
            return self.answers(read(gold.text or gold.label, 1), answer)
        return self.answers(gold, read(answer.text or answer.label, 1))

    def _bare_binary(self, numeral: Answer, bare: Answer) -> bool:
        """The base may be left out or added where the digits show it: four or more, all of them 0 and 1."""
        if numeral.label == "2" and bare.text.lstrip("0") == numeral.text and _BINARY.fullmatch(bare.text):
            return True
        return self._no("a base is given on one side alone")

    # Lists, sets, tuples, matrices

    def _collections(self, gold: Answer, answer: Answer) -> Decision:
        if gold.kind not in _COLLECTIONS or answer.kind not in _COLLECTIONS:
            return self._one_and_many(gold, answer)
        kinds = {gold.kind, answer.kind}
        if kinds == {"set", "tuple"}:
            return self._no("a set and a tuple")
        if "set" in kinds:
            return self._all((self._covered(gold.items, answer.items), self._covered(answer.items, gold.items, True)))
        if len(gold.items) != len(answer.items):
            return self._no(f"{len(answer.items)} answers, not {len(gold.items)}")
        if kinds == {"list"} and not _order_is_all(gold, answer):
            return self._matched(gold.items, answer.items)
        if kinds != {"list"} and not (_labels_in_order(gold) and _labels_in_order(answer)):
            return self._no("the values are named in another order")
        return self._all(self.answers(one, other) for one, other in zip(gold.items, answer.items, strict=True))

    def _one_and_many(self, gold: Answer, answer: Answer) -> Decision:
        one, many = (answer, gold) if gold.kind in _COLLECTIONS else (gold, answer)
        if many.kind == "set" and len(many.items) == 1:
            return self.answers(*((many.items[0], one) if gold is many else (one, many.items[0])))
        if many.kind == "list" and one.kind == "value" and re.fullmatch(r"\d{1,3}(,\d{3})+", one.text):
            again = read(one.text, 1, thousands=False)  # `100,200`, and the other says `100, 200`
            return [item.text for item in again.items] == [item.text for item in many.items] or self._no("a list")
        if one is gold:
            # `1/2 or 0.5` says one thing twice; anything else is a hedge.
            if many.kind == "list" and many.items and self._all(self.answers(gold, item) for item in many.items):
                return True
            return self._no(f"{len(answer.items)} answers where one is asked")
        return self._no(f"one answer where {len(gold.items)} are asked")

    def _covered(self, items: Sequence[Answer], by: Sequence[Answer], turned: bool = False) -> Decision:
        """Every one of ``items`` is among ``by``."""
        return self._all(
            self._any(self.answers(*((other, item) if turned else (item, other))) for other in by) for item in items
        )

    def _matched(self, gold: Sequence[Answer], answer: Sequence[Answer]) -> Decision:
        """The same items in any order, each as often."""
        left, unknown = list(answer), False
        for item in gold:
            decisions: list[Decision] = []
            for other in left:
                decisions.append(self.answers(item, other))
                if decisions[-1]:
                    break
            if decisions and decisions[-1]:
                left.pop(len(decisions) - 1)
            elif None in decisions:
                unknown = True
            else:
                return False
        return None if unknown else True

    def _matrices(self, gold: Answer, answer: Answer) -> Decision:
        shapes = [[len(row.items) for row in one.items] for one in (gold, answer)]
        if shapes[0] != shapes[1] or gold.label != answer.label:
            return self._no("a matrix of another shape")
        rows = zip(gold.items, answer.items, strict=True)
        return self._all(self.answers(a, b) for x, y in rows for a, b in zip(x.items, y.items, strict=True))


_BINARY = re.compile(r"[01]{4,}")
_COLLECTIONS = frozenset(["list", "set", "tuple"])


def _expanded(answer: Answer) -> Answer:
    r"""The answer with every ``\pm`` written out as two."""
    if r"\pm" not in answer.text and r"\mp" not in answer.text:
        return answer
    if answer.kind in ("list", "set"):
        both = [(item, _expanded(item)) for item in answer.items]
        parts = [way.items if item.kind == "value" and way.items else (way,) for item, way in both]
        items = tuple(part for several in parts for part in several)
        return Answer(answer.kind, answer.text.replace(r"\pm", "").replace(r"\mp", ""), items, label=answer.label)
    if (
        answer.kind != "value"
        or answer.text.count(r"\pm") > 1
        or (r"\pm" not in answer.text and answer.text.count(r"\mp") > 1)
    ):
        return answer  # whether the signs belong together is not said
    ways = []
    for upper, lower in (("+", "-"), ("-", "+")):
        text = re.sub(r"\\pm(?![A-Za-z]) ?", upper, answer.text)
        text = re.sub(r"\\mp(?![A-Za-z]) ?", lower, text)
        ways.append(Answer("value", text.removeprefix("+")))
    return Answer("list", answer.text, tuple(ways))


def _order_is_all(gold: Answer, answer: Answer) -> bool:
    """``AB=9, CD=4`` names its values; where the answer does not, their order says which is which."""
    labels = named(gold)
    return len(gold.items) == len(labels) == len(set(labels)) and not named(answer)


def _labels_in_order(answer: Answer) -> bool:
    labels = named(answer)
    return labels == sorted(set(labels), key=lambda label: label.lstrip("\\"))
