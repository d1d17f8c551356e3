"""Answers that equal the gold and are none: echoes of the question, and what is still to be computed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bridge_mcore.rewards import MathVerifier
from bridge_mcore.rewards.protocol import Attempt
from bridge_mcore.rewards.shape import shape_of
from tests.rewards.verdicts import ASKED_RIGHT, ASKED_WRONG


@pytest.fixture(scope="module")
def verifiers() -> Iterator[dict[str, MathVerifier]]:
    with MathVerifier(1) as refuse, MathVerifier(1, unfinished="repeats") as repeats:
        yield {"refuse": refuse, "repeats": repeats}


def judged(verifier: MathVerifier, question: str, gold: str, answer: str) -> str:
    return verifier.judge([Attempt(gold=gold, response=f"\\boxed{{{answer}}}", prompt=question)])[0].verdict


#: Question, gold, answer: wrong with either setting.
ECHOES = [
    (r"Compute $\sum_{k=1}^{100}k$", "5050", r"\sum_{k=1}^{100}k"),
    (r"Compute $\prod_{k=1}^{5}k$", "120", r"\prod_{k=1}^{5}k"),
    (r"Evaluate $\int_0^1 2x\,dx$.", "1", r"\int_0^1 2x\,dx"),
    (r"Evaluate $2^{10}$.", "1024", "2^{10}"),
    (r"Evaluate $2^{10}$.", "1024", "(2)^{10}"),
    (r"Evaluate $2^{10}$.", "1024", r"2^{10}\cdot 1"),
    (r"What is $3+4$?", "7", "3+4+0"),
    (r"What is $3+4$?", "7", "4+3"),
    (r"Compute \binom{8}{4}.", "70", r"\binom{8}{4}"),
    (r"Compute \binom{8}{4}.", "70", r"\binom{8}{4}+0"),
    (r"What is $\sqrt{36}$?", "6", r"\sqrt{36}"),
    (r"Factor $x^2-1$.", "(x-1)(x+1)", "x^2-1"),
    (r"Factor $x^2-1$.", "(x-1)(x+1)", "-1+x^2"),
    (r"Factor $x^2-1$.", "(x-1)(x+1)", "x^2-2+1"),
    (r"Expand $(x-1)(x+1)$.", "x^2-1", "(x+1)(x-1)"),
    (r"Simplify $\frac{10}{20}$.", r"\frac{1}{2}", r"\frac{10}{20}"),
    (r"Simplify $\frac{10}{20}$.", r"\frac{1}{2}", "10/20"),
    (r"Simplify $\frac{x^2-1}{x-1}$.", "x+1", r"\frac{x^2-1}{x-1}"),
    (r"Write $\frac12$ as a decimal.", "0.5", r"\frac12"),
]
#: Wrong by default only.
UNFINISHED = [
    ("70", r"8\cdot 7\cdot 5/4"), ("7", "3+4+0"), ("1024", r"2^{9}\cdot 2"), ("5", r"\log_2 32"), ("120", "5!"),
    ("3", r"\lfloor \pi\rfloor"), ("6", "2(3)"),
    ("5", "10-5"), ("8", "|-8|"), ("5", r"x = 2+3"), (r"5\text{ cm}", r"(2+3)\text{ cm}"), ("3, 4", "1+2, 4"),
    ("(3,4)", r"(3, 2^2)"), ("5050", r"\sum_{k=1}^{100}k"),
    ("0.5", r"\sin 30^\circ"), ("1", r"\frac{\pi}{\pi}"), ("[0,4]", "[0,2^2]"),
]  # fmt: skip
#: Right with either: what is left is how the answer is written.
FINISHED = [
    ("70", "70"), ("1/2", r"\frac{1}{2}"), ("0.5", r"\frac12"), ("70", r"\frac{140}{2}"), ("1.5", r"1\frac12"),
    ("1500", r"1.5\times 10^{3}"), ("1e-5", "10^{-5}"), ("5", "x = 2+3 = 5"),
    ("5", "2+3 = 5"), (r"5\text{ cm}", r"5\text{ cm}"), ("50", r"50\%"), ("5000000", r"5\text{ million}"),
    (r"\frac13", r"0.\overline{3}"), ("1234", "1,234"), (r"90^\circ", "90"), ("-5", "-5.0"),
    (r"3\sqrt2", r"\sqrt{18}"), ("2^{1009}", r"2\cdot 2^{1008}"), ("x^2+x", "x(x+1)"), (r"2\pi", r"\pi\cdot 2"),
    ("5", r"\text{The answer is }5"), (r"(-\infty,2)", "x<2"), ("1, 2", "x=1 or x=2"),
]  # fmt: skip


@pytest.mark.parametrize(("question", "gold", "answer"), ECHOES)
def test_echoes_are_wrong(verifiers: dict[str, MathVerifier], question: str, gold: str, answer: str) -> None:
    assert judged(verifiers["refuse"], question, gold, answer) == "incorrect"
    assert judged(verifiers["repeats"], question, gold, answer) == "incorrect"
    assert judged(verifiers["refuse"], question, gold, gold) == "correct"
    assert judged(verifiers["refuse"], "", gold, answer) == "correct"  # equal it is


@pytest.mark.parametrize(("gold", "answer"), UNFINISHED)
def test_what_is_still_to_be_computed(verifiers: dict[str, MathVerifier], gold: str, answer: str) -> None:
    question = "How many are there?"
    assert judged(verifiers["refuse"], question, gold, answer) == "incorrect"
    assert judged(verifiers["repeats"], question, gold, answer) == "correct"


@pytest.mark.parametrize(("gold", "answer"), FINISHED)
def test_what_is_finished(verifiers: dict[str, MathVerifier], gold: str, answer: str) -> None:
    assert judged(verifiers["refuse"], "How many are there? Give your answer.", gold, answer) == "correct"


@pytest.mark.parametrize(("question", "gold", "answer"), ASKED_WRONG)
def test_disguised_echoes_are_wrong(verifiers: dict[str, MathVerifier], question: str, gold: str, answer: str) -> None:
    assert judged(verifiers["refuse"], question, gold, answer) == "incorrect"
    assert judged(verifiers["refuse"], "", gold, answer) == "correct"  # equal it is


@pytest.mark.parametrize(("question", "gold", "answer"), ASKED_RIGHT)
def test_what_was_worked_out_is_right(
    verifiers: dict[str, MathVerifier], question: str, gold: str, answer: str
) -> None:
    assert judged(verifiers["refuse"], question, gold, answer) == "correct"


def test_shapes_differ_by_more_than_a_trifle() -> None:
    same = ["x^2-1", "-1+x^2", "(x^2)-1", r"x^{2}-1\cdot 1", "x^2-1+0", r"\left(x^2-1\right)", "x^2+(-1)"]
    assert len({shape_of(text) for text in same}) == 1 and shape_of(same[0]) is not None
    assert len({shape_of(text) for text in ("x^2-1", "(x-1)(x+1)", "x^2+1", "2^{10}", "1024", "10/20", "1/2")}) == 7
    assert shape_of(r"\frac{10}{20}") == shape_of("10/20") and shape_of("(" * 200) is None and shape_of("") is None
