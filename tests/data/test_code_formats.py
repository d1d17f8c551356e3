"""Published formats of programming problems. The rows are made up in their form."""

from __future__ import annotations

import base64
import json
import os
import pickle
import zlib

import pytest

from bridge_mcore.data.code_formats import detect_code_format, livecodebench, mbpp, read_code_row
from bridge_mcore.errors import ConfigError, DataError
from bridge_mcore.rewards.code import CodeReward
from bridge_mcore.rewards.protocol import Attempt
from bridge_mcore.rewards.sandbox import SandboxSettings, sandbox_layers

STDIN_CASES = [{"input": "1 2\n", "output": "3\n", "testtype": "stdin"}]
PRIVATE = [{"input": "5 6\n", "output": "11\n", "testtype": "stdin"}]


def packed(value: object, protocol: int = 4) -> str:
    return base64.b64encode(zlib.compress(pickle.dumps(value, protocol))).decode()


def lcb(**keys: object) -> dict:
    row = {"question_id": "abc", "question_content": "Add two numbers.", "starter_code": "", "metadata": "{}"}
    return {
        **row,
        "public_test_cases": json.dumps(STDIN_CASES),
        "private_test_cases": packed(json.dumps(PRIVATE)),
        **keys,
    }


FUNCTIONAL = lcb(
    starter_code="class Solution:\n    def add(self, a: List[int], b: int) -> int:\n        ",
    metadata='{"func_name": "add"}',
    public_test_cases=json.dumps([{"input": "[1, 2]\n3", "output": "6", "testtype": "functional"}]),
    private_test_cases="[]",
)
HUMANEVAL = {
    "task_id": "HumanEval/999",
    "prompt": "from typing import List\n\ndef total(xs: List[int]) -> int:\n    '''Sum.'''\n",
    "canonical_solution": "    return sum(xs)\n",
    "test": "M = 1\ndef check(candidate):\n    assert candidate([1, 2]) == 3\n    assert candidate([]) == 0\n",
    "entry_point": "total",
}
MBPP = {
    "text": "Write a function that finds the longest chain of pairs.",
    "code": "class Pair(object):\n  def __init__(self, a, b): self.a = a\ndef chain(arr, n): return len(arr) + n * 0",
    "task_id": 601,
    "test_setup_code": "import math",
    "test_list": ["assert chain([Pair(5, 24), Pair(15, 25)], 2) == 2", "assert math.isclose(chain([], 0), 0)"],
    "challenge_test_list": [],
}


@pytest.mark.parametrize("protocol", range(2, 6))
def test_livecodebench(protocol: int) -> None:
    prompt, gold = livecodebench(lcb(private_test_cases=packed(json.dumps(PRIVATE), protocol)))
    assert prompt.startswith("Add two numbers.") and "standard input" in prompt
    tests = [{"input": "1 2\n", "output": "3\n"}, {"input": "5 6\n", "output": "11\n"}]
    assert json.loads(gold) == {"style": "stdin", "tests": tests}
    plain = livecodebench(lcb(private_test_cases=json.dumps(PRIVATE)))
    assert plain == (prompt, gold)
    zipped = base64.b64encode(zlib.compress(json.dumps(PRIVATE).encode())).decode()
    assert livecodebench(lcb(private_test_cases=zipped)) == plain


def test_livecodebench_functions() -> None:
    prompt, gold = livecodebench(FUNCTIONAL)
    assert "def add(self" in prompt
    assert json.loads(gold)["tests"] == [{"args": [[1, 2], 3], "output": 6}]


class Trap:
    def __reduce__(self) -> tuple:
        return os.mkdir, ("/tmp/bridge-unpickled",)


