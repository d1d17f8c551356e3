"""Hostile answers: bounded time and memory each, a verdict that says what happened, and nobody else is slowed."""

from __future__ import annotations

import random
import resource
import time
from collections.abc import Iterator

import pytest

from bridge_mcore.rewards import MathVerifier
from bridge_mcore.rewards.boxed import answer_boxes
from bridge_mcore.rewards.exact import clean
from bridge_mcore.rewards.math import MAX_ANSWER
from bridge_mcore.rewards.same import decide
from tests.rewards.hostile import hostile_answers

CPU_SECONDS = 0.5
GOLDS = (r"\sqrt{17}", r"\frac{x^2+3}{7}", r"\sin 2y", r"(1,2,\sqrt{3})", "3,5,7,11", r"[0,\sqrt{2})", r"\text{east}")
HONEST = [("x+1", r"\boxed{1+x}"), ("5", r"\boxed{5.0}"), (r"\sin 2z", r"\boxed{2\sin z\cos z}"), ("7", r"\boxed{8}")]


@pytest.fixture(scope="module")
def verifier() -> Iterator[MathVerifier]:
    with MathVerifier(workers=2, cpu_seconds=CPU_SECONDS, memory_gib=1.0) as shared:
        shared.verify([(r"\sin 2t", r"\boxed{2\sin t\cos t}")])  # imports and grammar tables
        yield shared


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def test_there_are_enough_of_them(seed: int) -> None:
    assert len(hostile_answers(random.Random(seed))) >= 100


def test_hostile_answers_are_bounded_and_harm_nobody(verifier: MathVerifier, seed: int) -> None:
    rng = random.Random(seed)
    answers = hostile_answers(rng)
    batch = [(rng.choice(GOLDS), f"So $\\boxed{{{answer}}}$.") for answer in answers] + HONEST * 5
    rng.shuffle(batch)
    before, cpu = peak_mib(), time.process_time()
    verdicts = verifier.verify(batch)
    assert time.process_time() - cpu < 20 and peak_mib() - before < 300
    for (gold, response), verdict in zip(batch, verdicts, strict=True):
        if (gold, response) in HONEST:
            assert verdict.verdict == ("incorrect" if gold == "7" else "correct"), (gold, verdict)
        else:
            assert verdict.verdict != "correct" and verdict.reason, (gold, response[:80], verdict)
        if verdict.verdict == "timeout":
            assert f"{CPU_SECONDS:g} s of CPU time" in verdict.reason


@pytest.mark.parametrize("gold", GOLDS)
def test_the_part_in_this_process_takes_no_time(gold: str, seed: int) -> None:
    for answer in hostile_answers(random.Random(seed)):
        if len(answer) <= MAX_ANSWER:
            start = time.process_time()
            decide(clean(gold), clean(answer))
            assert time.process_time() - start < 1.0, (gold, answer[:80])


def test_hostile_golds_do_not_raise(verifier: MathVerifier, seed: int) -> None:
    rng = random.Random(seed)
    answers = rng.sample(hostile_answers(rng), 60)
    verdicts = verifier.verify([(answer, rf"\boxed{{{rng.choice(GOLDS)}}}") for answer in answers])
    assert all(verdict.verdict != "correct" for verdict in verdicts)


@pytest.mark.parametrize(
    "unit", ["\\boxed{", "\\boxed{1}, ", "\\boxed{1}", "\\boxed{{", "boxed", "}", "\\boxed{5} or ", "\\boxed\n", "x"]
)
def test_megabytes_of_response(unit: str) -> None:
    text = unit * (3_000_000 // len(unit))
    start = time.process_time()
    answer_boxes(text)
    assert answer_boxes(text + " so \\boxed{2}") == ["2"]
    assert time.process_time() - start < 10


def test_random_text_never_raises_and_is_never_right(verifier: MathVerifier, seed: int) -> None:
    rng = random.Random(seed)
    pieces = [*r"0123456789+-*/^_(){}[]|,;:=<>!.'%&$~ xyzABCief", r"\frac", r"\sqrt", r"\pi", r"\pm", r"\text{", "{"]
    pieces += [r"\cup", r"\in", r"\le", r"\infty", r"\{", r"\}", r"\circ", r"\%", r"\begin{pmatrix}", r"\end{pmatrix}"]
    pieces += [
        "}",
        r"\\",
        " or ",
        r"\sin",
        r"\log",
        r"\approx",
        r"\ne",
        r"\mathbb{R}",
        r"\emptyset",
        r"\left(",
        r"\right)",
    ]
    for _ in range(4000):
        answer = "".join(rng.choices(pieces, k=rng.randrange(1, 30)))
        decision, note = decide(clean(rng.choice(GOLDS)), clean(answer))
        assert decision is not True and (note or decision is None), answer
