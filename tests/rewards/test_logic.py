"""Who is what: any order and common wording; nothing that leaves a choice."""

from __future__ import annotations

import pytest

from bridge_mcore.rewards.logic import LogicReward, people_of
from bridge_mcore.rewards.protocol import Attempt

GOLD = "Alice is a knight, Bob is a knave, Carol is a knight"


@pytest.mark.parametrize(
    "answer",
    [
        GOLD,
        "Bob is a knave and Carol is a knight and Alice is a knight.",
        "Alice: knight; Bob: knave; Carol: knight",
        "Alice is a knight\nBob is a knave\nCarol is a knight",
        "alice = Knight, BOB = Knave, carol = knight",
        "Alice and Carol are knights, Bob is a knave",
        "Alice, Carol are both knights and Bob is the knave",
        "Knights: Alice, Carol. Knaves: Bob",
        "Knave: Bob; Knights: Alice and Carol",
        r"\text{Alice is a knight, Bob is a knave, Carol is a knight}",
        r"\text{Alice: knight} \\ \text{Bob: knave} \\ \text{Carol: knight}",
        r"\text{Alice} = \text{knight}, \quad \text{Bob} = \text{knave}, \quad \text{Carol} = \text{knight}",
        "Alice (knight), Bob (knave), Carol (knight)",
        "Alice → knight, Bob → knave, Carol → knight",
        "**Alice** is a knight, **Bob** is a knave, **Carol** is a knight, and Alice is a knight",
    ],
)
def test_right(answer: str) -> None:
    (verdict,) = LogicReward().judge([Attempt(GOLD, f"So \\boxed{{{answer}}}")])
    assert verdict.verdict == "correct", verdict
    (verdict,) = LogicReward().judge([Attempt(GOLD, f"So <answer>{answer}</answer>")])
    assert verdict.verdict == "correct", verdict


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("Alice is a knight, Bob is a knight, Carol is a knight", "1 of 3 people are wrong"),
        ("Alice is a knight, Bob is a knave", "Carol is missing"),
        ("Alice is a knight, Bob is a knave, Carol", "Carol is not said"),
        (f"{GOLD}, Alice is a knave", "Alice is called both"),
        ("Alice is a knight, Alice is a knave, Bob is a knave, Carol is a knight", "Alice is called both"),
        ("Alice is a knight or knave, Bob is a knave, Carol is a knight", "it leaves a choice ('or')"),
        ("Alice is a knight, Bob is not a knight, Carol is a knight", "it leaves a choice ('not')"),
        ("Alice: knight/knave; Bob: knave; Carol: knight", "it leaves a choice ('/')"),
        ("Alice: knight? Bob: knave, Carol: knight", "it leaves a choice ('?')"),
        ("Alice is maybe a knight, Bob is a knave, Carol is a knight", "it leaves a choice"),
        (f"{GOLD}, Dave is a knave", "cannot read 'Dave'"),
        ("Alice is a spy, Bob is a knave", "cannot read 'spy'"),
        ("everyone is a knight", "cannot read 'everyone'"),
        ("knight, knave, knight", "two kinds and nobody between them"),
        ("Knights: Alice, Bob, Carol. Knaves: Bob", "Bob is called both"),
        ("Knights: Alice, Carol", "Bob is missing"),
        ("Knights and knaves: Alice, Bob, Carol", "two kinds"),
        ("Alice is a knight knave, Bob is a knave, Carol is a knight", "a knave that is nobody"),
        ("", "Alice, Bob, Carol is missing"),
        ("Alice " * 1000, "an answer of 5999 characters"),
    ],
)
def test_wrong(answer: str, reason: str) -> None:
    (verdict,) = LogicReward().judge([Attempt(GOLD, f"\\boxed{{{GOLD}}} no: \\boxed{{{answer}}}")])
    assert verdict.verdict == "incorrect" and verdict.reason.startswith(reason), verdict


def test_names_of_one_letter() -> None:
    gold = "A is a knight, B is a knave"
    reward = LogicReward()
    answers = ["A is a knight and B is a knave", "B is a knave, A is a knight", "A: knight, B: knave"]
    reward.judge([Attempt(gold, f"\\boxed{{{answer}}}") for answer in answers])
    assert reward.counts == {"correct": 3}


def test_no_answer_and_bad_golds() -> None:
    reward = LogicReward()
    golds = [GOLD, "", "Alice is a knight, Alice is a knave", "Alice is a spy", "42"]
    verdicts = reward.judge([Attempt(gold, GOLD) for gold in golds])
    assert [verdict.verdict for verdict in verdicts] == ["incorrect", *["error"] * 4]
    assert verdicts[0].reason == "no \\boxed{} answer"
    assert reward.counts == {"incorrect": 1, "error": 4}
    assert people_of("A is a knight and B is a knave.") == {"A": True, "B": False}
    reward.close()
