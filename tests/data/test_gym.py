"""Problems of reasoning-gym's generators."""

from __future__ import annotations

import importlib.util
import json

import pytest

from bridge_mcore.data import gym
from bridge_mcore.data.gym import check_gym_name, generate_gym, gym_names
from bridge_mcore.errors import ConfigError, DataError

needs_gym = pytest.mark.skipif(importlib.util.find_spec("reasoning_gym") is None, reason="needs reasoning-gym")


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install reasoning-gym"):
        generate_gym("countdown", 0, "train", 1)


def test_entries_are_written_down_or_refused() -> None:
    entry = {"question": "1 + 1? ", "answer": "2", "metadata": {"pair": (1, (2,)), 3: None}}
    problem = gym.gym_problem("sum", entry, "gym")
    assert problem.prompt == "1 + 1?\nPut your final answer between <answer> and </answer>."
    assert json.loads(problem.answer)["dataset"] == "sum" and problem.reward == "gym"
    with pytest.raises(DataError, match="sum cannot be used: its entries hold a object"):
        gym.gym_problem("sum", {**entry, "metadata": object()}, "gym")


@needs_gym
def test_names() -> None:
    assert {"countdown", "knights_knaves"} <= set(gym_names())
    with pytest.raises(ConfigError, match="has no task 'countdwn'; did you mean 'countdown'"):
        check_gym_name("countdwn")


@needs_gym
def test_splits_and_prefixes(seed: int) -> None:
    train = generate_gym("basic_arithmetic", seed, "train", 30)
    assert generate_gym("basic_arithmetic", seed, "train", 10) == train[:10]
    test = generate_gym("basic_arithmetic", seed, "test", 10)
    assert not {p.prompt for p in train} & {p.prompt for p in test}
    assert len({p.id for p in train}) == 30
    with pytest.raises(ConfigError, match="not 'dev'"):
        generate_gym("basic_arithmetic", 0, "dev", 1)
    with pytest.raises(ConfigError, match="does not take these options"):
        generate_gym("basic_arithmetic", 0, "train", 1, {"no_such_option": 1})


@needs_gym
def test_options(seed: int) -> None:
    (problem,) = generate_gym("knights_knaves", seed, "train", 1, {"n_people": 4})
    assert problem.prompt.count(",") >= 3
