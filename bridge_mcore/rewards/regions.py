"""Are two intervals, unions of intervals or solved inequalities the same?"""

from __future__ import annotations

from collections.abc import Sequence

from bridge_mcore.rewards.conditions import as_region
from bridge_mcore.rewards.pieces import joined, overlap
from bridge_mcore.rewards.relations import same_label
from bridge_mcore.rewards.structure import Answer, Piece
from bridge_mcore.rewards.tokens import Unreadable
from bridge_mcore.rewards.values import Decision, Values


class Regions(Values):
    """The rules for subsets of the real line."""

    def _regions(self, gold: Answer, answer: Answer) -> Decision:
        if gold.label and answer.label and not same_label(gold.label, answer.label):
            return self._no(f"{answer.label} is given, not {gold.label}")
        try:
            one, other = (self._ordered(_united(side).pieces) for side in (gold, answer))
        except Unreadable:
            return self._no("one is an interval, the other is not")
        if len(one) != len(other):
            return self._no("another number of intervals")
        for left, right in zip(one, other, strict=True):
            if (left.closed_low, left.closed_high) != (right.closed_low, right.closed_high):
                return self._no("open where it should be closed, or the other way round")
        ends = [(a, b) for x, y in zip(one, other, strict=True) for a, b in ((x.low, y.low), (x.high, y.high))]
        return self._all(self._values(a, b) for a, b in ends)

    def _ordered(self, pieces: Sequence[Piece]) -> list[Piece]:
        """The pieces from left to right, those that touch joined; as they came, where an end has no number."""
        try:
            return joined(pieces)
        except Unreadable:
            return list(pieces)


def _united(answer: Answer) -> Answer:
    """Intervals one after another, as a union of them."""
    if answer.kind == "list" and not any(item.label for item in answer.items):
        pieces = tuple(piece for item in answer.items for piece in as_region(item).pieces)
        if overlap(pieces):
            raise Unreadable  # two answers, not two parts of one
        return Answer("region", answer.text, pieces=pieces)
    return as_region(answer)