@pytest.mark.parametrize("value", [Trap(), ["a"], {"a": 1}, [Trap(), "[]"], ("[]", "[]"), 5])
def test_pickles_are_never_run(value: object) -> None:
    with pytest.raises(DataError, match=r"problem abc: 'private_test_cases' holds a pickle that is more than a text"):
        livecodebench(lcb(private_test_cases=packed(value)))
    assert not os.path.exists("/tmp/bridge-unpickled")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"private_test_cases": "?"}, "neither JSON nor base64"),
        ({"private_test_cases": packed("[]")[:-12] + "AAAAAAAAAAA="}, "problem abc"),
        ({"private_test_cases": "5"}, "is no list of test cases"),
        ({"private_test_cases": packed("{")}, "is not JSON"),
        ({"public_test_cases": "[]", "private_test_cases": ""}, "found: no tests"),
        ({"question_content": None}, "'question_content' must be text, this is missing"),
        ({**FUNCTIONAL, "metadata": "{}"}, "names no function"),
        ({**FUNCTIONAL, "metadata": '{"func_name": "f(); g"}'}, "names no function"),
    ],
)
def test_bad_rows(keys: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        livecodebench(lcb(**keys))


def test_mbpp_names_and_examples() -> None:
    prompt, gold = mbpp(MBPP)
    assert MBPP["test_list"][0] in prompt and MBPP["test_list"][1] not in prompt
    gold = json.loads(gold)
    assert (gold["entry_point"], gold["names"]) == ("chain", ["Pair"])
    assert "assert" not in mbpp(MBPP, examples=0)[0]
    sanitized = {
        "prompt": "Sum.",
        "code": "def sum(a): return a",
        "test_imports": [],
        "test_list": ["assert sum(2)==2"],
    }
    assert json.loads(mbpp(sanitized)[1])["entry_point"] == "sum"
    with pytest.raises(DataError, match="cannot tell which function"):
        mbpp({**sanitized, "test_list": ["assert True"]})
    with pytest.raises(DataError, match="test_list is no list"):
        mbpp({**sanitized, "test_list": "assert True"})


def test_formats_are_told_by_their_columns() -> None:
    assert [detect_code_format(row) for row in (lcb(), HUMANEVAL, MBPP, {})] == [
        "livecodebench",
        "humaneval",
        "mbpp",
        None,
    ]
    with pytest.raises(DataError, match="no programming problem"):
        read_code_row({"question": "1 + 1"})
    with pytest.raises(ConfigError, match="unknown code format 'human'; did you mean 'humaneval'"):
        read_code_row(HUMANEVAL, "human")


def test_solutions_pass_and_others_fail() -> None:
    if sandbox_layers(SandboxSettings()).missing:
        pytest.skip("this machine offers no sandbox")
    solutions = [
        (lcb(), "print(sum(map(int, input().split())))"),
        (FUNCTIONAL, FUNCTIONAL["starter_code"] + "return sum(a) + b"),
        (HUMANEVAL, HUMANEVAL["prompt"] + HUMANEVAL["canonical_solution"]),
        (HUMANEVAL, "def total(xs: List[int]): return sum(xs)"),  # the import is the question's
        (MBPP, MBPP["code"]),
    ]
    attempts = [Attempt(read_code_row(row)[1], f"```python\n{program}\n```") for row, program in solutions]
    wrong = [Attempt(a.gold, a.response.replace("sum(", "max(").replace("len(arr)", "7")) for a in attempts]
    reward = CodeReward(workers=1)
    assert [verdict.verdict for verdict in reward.judge(attempts)] == ["correct"] * 5
    assert [verdict.verdict for verdict in reward.judge(wrong)] == ["incorrect"] * 5
    reward.close()


@pytest.mark.parametrize(
    "change",
    [
        {"code": "-" * 100_000 + "1"},
        {"code": "(" * 5000},
        {"code": "x\0"},
        {"test_list": ["assert " + "-" * 100_000 + "1"]},
    ],
)
def test_code_that_pythons_parser_gives_up_on(change: dict) -> None:
    with pytest.raises(DataError, match=r"MBPP problem .*: its tests or code are not Python") as error:
        mbpp({**MBPP, **change})
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("text", ["[" * 100_000, '[{"input": ' + "9" * 5000 + "}]", "[" * 300 + "]" * 300])
def test_test_cases_beyond_what_is_read(text: str) -> None:
    for column in ("public_test_cases", "private_test_cases"):
        with pytest.raises(DataError, match=r"is not JSON that can be read: (nested too deeply|a whole number)"):
            livecodebench(lcb(**{column: text}))
    with pytest.raises(DataError, match="is not JSON that can be read"):
        livecodebench(lcb(private_test_cases=packed(text)))
