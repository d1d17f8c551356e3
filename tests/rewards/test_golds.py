"""Golds that a reward cannot read are found when data is loaded: by the same rule as when an answer is judged."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bridge_mcore.data.problem import ANY_OF, Problem, problem_id
from bridge_mcore.errors import DataError
from bridge_mcore.rewards.box.values import encode
from bridge_mcore.rewards.choice import ChoiceReward
from bridge_mcore.rewards.golds import check_golds, gold_problem, text_golds
from bridge_mcore.rewards.logic import LogicReward
from bridge_mcore.rewards.math import MathVerifier
from bridge_mcore.rewards.protocol import Attempt

GOLDS = [
    "C",
    "C/4",
    "E/4",
    "(b).",
    "12",
    "",
    " ",
    r"\boxed{}",
    r"\frac12",
    "Ann is a knight, Bob is a knave",
    "Ann is tall",
]


@pytest.mark.parametrize(
    ("name", "reward"), [("choice", ChoiceReward()), ("logic", LogicReward()), ("math", MathVerifier(1))]
)
def test_what_cannot_be_read_is_what_is_never_decided(name: str, reward: Any) -> None:
    found = [gold_problem(name, gold) for gold in GOLDS]
    verdicts = reward.judge([Attempt(gold, r"\boxed{C}") for gold in GOLDS])
    assert [why is None for why in found] == [verdict.decided for verdict in verdicts]
    assert any(found) and not all(found)
    reward.close()


def test_programs_tests_and_entries() -> None:
    tests = {"style": "stdin", "tests": [{"input": "", "output": "1"}]}
    assert gold_problem("code", json.dumps(tests)) is None
    assert "no list" in str(gold_problem("code", json.dumps({"style": "stdin"})))
    assert gold_problem("gym", json.dumps({"dataset": "sum", "entry": encode({})})) is None
    assert gold_problem("gym", "12") is not None
    assert gold_problem("plugin:m:f", "anything") is None
    assert gold_problem("code", "x" * (1 << 18)) is None  # too long to be read twice


def test_a_source_that_its_reward_cannot_read_is_refused() -> None:
    def problems(*golds: str, source: str = "sums", reward: str = "choice") -> list[Problem]:
        return [Problem(problem_id(f"{i}?", g), f"{i}?", g, None, source, reward) for i, g in enumerate(golds)]

    assert check_golds([]) == check_golds(problems("A", "B")) == check_golds(problems("12", reward="math")) == []
    (remark,) = check_golds(problems("A", "12", "13") + problems("C", source="other"))
    assert remark.startswith("· 2 of 3 golds of sums cannot be read by the reward `choice`; the first: problem ")
    assert "('1?'): the gold answer '12' is no letter" in remark
    traces = problems("12") + problems("12")  # a problem of several traces is one
    with pytest.raises(DataError, match=r"1 of 1 golds of sums .* `choice`.*reward\.verifier") as refused:
        check_golds(traces + problems("C", source="other"))
    assert refused.value.exit_code == 2


#: Golds with a spelling that is not their own and yet right, and golds for which there is none.
READ = [
    "5", r"\frac12", r"(0, \tfrac13] \cup (1, 2]", r"1 \pm \sqrt{19}", r"\{1\pm\sqrt{5},-2\}",
    r"[0,\infty)\setminus\{6\}", "]2,5[",
    r"\begin{pmatrix} 1 & -1 \\ 1 & \phantom -1 \end{pmatrix}", "x>2", "f(x)=2x",
    r"\angle ABC=90, \angle BCA=90^{\circ}", "3:30",
    r"\text{Ann}", "B", "1011_2", r"5\text{ cm}", "(n-2) 2^{n}+1", r"\int_0^1 f(x) dx", r"{9 \choose 3}",
    r"x_0+\dot{x}_{0}", "",
]  # fmt: skip
ONLY_TEXT = ["t(0,4]$", r"\frac{1}{7}\triangle ABC", "5 # 6", r"\text{October 30}", "[0,a]]", r"2, \frac{1}{"]


def test_golds_that_can_only_be_compared_as_text() -> None:
    def problems(golds: list[str], source: str, reward: str = "math") -> list[Problem]:
        return [Problem(problem_id(f"{i}?", g), f"{i}?", g, None, source, reward) for i, g in enumerate(golds)]

    assert text_golds(problems(READ, "read")) == [] and text_golds(problems(ONLY_TEXT, "logic", "logic")) == []
    mixed = problems(READ + ONLY_TEXT, "mixed")
    (remark,) = text_golds(mixed + mixed[-2:])
    assert f"{len(ONLY_TEXT)} of {len(mixed)} golds of mixed can only be compared as text" in remark
    assert remark in check_golds(problems(["5"], "fine") + mixed)[-1]
    with MathVerifier(1) as verifier:
        own = verifier.verify([(gold, f"\\boxed{{{gold}}}") for gold in ONLY_TEXT[:4]])
        spaced = verifier.verify([(gold, f"\\boxed{{{gold} + 0}}") for gold in ONLY_TEXT])
    assert {verdict.verdict for verdict in own} == {"correct"}
    assert "correct" not in {verdict.verdict for verdict in spaced}


def test_a_gold_of_several_is_text_only_where_all_are() -> None:
    """Any one of them is right, so one that can be read is enough."""

    def remarks(gold: str) -> list[str]:
        return text_golds([Problem("0", "q?", gold, None, "test")])

    readable, text = "6", "\\text{a hexagon}^"
    assert remarks(text) and not remarks(readable)
    assert remarks(f"{text}{ANY_OF}{text}") and not remarks(f"{text}{ANY_OF}{readable}")
