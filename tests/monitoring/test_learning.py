"""Runs that cannot learn say why, once and at the end; runs that can say nothing."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from bridge_mcore.config.load import load_values
from bridge_mcore.config.schema import Config
from bridge_mcore.monitoring.learning import WINDOW, LearningWatch, remarks_after, remarks_before
from tests.training.test_runs import config_for, run

#: groups_with_signal, truncated and reward of a quickstart's 30 steps with a short warm start.
QUICKSTART = [
    (0.328, 0, 0.104), (0.484, 0, 0.107), (0.391, 0, 0.109), (0.406, 0.003, 0.096), (0.391, 0, 0.102),
    (0.391, 0, 0.112), (0.391, 0, 0.096), (0.344, 0, 0.083), (0.562, 0.003, 0.128), (0.531, 0, 0.138),
    (0.484, 0, 0.115), (0.531, 0, 0.135), (0.578, 0.003, 0.159), (0.5, 0.003, 0.141), (0.391, 0, 0.117),
    (0.656, 0, 0.177), (0.531, 0.003, 0.117), (0.5, 0.003, 0.112), (0.531, 0.003, 0.133), (0.5, 0, 0.135),
    (0.422, 0.003, 0.117), (0.469, 0, 0.117), (0.594, 0, 0.164), (0.516, 0, 0.138), (0.5, 0, 0.109),
    (0.688, 0, 0.174), (0.641, 0, 0.151), (0.5, 0.003, 0.125), (0.547, 0, 0.143), (0.547, 0.005, 0.12),
]  # fmt: skip


def config(*values: str) -> Config:
    return load_values(Config, ["training.steps=30", "rollout.max_new_tokens=128", *values])


def line(step: int, signal: float, cut: float, reward: float, **more: Any) -> dict[str, Any]:
    known = {"step": step, "groups_with_signal": signal, "truncated": cut, "reward": reward, "update_norm_theta": 0.01}
    return known | more


def said(lines: list[dict[str, Any]], *values: str) -> list[tuple[int, str]]:
    watch = LearningWatch(config(*values))
    return [(entry["step"], text) for entry in lines for text in watch.see(entry["step"], entry)]


@pytest.mark.parametrize(
    ("metrics", "values", "words"),
    [
        ({"cut": 1.0, "reward": 0.0}, (), "All are wrong, and 100% of the answers are cut at rollout.max_new_"),
        ({"cut": 0.0, "reward": 0.0, "unanswered": 0.97}, (), "97% of them hold no answer in the form"),
        ({"cut": 0.0, "reward": 0.0, "unanswered": 0.1}, (), "Take easier problems"),
        ({"cut": 0.0, "reward": -1.0}, ("reward.incorrect=-1",), "Take easier problems"),
        ({"cut": 0.1, "reward": 1.0}, (), "all are right. Take harder problems"),
        ({"cut": 0.0, "reward": 0.4}, (), "Raise rollout.samples_per_prompt"),
        ({"cut": 0.0, "reward": 0.3, "correct": 0.0}, ("reward.partial=true",), "Take easier problems"),
        ({"cut": 1.0, "reward": 0.0, "update_norm_theta": 0.0}, (), "rewards have taught nothing"),
        ({"signal": 0.3, "cut": 0.95, "reward": 0.1}, (), "95% of the answers are cut at rollout.max_new_tokens = 128"),
        ({"signal": 0.3, "cut": 0.0, "reward": 0.1, "unanswered": 0.92}, (), "92% of the answers of the last 5 steps"),
        ({"signal": 0.3, "cut": 0.0, "reward": 0.1, "update_norm_theta": 0.0}, (), "no weight has moved"),
    ],
)  # fmt: skip
def test_each_cause_is_said_once_after_a_few_steps(metrics: dict, values: tuple[str, ...], words: str) -> None:
    lines = [line(step, **({"signal": 0.0} | metrics)) for step in range(1, 31)]
    ((step, text),) = said(lines, *values)
    assert step == WINDOW and words in text and "\n" not in text
    (again,) = remarks_after(config(*values), lines)
    assert words in again


def test_a_run_that_learns_hears_nothing() -> None:
    lines = [line(step, *values, unanswered=0.0) for step, values in enumerate(QUICKSTART, start=1)]
    assert said(lines) == [] and remarks_after(config(), lines) == []


def test_success_is_no_trouble_and_trouble_that_passes_is_not_repeated() -> None:
    start, middle = [line(s, 0.0, 0.9, 0.0) for s in range(1, 7)], [line(s, 0.4, 0.1, 0.5) for s in range(7, 24)]
    solved = [line(s, 0.0, 0.0, 1.0) for s in range(24, 31)]
    assert [step for step, _ in said([*start, *middle, *solved])] == [WINDOW]
    assert remarks_after(config(), [*start, *middle, *solved]) == []
    lost = [line(s, 0.0, 0.0, 0.0) for s in range(24, 31)]  # a policy that has collapsed
    assert [step for step, _ in said([*middle, *lost])] == [28]
    assert "all are wrong" in remarks_after(config(), [*middle, *lost])[0]


def test_steps_of_sft_alone_are_judged_by_their_updates() -> None:
    lines = [{"step": step, "j_sft": -1.0, "update_norm_theta": 0.01} for step in range(1, 31)]
    assert said(lines) == []
    assert "no weight has moved" in said([entry | {"update_norm_theta": 0.0} for entry in lines])[0][1]


def test_a_short_run_is_judged_at_its_end() -> None:
    lines = [line(step, 0.0, 1.0, 0.0) for step in range(1, 4)]
    ((step, text),) = said(lines, "training.steps=3")
    assert step == 3 and "in the last 3 steps" in text


def test_rates_that_come_to_nothing() -> None:
    assert remarks_before(config("optimizer.warmup_steps=29")) == []
    (late,) = remarks_before(config("optimizer.warmup_steps=30"))
    assert "optimizer.warmup_steps = 30 is not less than training.steps = 30" in late
    (tiny,) = remarks_before(config("optimizer.alpha=1e-12"))
    assert "optimizer.alpha = 1e-12 is too small" in tiny
    assert remarks_before(config("optimizer.alpha=1e-12", "optimizer.beta=1e-4")) == []


def test_a_real_run_of_an_untrained_model(tmp_path: Path) -> None:
    changes = {"steps: 80": "steps: 0", "alpha: 1e-3": "warmup_steps: 8, alpha: 1e-3", "every: 4, ": ""}
    path = config_for(tmp_path / "run", tmp_path, **changes, **{"every: 3": "every: 0", "every: 2": "every: 0"})
    output = run(path)
    lines = output.splitlines()
    late, nothing = (
        [i for i, text in enumerate(lines) if text.startswith(f"warning: {words}")]
        for words in ("optimizer.warmup_steps = 8", "rewards have taught nothing")
    )
    assert len(late) == len(nothing) == 2, output  # when it is known, and at the end
    assert lines[nothing[0] - 1].startswith("step 5/8  reward 0.000") and nothing[1] == len(lines) - 1
    assert "groups with signal 0%" in lines[nothing[0] - 1]
    written = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    umask = os.umask(0)
    os.umask(umask)
    closed = {path.name for path in written if stat.S_IMODE(path.stat().st_mode) != 0o666 & ~umask}
    assert "adapter_model.safetensors" in {path.name for path in written} and not closed
    assert [text.split(":")[0] for text in json.loads((tmp_path / "run" / "summary.json").read_text())["remarks"]] == [
        text.removeprefix("warning: ").split(":")[0] for text in (lines[late[1]], lines[nothing[1]])
    ]
