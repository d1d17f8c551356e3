"""A guess in a thought is no answer, whichever reward reads it and whoever opened the thought."""

from __future__ import annotations

import json

import numpy as np
import pytest

from bridge_mcore.data.problem import Problem
from bridge_mcore.rewards import MathVerifier
from bridge_mcore.rewards.judge import Judge
from bridge_mcore.rewards.mixed import Rewards, RewardSettings
from bridge_mcore.rewards.protocol import Attempt
from bridge_mcore.rewards.sandbox import SandboxSettings, sandbox_layers
from bridge_mcore.rewards.thoughts import after_thought, opens_thought
from bridge_mcore.rollout.engine import Rollout

GUESS, SAID = r"Maybe \boxed{41}.", r"So it is \boxed{40}."


@pytest.mark.parametrize(
    ("response", "opened", "left"),
    [
        ("no thought", False, "no thought"),
        ("<think>a</think>b", False, "b"),
        ("<think>a", False, ""),
        ("a</think>b", False, "b"),  # the prompt opened it
        ("a</think>b", True, "b"),
        ("a", True, ""),
        ("<think>a</think>b<think>c</think>d", False, "d"),
        ("<think>a</think>b<think>c", False, ""),
        ("a < b and <b>", False, "a < b and <b>"),
        ("[THINK]a[/THINK]b", False, "b"),
        ("<thinking>a</thinking>b", False, "b"),
        ("<think>a</think>", False, ""),
        ("<Think>a</Think>b", False, "b"),
        ("<THINK>a", False, ""),
        ("<think >a</think >b", False, "b"),
        ("[think]a[/think]b", False, "b"),
        ("a <thinks> b", False, "a <thinks> b"),
        ("<|channel|>analysis<|message|>a", False, ""),
        ("<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>final<|message|>b", False, "b"),
        ("<|channel|>final<|message|>a<|end|><|start|>assistant<|channel|>commentary to=x<|message|>b", False, ""),
    ],
)
def test_what_is_left(response: str, opened: bool, left: str) -> None:
    assert after_thought(response, opened) == left


def test_prompts_that_open_a_thought() -> None:
    assert opens_thought("<|im_start|>assistant\n<think>\n") and opens_thought("Answer: <think>")
    assert not opens_thought("Write <think> first.") and not opens_thought("<think>\n\n</think>\n\n")


@pytest.mark.parametrize(
    ("response", "right"),
    [
        (f"<think>{GUESS}, let me check", False),
        (f"<think>{GUESS}</think> So it is 40.", False),
        (f"<think>{GUESS}</think> {SAID}", False),
        (f"<think>{SAID}</think> {GUESS}", True),
        (f"{SAID}</think> {GUESS}", True),
        (GUESS, True),
    ],
)
def test_mathematics(response: str, right: bool) -> None:
    with MathVerifier(workers=1) as verifier, MathVerifier(workers=1, thoughts=True) as lenient:
        assert (verifier.verify([("41", response)])[0].verdict == "correct") is right
        last_box_is_right = response.rfind("41") > response.rfind("boxed{40")
        assert (lenient.verify([("41", response)])[0].verdict == "correct") is last_box_is_right
        assert verifier.judge([Attempt("41", GUESS, thinking=True)])[0].verdict == "incorrect"
        assert lenient.judge([Attempt("41", GUESS, thinking=True)])[0].verdict == "correct"


def test_every_reward_but_plugins() -> None:
    names = ["choice", "logic", "math"]
    knights = "Ann is a knight"
    golds = ["B", knights, "7"]
    said = [rf"\boxed{{{gold}}}" for gold in golds]
    if not sandbox_layers(SandboxSettings()).missing:
        names.append("code")
        golds.append(json.dumps({"style": "stdin", "tests": [{"input": "", "output": "1"}]}))
        said.append("```python\nprint(1)\n```")
    strict, lenient = Rewards(RewardSettings(workers=1)), Rewards(RewardSettings(workers=1, thoughts=True))
    for before, after, wanted in (("<think>", "", "incorrect"), ("<think></think>", "", "correct")):
        attempts = [Attempt(gold, before + "\n" + text + after) for gold, text in zip(golds, said, strict=True)]
        assert {verdict.verdict for verdict in strict.judge(names, attempts)} == {wanted}
        assert {verdict.verdict for verdict in lenient.judge(names, attempts)} == {"correct"}
    plugin = "plugin:tests.rewards.plugins:same"
    own = Rewards(RewardSettings(workers=1, plugins=frozenset({plugin})))
    assert own.judge([plugin], [Attempt("<think>a", "<think>a")])[0].verdict == "correct"
    for rewards in (strict, lenient, own):
        rewards.close()


def test_the_judge_sees_that_the_prompt_opened_a_thought() -> None:
    """Ids are characters here: the end of the rollout's own prompt is what the template made."""
    judge = Judge(Rewards(), lambda tokens: "".join(map(chr, tokens)))
    problem = Problem("0" * 16, "6*7-1?", "41", None, "s")

    def attempt(prompt: str) -> Attempt:
        tokens, logprobs = tuple(map(ord, GUESS)), np.zeros(len(GUESS), np.float32)
        rollout = Rollout(0, tuple(map(ord, prompt)), tokens, logprobs, finished=True, version=0)
        return judge.attempts([problem], [rollout])[0]

    assert attempt("6*7-1?<think>\n").thinking and not attempt("6*7-1?\n").thinking
    assert judge.rewards.judge(["math"], [attempt("6*7-1?<think>\n")])[0].verdict == "incorrect"
    assert judge.rewards.judge(["math"], [attempt("6*7-1?")])[0].verdict == "correct"
    judge.rewards.close()
