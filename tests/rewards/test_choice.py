"""Letters: every common way of writing one, and every way of not choosing."""

from __future__ import annotations

import pytest

from bridge_mcore.rewards.choice import ChoiceReward, read_letter
from bridge_mcore.rewards.extract import final_answer
from bridge_mcore.rewards.protocol import Attempt


@pytest.mark.parametrize(
    "answer",
    [
        "C", "c", "(C)", "[C]", "C.", "C)", "C:", " C ", r"\text{C}", r"\textbf{(C)}", r"\mathrm{C}", r"\text{(C) 5 m}",
        "C) 5 m", "(C) 5 m", "C. 5 m", "C: the third", "C - the third", "option C", "Option (C)", "Answer: C",
        "The answer is C", "the correct option is (C).", "choice C", "letter C", "$C$", r"\(C\)", "**C**",
        "C) vitamins A and C", "C) A and B",
        "C) a or b", "C. because D is wrong", r"\boxed{C}", "C) I or II", "Answer = C", r"\text{Option C}",
        "C)  A + B → D", "C) $x = 3$, $y = 4$",
    ],
)  # fmt: skip
def test_read_as_c(answer: str) -> None:
    answer = final_answer(answer) or answer
    assert read_letter(answer) == ("C", "")


@pytest.mark.parametrize(
    "answer",
    [
        "A and C", "A, C", "A or C", "AC", "ABCD", "C or D", "C) 5 m or D) 6 m", "C) 5 m or D", "(A), (C)", "A / C",
        "Both A and C", "C, D", "C) and D", "(C) and D", "C. D", "(A) (C)", "c or d", "A C", "(C) or (D)", "C & D",
        "", "5 m", "none", "Cat", "C is not right", "not C", "I think C", "?", "C?", "C2", "ΑΒ",
        "С",  # Cyrillic
        "answer", "the answer", "A" * 500, "\\text{}",
    ],
)  # fmt: skip
def test_not_read_as_any(answer: str) -> None:
    letter, why = read_letter(answer)
    assert letter is None and why


@pytest.mark.parametrize(
    ("gold", "response", "verdict", "reason"),
    [
        ("C", r"so \boxed{C}", "correct", "chose C"),
        ("c", r"so \boxed{C}", "correct", "chose C"),
        ("(C)", "<answer>C) 5</answer>", "correct", "chose C"),
        ("C", r"\boxed{A} no, \boxed{C}", "correct", "chose C"),
        ("C", r"\boxed{C} no, \boxed{A}", "incorrect", "chose A"),
        ("C/4", r"\boxed{E}", "incorrect", "E is not among the 4 choices"),
        ("C", "the answer is C", "incorrect", "no \\boxed{} answer"),
        ("C", r"\boxed{A or C}", "incorrect", "several letters: A or C"),
        ("C", r"\boxed{5}", "incorrect", "no letter: 5"),
        ("C", r"\boxed{%s}" % ("C " * 2000), "incorrect", "an answer of 3999 characters"),
        ("E/4", r"\boxed{E}", "error", "the gold answer E is not among its 4 choices"),
        ("5 m", r"\boxed{E}", "error", "the gold answer '5 m' is no letter"),
        ("", r"\boxed{E}", "error", "the gold answer '' is no letter"),
    ],
)  # fmt: skip
def test_verdicts(gold: str, response: str, verdict: str, reason: str) -> None:
    reward = ChoiceReward()
    (judged,) = reward.judge([Attempt(gold, response)])
    assert judged.verdict == verdict and judged.reason.startswith(reason)
    assert reward.counts == {verdict: 1}
    reward.close()


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"\boxed{1}", "1"),
        ("<answer> 2 </answer>", "2"),
        (r"\boxed{1} <answer>2</answer>", "2"),
        (r"<answer>2</answer> \boxed{1}", "1"),
        (r"<answer>so \boxed{3}</answer>", "3"),
        ("<answer>1</answer><ANSWER>2\n3</ANSWER>", "2\n3"),
        ("<answer>1<answer>2</answer>", "2"),
        ("<answer>1", None),
        ("<answer>" * 20_000, None),
        ("1", None),
    ],
)
def test_final_answer(text: str, answer: str | None) -> None:
    assert final_answer(text) == answer
