"""Multiple-choice rows: GPQA's columns and the common forms of question, choices and answer."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from bridge_mcore.data.choice_formats import gpqa, read_choice_row, with_options
from bridge_mcore.errors import DataError
from bridge_mcore.rewards.choice import ChoiceReward
from bridge_mcore.rewards.protocol import Attempt


def row(question: str = "How far?") -> dict:
    wrong = {f"Incorrect Answer {i}": f"{i} m" for i in (1, 2, 3)}
    return {"Record ID": "rec1", "Question": question, "Correct Answer": " 5 m\n", **wrong, "Explanation": "…"}


def test_gpqa() -> None:
    prompt, gold = gpqa(row())
    assert re.search(rf"^{gold}\) 5 m$", prompt, re.MULTILINE) and prompt.startswith("How far?\n\nA) ")
    assert (prompt, gold) == gpqa(dict(reversed(row().items())))
    assert sorted(re.findall(r"^[A-D]\) (.*)$", prompt, re.MULTILINE)) == ["1 m", "2 m", "3 m", "5 m"]
    (verdict,) = ChoiceReward().judge([Attempt(gold, f"\\boxed{{{gold}) 5 m}}")])
    assert verdict.verdict == "correct"


def test_right_answers_are_everywhere_alike() -> None:
    """Chi-square of 3 degrees of freedom below 30 (p = 1e-6), of fixed questions: it never fails by chance."""
    letters = Counter(gpqa(row(f"How far is {i}?"))[1] for i in range(2000))
    assert sum((letters[letter] - 500) ** 2 / 500 for letter in "ABCD") < 30


@pytest.mark.parametrize(
    ("keys", "gold"),
    [
        ({"choices": ["1", "2", "4"], "answer": 2}, "C"),
        ({"choices": ["1", "2", "4"], "answer": "C"}, "C"),
        ({"options": ["1", "2", "4"], "answer": "c"}, "C"),
        ({"options": ["1", "2", "4"], "answer_index": 0}, "A"),
        ({"options": ["one", "two"], "answer": "two"}, "B"),
        ({"options": ["1", "2"], "answer": "2"}, "B"),  # a text before an index
        ({"options": {"A": "x", "B": "y"}, "answer_idx": "B"}, "B"),
        ({"choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answerKey": "2"}, "B"),
        ({"endings": ["x", "y"], "label": "1"}, "B"),
    ],
)
def test_options(keys: dict, gold: str) -> None:
    prompt, letter = with_options({"question": "Which?", **keys})
    assert letter == gold and "Which?\n\nA) " in prompt and "\nB) " in prompt
    assert read_choice_row({"question": "Which?", **keys}) == (prompt, letter)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"choices": ["1", "2"], "answer": 2}, "must be an index from 0 to 1, one of the letters A, B"),
        ({"choices": ["1", "2"], "answer": True}, "must be an index"),
        ({"choices": ["1", "2"]}, "no column answer"),
        ({"answer": "A"}, "no column choices, options"),
        ({"choices": ["1"], "answer": 0}, "1 choices; there must be 2 to 26"),
        ({"choices": ["1", "1"], "answer": 0}, "two of its choices are the same"),
        ({"choices": "1, 2", "answer": 0}, "must be a list or a mapping"),
        ({"choices": {"text": ["x"], "label": ["1", "2"]}, "answer": 0}, "2 labels and 1 texts"),
        ({"question": " ", "choices": ["1", "2"], "answer": 0}, "'question' must be text"),
    ],
)
def test_bad_rows(keys: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        with_options({"question": "Which?", **keys})


def test_bad_gpqa_rows() -> None:
    with pytest.raises(DataError, match="GPQA question rec1: 'Incorrect Answer 2' must be text, this is missing"):
        gpqa({**row(), "Incorrect Answer 2": None})
    with pytest.raises(DataError, match="the same text"):
        gpqa({**row(), "Incorrect Answer 2": "5 m"})
