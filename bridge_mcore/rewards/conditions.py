"""Several conditions on one number as one set of numbers."""

from __future__ import annotations

from bridge_mcore.rewards.names import is_name
from bridge_mcore.rewards.pieces import REALS, complement, intersection, joined, overlap, point
from bridge_mcore.rewards.structure import Answer, Piece
from bridge_mcore.rewards.tokens import Unreadable


def as_condition(text: str, items: tuple[Answer, ...], separators: set[str]) -> Answer | None:
    r"""``x<1 or x>2`` and ``-2<x<9, x \ne 5`` and ``x \ne 1, 6`` as one region.

    Conditions that are joined by a comma hold together; where they cannot, as in ``x<1, x>2``, each is a case.
    """
    first = items[0]
    if len(items) > 1 and not first.label and first.kind in ("region", "tuple") and items[1].kind == "region":
        items = (_labelled(first, items[1].label), *items[1:])  # `(-2,9), x \\ne 5`
        first = items[0]
    if any(item.kind == "region" for item in items):
        items = tuple(_case(item) for item in items)
    if first.kind == "region" and first.label and all(item.kind == "value" for item in items[1:]):
        if r"\ne" not in first.text or len(first.pieces) != 2:
            return None
        others = intersection(first.pieces, complement([point(item.text) for item in items[1:]]))
        return Answer("region", text, pieces=tuple(others), label=first.label)
    labels = {item.label for item in items}
    if len(labels) != 1 or any(item.kind != "region" for item in items):
        return None
    label = labels.pop()
    every = tuple(piece for item in items for piece in item.pieces)
    if separators <= {"or", r"\lor", r"\vee"}:
        if overlap(every):
            raise Unreadable
        return Answer("region", text, pieces=every, label=label)
    if not label or separators & {"or", r"\lor", r"\vee"}:
        return None
    both: list[Piece] = [REALS]
    for item in items:
        both = intersection(both, item.pieces)
    if not both and separators <= {",", ";"}:
        return Answer("region", text, pieces=tuple(joined(every)), label=label)
    return Answer("region", text, pieces=tuple(both), label=label) if both else None


def _labelled(interval: Answer, label: str) -> Answer:
    """An interval as a condition, if another condition with it has a name; else as it is."""
    if not label:
        return interval
    return Answer("region", interval.text, pieces=as_region(interval).pieces, label=label)


def _case(item: Answer) -> Answer:
    """``x=2`` among conditions is the one point 2."""
    if item.kind == "relation" and item.signs == ("=",) and is_name(item.items[0].text):
        return Answer("region", item.text, pieces=(point(item.items[1].text),), label=item.items[0].text)
    return item


def pieces_of(item: Answer) -> list[Piece]:
    return [point(one.text) for one in item.items] if item.kind == "set" else list(as_region(item).pieces)


def as_region(answer: Answer) -> Answer:
    """The region that an answer is or, for a pair in round brackets, may be.

    :raises Unreadable: it is none.
    """
    if answer.kind == "region":
        return answer
    if answer.kind == "tuple" and len(answer.items) == 2 and answer.text.startswith("("):
        low, high = answer.items
        return Answer("region", answer.text, pieces=(Piece(low.text, high.text, False, False),))
    raise Unreadable
