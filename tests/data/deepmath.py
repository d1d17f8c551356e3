"""Rows with the schema of DeepMath-103K, made from given problems: their questions respelt, reworded or made others."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from typing import Any, Literal, get_args

Kind = Literal["exact", "normalised", "fuzzy", "other numbers", "wrong box"]
KINDS: tuple[Kind, ...] = get_args(Kind)
_NUMBER = re.compile(r"\d+")


def respelt(question: str, rng: random.Random) -> str:
    """The same problem in another LaTeX: only what the normal form ignores changes."""
    text = question.replace("\\dfrac", "\\frac") if rng.random() < 0.5 else question.replace("\\frac", "\\dfrac")
    text = re.sub(r"\$([^$]+)\$", r"\\(\1\\)", text) if rng.random() < 0.5 else text.replace("$", " $ ")
    text = re.sub(r" +", "  ", text)
    return text[:1].swapcase() + text[1:] + rng.choice(["", "\n", " ", "\\,"]) if text[:1] != "\\" else text + " \n"


def reworded(question: str, rng: random.Random) -> str:
    """The same problem with another beginning, as people write on forums."""
    front = rng.choice(["Please show me how to ", "Could you help: ", "Can you tell me this? ", "Calculate this: "])
    return front + question


def renumbered(question: str, rng: random.Random) -> str | None:
    """Another problem: one number is another; None where there is no number."""
    found = list(_NUMBER.finditer(question))
    if not found:
        return None
    one = rng.choice(found)
    return question[: one.start()] + str(int(one[0]) + rng.randint(1, 9)) + question[one.end() :]


def trace_text(answer: str, rng: random.Random, sentences: int) -> str:
    """A trace of the published form: thoughts, the end mark, a solution that ends in a box."""
    thoughts = " ".join(f"Let me check step {rng.randrange(10**6)} again." for _ in range(sentences))
    return f"Okay, so I need to solve this.\n{thoughts}\n</think>\n\n**Final Answer**\n\\boxed{{{answer}}}"


def row(question: str, answer: str, rng: random.Random, right: bool = True, sentences: int = 3) -> dict[str, Any]:
    """One row; wrong ones have three wrong boxes, of right ones sometimes only a later trace is right."""
    first = rng.choice([1, 1, 2]) if right else 4
    boxes = [answer if number >= first else str(rng.randint(10**7, 10**8)) for number in (1, 2, 3)]
    solutions = {f"r1_solution_{i}": trace_text(box, rng, sentences) for i, box in enumerate(boxes, start=1)}
    difficulty = rng.choice([-1.0, 0.0, 5.0, 6.5, 8.0])
    return {"question": question, "final_answer": answer, "difficulty": difficulty, "topic": "Algebra", **solutions}


def rows(
    problems: Sequence[tuple[str, str]], rng: random.Random, sentences: int = 3
) -> Iterator[tuple[Kind, int, dict[str, Any]]]:
    """(kind, number of the problem, row) for every problem, each kind in turn."""
    for number, (question, answer) in enumerate(problems):
        kind: Kind = KINDS[number % len(KINDS)]
        right, text = True, question
        if kind == "normalised":
            text = respelt(question, rng)
        elif kind == "fuzzy":
            text = reworded(question, rng)
        elif kind == "other numbers":
            text = renumbered(question, rng) or f"{question} And what if n = {rng.randint(2, 99)}?"
        elif kind == "wrong box":
            right = False
        yield kind, number, row(text, answer, rng, right, sentences)
