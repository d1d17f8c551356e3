"""All rewards behind one door: dispatch, order, counts, names."""

from __future__ import annotations

import json

import pytest

from bridge_mcore.errors import ConfigError
from bridge_mcore.rewards.mixed import Rewards, RewardSettings, check_names
from bridge_mcore.rewards.protocol import Attempt
from bridge_mcore.rewards.sandbox import SandboxSettings, sandbox_layers

KNIGHTS = "Alice is a knight, Bob is a knave"
SIMPLE = [
    ("math", Attempt("42", r"\boxed{42.0}"), "correct"),
    ("choice", Attempt("C", r"\boxed{(C)}"), "correct"),
    ("logic", Attempt(KNIGHTS, rf"\boxed{{{KNIGHTS}}}"), "correct"),
    ("choice", Attempt("C", r"\boxed{D}"), "incorrect"),
    ("plugin:tests.rewards.plugins:same", Attempt("a", "a"), "correct"),
    ("math", Attempt("42", r"\boxed{43}"), "incorrect"),
    ("plugin:tests.rewards.plugins:same", Attempt("a", "b"), "incorrect"),
    ("logic", Attempt("?", r"\boxed{1}"), "error"),
]


def test_each_goes_to_its_own_and_order_is_kept() -> None:
    rewards = Rewards(RewardSettings(workers=1, plugins=frozenset({"plugin:tests.rewards.plugins:same"})))
    assert rewards.judge([], []) == [] and rewards.counts_by_reward == {}
    verdicts = rewards.judge([name for name, _, _ in SIMPLE], [attempt for _, attempt, _ in SIMPLE])
    assert [verdict.verdict for verdict in verdicts] == [wanted for _, _, wanted in SIMPLE]
    assert rewards.counts == {"correct": 4, "incorrect": 3, "error": 1}
    assert rewards.counts_by_reward["logic"] == {"correct": 1, "error": 1}
    rewards.close()
    rewards.close()


def test_code_too() -> None:
    if sandbox_layers(SandboxSettings()).missing:
        pytest.skip("this machine offers no sandbox")
    rewards = Rewards(RewardSettings(workers=1))
    rewards.prepare(["code", "choice"])
    gold = json.dumps({"style": "stdin", "tests": [{"input": "", "output": "1"}]})
    attempts = [Attempt(gold, "```python\nprint(1)\n```"), Attempt("A", r"\boxed{A}")]
    assert [verdict.verdict for verdict in rewards.judge(["code", "choice"], attempts)] == ["correct"] * 2
    rewards.close()


def test_noise_is_over_all() -> None:
    rewards = Rewards(RewardSettings(noise=1.0))
    verdicts = rewards.judge(["choice", "logic"], [Attempt("C", r"\boxed{C}"), Attempt("?", "")])
    assert [verdict.verdict for verdict in verdicts] == ["incorrect", "error"]
    assert rewards.counts == {"incorrect": 1, "flipped_to_incorrect": 1, "error": 1}
    with pytest.raises(ConfigError, match="no probability"):
        Rewards(RewardSettings(noise=2.0))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("maths", "unknown reward 'maths'; did you mean 'math'"),
        ("choices", "did you mean 'choice'"),
        ("x", "unknown reward 'x'; there is math, choice, code, logic, gym and plugin"),
        ("", "unknown reward ''"),
        ("plugin", "unknown reward 'plugin'"),
        ("plugin:module", "write plugin:MODULE:FUNCTION"),
        ("plugin:module:", "write plugin:MODULE:FUNCTION"),
        ("plugin::f", "write plugin:MODULE:FUNCTION"),
    ],
)
def test_unknown_names(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_names(["math", name])
    with pytest.raises(ConfigError, match=message):
        Rewards().judge([name], [Attempt("", "")])


@pytest.mark.parametrize("allowed", [frozenset(), frozenset({"plugin:tests.rewards.plugins:same"})])
def test_only_plugins_of_the_settings_are_built(allowed: frozenset[str], tmp_path) -> None:
    """Whatever names it: neither its module is imported nor its file run."""
    file = tmp_path / "code.py"
    file.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\ndef f(response, gold, prompt): return True\n")
    for name in (f"plugin:{file}:f", "plugin:timeit:timeit", "plugin:tests.rewards.plugins:same "):
        rewards = Rewards(RewardSettings(workers=1, plugins=allowed))
        for act, arguments in ((rewards.prepare, ()), (rewards.judge, ([Attempt("", "")],))):
            with pytest.raises(ConfigError, match=r"is code, and no setting names it|write plugin:MODULE:FUNCTION"):
                act([name], *arguments)
        rewards.close()
    assert not (tmp_path / "ran").exists()


def test_known_names() -> None:
    check_names(["math", "choice", "code", "logic", "gym", "plugin:a.b:c", "plugin:dir/file.py:f"])


def test_lists_of_different_length() -> None:
    with pytest.raises(ValueError, match="zip"):
        Rewards().judge(["math"], [])
