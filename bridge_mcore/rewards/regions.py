"""Are two intervals, unions of intervals or solved inequalities the same?"""

from __future__ import annotations

from collections.abc import Sequence

from bridge_mcore.rewards.answers import as_region
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
            one, other = self._ordered(as_region(gold).pieces), self._ordered(as_region(answer).pieces)
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
        ends = [[self._real(end) for end in (piece.low, piece.high)] for piece in pieces]
        if any(low is None or high is None for low, high in ends):
            return list(pieces)
        done: list[tuple[Piece, float, float]] = []
        for i in sorted(range(len(pieces)), key=lambda i: (ends[i][0], ends[i][1])):  # type: ignore[arg-type, return-value]
            piece, (low, high) = pieces[i], ends[i]
            assert low is not None and high is not None
            if done:
                before, before_low, before_high = done[-1]
                touch = abs(low - before_high) < 1e-9 if abs(low) != float("inf") else low == before_high
                if (low < before_high and not touch) or (touch and (piece.closed_low or before.closed_high)):
                    if high > before_high:
                        joined = Piece(before.low, piece.high, before.closed_low, piece.closed_high)
                        done[-1] = (joined, before_low, high)
                    continue
            done.append((piece, low, high))
        return [piece for piece, _, _ in done]
