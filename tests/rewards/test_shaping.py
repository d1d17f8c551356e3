"""Shaping: off by default; DAPO's equation at its corners; form by pattern."""

from __future__ import annotations

import pytest

from bridge_mcore.errors import ConfigError
from bridge_mcore.rewards.protocol import Attempt
from bridge_mcore.rewards.shaping import Adjustment, FormatShaping, LengthShaping, adjustment, well_formed
from bridge_mcore.rewards.verdict import Verdict

CORRECT, INCORRECT, TIMEOUT = Verdict("correct", ""), Verdict("incorrect", ""), Verdict("timeout", "")
DAPO = LengthShaping(limit=20480, cache=4096)


def test_off_by_default() -> None:
    attempt = Attempt("", "", tokens=10**6)
    assert (
        adjustment(attempt, CORRECT) == Adjustment() == adjustment(attempt, CORRECT, FormatShaping(), LengthShaping())
    )
    assert adjustment(Attempt("", ""), CORRECT, FormatShaping(bonus=1), LengthShaping()).total == 0


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        (0, 0),
        (16384, 0),
        (16385, -1 / 4096),
        (18432, -0.5),
        (20479, -4095 / 4096),
        (20480, -1),
        (20481, -1),
        (10**9, -1),
    ],
)
def test_soft_overlong_is_equation_13(tokens: int, expected: float) -> None:
    for verdict in (CORRECT, INCORRECT):
        assert adjustment(Attempt("", "", tokens=tokens), verdict, length=DAPO).length == expected
    half = LengthShaping(limit=20480, cache=4096, weight=0.5)
    assert adjustment(Attempt("", "", tokens=tokens), CORRECT, length=half).total == expected / 2
    assert adjustment(Attempt("", "", tokens=tokens), TIMEOUT, length=DAPO) == Adjustment()


def test_linear_is_for_right_answers() -> None:
    linear = LengthShaping("linear", limit=100, weight=0.2)
    assert adjustment(Attempt("", "", tokens=50), CORRECT, length=linear).length == pytest.approx(-0.1)
    assert adjustment(Attempt("", "", tokens=500), CORRECT, length=linear).length == pytest.approx(-0.2)
    assert adjustment(Attempt("", "", tokens=500), INCORRECT, length=linear).length == 0


def test_tokens_must_be_known() -> None:
    with pytest.raises(ValueError, match="needs the number of tokens"):
        adjustment(Attempt("", ""), CORRECT, length=DAPO)


@pytest.mark.parametrize(
    ("form", "good", "bad"),
    [
        (FormatShaping(one_box=True), [r"\boxed{1}", r"\boxed{\{a_{1}}"],
         ["", r"\boxed{1", r"\boxed{1}\boxed{2}", r"\boxed{\boxed{1}}"]),
        (FormatShaping(think=True), ["<think>a</think>b", "\n<think></think>"],
         ["b", "x<think>a</think>", "<think>a", "<think>a</think><think>b</think>", "<think><think></think>"]),
        (FormatShaping(answer=True), ["a<answer>1</answer>", "<answer></answer>b"],
         ["1", "<answer>1", "<answer>1</answer><answer>2</answer>", "</answer><answer>1</answer>"]),
        (FormatShaping(pattern="a.b"), ["xa\nb"], ["ab"]),
        (FormatShaping(think=True, answer=True), ["<think>t</think><answer>1</answer>"],
         ["<think>t</think>", "<answer>1</answer>"]),
    ],
)  # fmt: skip
def test_forms(form: FormatShaping, good: list[str], bad: list[str]) -> None:
    assert all(well_formed(Attempt("", text), form) for text in good)
    assert not any(well_formed(Attempt("", text), form) for text in bad)


def test_a_thought_may_be_opened_by_the_prompt() -> None:
    form = FormatShaping(think=True)
    assert well_formed(Attempt("", "a</think>b", thinking=True), form)
    assert not any(well_formed(Attempt("", text, thinking=True), form) for text in ("b", "<think>a</think>b"))
    assert not well_formed(Attempt("", "a</think>b"), form)


def test_bonus_penalty_and_cut_responses() -> None:
    form = FormatShaping(finished=True, bonus=0.1, penalty=0.2)
    assert adjustment(Attempt("", ""), INCORRECT, form) == Adjustment(format=0.1)
    assert adjustment(Attempt("", "", finished=False), CORRECT, form).total == -0.2


def test_long_texts_take_linear_time() -> None:
    form = FormatShaping(one_box=True, think=True, answer=True)
    for text in ("<think>" * 100_000, "<answer>" * 100_000, "\\boxed{" * 100_000, "<think>" + "x<" * 200_000):
        assert not well_formed(Attempt("", text), form)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LengthShaping("cosine"), "'cosine' is unknown"),
        (lambda: LengthShaping(limit=10), "cache must be from 1 to limit"),
        (lambda: LengthShaping(limit=10, cache=11), "cache must be from 1 to limit"),
        (lambda: LengthShaping(limit=0, cache=1), "must be positive"),
        (lambda: LengthShaping(limit=10, cache=1, weight=-1), "must be positive"),
        (lambda: FormatShaping(penalty=-1), "must not be negative"),
        (lambda: FormatShaping(bonus=float("nan")), "must not be negative"),
        (lambda: FormatShaping(pattern="("), "is no regular expression"),
    ],
)
def test_bad_settings(make, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()
