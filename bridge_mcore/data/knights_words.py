"""Statements of Knights and Knaves: what they mean and how they are said."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

#: ("is", person, knight?), ("not", statement), or ("and" | "or" | "if" | "iff", statement, statement).
Statement = tuple[Any, ...]

_NAMES = """
Alice Bob Carol David Emma Frank Grace Henry Iris Jack Kate Liam Mia Noah Olivia Peter Quinn Rose Sam Tara Uma Victor
Wendy Xavier Yara Zoe
"""
#: People of the puzzles.
NAMES = tuple(_NAMES.split())


def evaluate(statement: Statement, truth: Sequence[bool]) -> bool:
    """Whether it is true, if ``truth`` says who is a knight."""
    match statement:
        case ("is", person, knight):
            return truth[person] == knight
        case ("not", inner):
            return not evaluate(inner, truth)
        case ("and", left, right):
            return evaluate(left, truth) and evaluate(right, truth)
        case ("or", left, right):
            return evaluate(left, truth) or evaluate(right, truth)
        case ("if", left, right):
            return not evaluate(left, truth) or evaluate(right, truth)
        case ("iff", left, right):
            return evaluate(left, truth) == evaluate(right, truth)
    raise ValueError(f"no statement: {statement}")


def mentioned(statement: Statement) -> set[int]:
    """Who it is about."""
    if statement[0] == "is":
        return {statement[1]}
    return set().union(*(mentioned(inner) for inner in statement[1:]))


def sentence(statement: Statement, names: Sequence[str], speaker: int) -> str:
    """It in words, as the speaker says it."""
    text = _clause(statement, names, speaker)
    return text[0].upper() + text[1:] + "."


def _clause(statement: Statement, names: Sequence[str], speaker: int) -> str:
    match statement:
        case ("is", person, knight):
            subject = "I am" if person == speaker else f"{names[person]} is"
            return f"{subject} a {kind(knight)}"
        case ("not", inner):
            return f"it is not true that {_clause(inner, names, speaker)}"
        case (connective, left, right):
            first, second = _clause(left, names, speaker), _clause(right, names, speaker)
            return {
                "and": f"{first} and {second}",
                "or": f"{first} or {second}",
                "if": f"if {first}, then {second}",
                "iff": f"{first} if and only if {second}",
            }[connective]
    raise ValueError(f"no statement: {statement}")


def kind(knight: bool) -> str:
    """`knight` or `knave`."""
    return "knight" if knight else "knave"


def assignment_text(names: Sequence[str], truth: Sequence[bool]) -> str:
    """`Alice is a knight, Bob is a knave`."""
    return ", ".join(f"{name} is a {kind(knight)}" for name, knight in zip(names, truth, strict=True))
