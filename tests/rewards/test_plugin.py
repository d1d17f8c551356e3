"""A user's function: what it may return, and that nothing it does hurts the trainer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bridge_mcore.errors import BridgeError, ConfigError
from bridge_mcore.rewards.plugin import PluginReward
from bridge_mcore.rewards.protocol import Attempt
from bridge_mcore.rewards.verdict import Verdict


@pytest.fixture(scope="module")
def value() -> Iterator[PluginReward]:
    reward = PluginReward("tests.rewards.plugins:value", workers=1)
    yield reward
    reward.close()


@pytest.mark.parametrize(
    ("returned", "verdict"),
    [
        ("True", Verdict("correct", "by the plugin")),
        ("False", Verdict("incorrect", "by the plugin")),
        ("1.0", Verdict("correct", "score 1", 1.0)),
        ("1", Verdict("correct", "score 1", 1.0)),
        ("0.25", Verdict("incorrect", "score 0.25", 0.25)),
        ("-2.5", Verdict("incorrect", "score -2.5", -2.5)),
        ("{'correct': True}", Verdict("correct", "by the plugin")),
        ("{'correct': False, 'score': 0.5, 'reason': 'half'}", Verdict("incorrect", "half", 0.5)),
        ("{'score': 1.5}", Verdict("correct", "by the plugin", 1.5)),
        ("{'score': 0.5, 'reason': None or 'x'}", Verdict("incorrect", "x", 0.5)),
        ("__import__('numpy').bool_(True)", Verdict("correct", "by the plugin")),
        ("__import__('numpy').float32(0.5)", Verdict("incorrect", "score 0.5", 0.5)),
    ],
)
def test_what_it_may_return(value: PluginReward, returned: str, verdict: Verdict) -> None:
    assert value.judge([Attempt("", returned)]) == [verdict]


@pytest.mark.parametrize(
    "returned",
    ["None", "'yes'", "float('nan')", "float('inf')", "[]", "{}", "{'right': True}", "{'correct': 1}",
     "{'score': None}",
     "{'score': 'high'}", "{'score': float('nan')}", "{'correct': True, 'scor': 1}", "1 + 0j", "object()", "1 / 0",
     "exit()"],
)  # fmt: skip
def test_what_it_may_not_return(value: PluginReward, returned: str) -> None:
    (verdict,) = value.judge([Attempt("", returned)])
    assert verdict.verdict == "error" and "the plugin failed" in verdict.reason
    assert verdict.score is None


def test_limits_and_order() -> None:
    reward = PluginReward("tests.rewards.plugins:misbehave", workers=2, cpu_seconds=0.5, wall_seconds=1.5, memory_gib=1)
    responses = ["fine", "loop", "print", "memory", "sleep", "fine"]
    verdicts = reward.judge([Attempt("", response) for response in responses])
    assert [verdict.verdict for verdict in verdicts] == ["correct", "timeout", "correct", "error", "timeout", "correct"]
    assert reward.counts == {"correct": 3, "timeout": 2, "error": 1}
    reward.close()
    reward.close()
    with pytest.raises(BridgeError, match="closed"):
        reward.judge([Attempt("", "fine")])


def test_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text(
        "import beside\ndef judge(response, gold, prompt): return response == beside.x + prompt"
    )
    (tmp_path / "beside.py").write_text("x = 'a'")
    monkeypatch.chdir(tmp_path)
    reward = PluginReward("mine.py:judge", workers=1)
    monkeypatch.chdir("/")
    assert [v.verdict for v in reward.judge([Attempt("", "ab", "b"), Attempt("", "ab", "c")])] == [
        "correct",
        "incorrect",
    ]
    reward.close()


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("tests.rewards.plugins", "write module:function"),
        ("tests.rewards.plugins:", "write module:function"),
        (":f", "write module:function"),
        ("os;x:f", "write module:function"),
        ("tests.rewards.plugins:nothing", r"has no function 'nothing'"),
        ("tests.rewards.plugins:not_callable", r"has no function 'not_callable'"),
        ("no_such_module_here:f", "No module named 'no_such_module_here'"),
        ("/nowhere/at/all.py:f", "there is no file /nowhere/at/all.py"),
    ],
)
def test_what_cannot_be_loaded_is_said_at_once(target: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PluginReward(target, workers=1)
