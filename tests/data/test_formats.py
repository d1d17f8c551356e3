"""Sources whose problems are not mathematics: their formats, their rewards, and who decides which."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from bridge_mcore.config.data_checks import plugins_of
from bridge_mcore.config.rewards import Reward
from bridge_mcore.config.schema import Config, Data, DataSource, EvaluationSource
from bridge_mcore.data.problems import load_problems
from bridge_mcore.errors import DataError

CODE = {"prompt": "def f(x):\n", "test": "def check(f):\n    assert f(1) == 2\n", "entry_point": "f"}
GPQA = {
    "Question": "Which?", "Correct Answer": "right", "Incorrect Answer 1": "a", "Incorrect Answer 2": "b",
    "Incorrect Answer 3": "c",
}  # fmt: skip
MATH = {"problem": "1 + 1?", "answer": "2"}


def write(path: Path, *rows: dict) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_auto_sees_programs_and_choices(tmp_path):
    (program,) = load_problems(DataSource(path=write(tmp_path / "c.jsonl", CODE)))
    assert program.reward == "code" and json.loads(program.answer)["style"] == "function"
    (choice,) = load_problems(DataSource(path=write(tmp_path / "g.jsonl", GPQA)))
    assert choice.reward == "choice" and choice.answer in "ABCD"
    assert f"{choice.answer}) right" in choice.prompt or f"{choice.answer}. right" in choice.prompt
    mmlu = {"question": "Which?", "choices": ["a", "b"], "answer": 1}
    (found,) = load_problems(DataSource(path=write(tmp_path / "m.jsonl", mmlu), format="choice"))
    assert (found.reward, found.answer) == ("choice", "B")


def test_who_decides_the_reward(tmp_path):
    path = write(tmp_path / "m.jsonl", MATH, {**MATH, "problem": "2 + 2?", "answer": "4", "reward": "choice"})

    def rewards(default: str = "math", **source) -> list[str]:
        return [p.reward for p in load_problems(DataSource(path=path, **source), default)]

    assert rewards() == ["math", "choice"]
    assert rewards("logic") == ["logic", "choice"]  # the run's default, unless the row says
    assert rewards(reward="plugin:mine:f") == ["plugin:mine:f"] * 2  # the source goes before its rows
    assert [p.reward for p in load_problems(DataSource(task="knights", difficulty=(2, 3), size=2))] == ["logic"] * 2


def test_an_unknown_reward_is_refused_where_it_stands(tmp_path):
    path = write(tmp_path / "m.jsonl", {**MATH, "reward": "maths"})
    with pytest.raises(DataError, match=r"line 1: unknown reward 'maths'; did you mean 'math'\?"):
        load_problems(DataSource(path=path))
    with pytest.raises(ValidationError, match="unknown reward"):
        DataSource(task="knights", reward="logics")
    with pytest.raises(ValidationError, match="unknown task"):
        DataSource(task="knight")


def test_rows_name_no_code_that_the_settings_do_not(tmp_path):
    """A plugin is imported and called: a data file, which may be anybody's, brings none in."""
    mine = "plugin:mine:f"
    path = write(tmp_path / "m.jsonl", MATH, {**MATH, "answer": "3", "reward": mine})
    for settings in ({}, {"default_reward": "plugin:other:f"}, {"plugins": {"plugin:mine:g", "plugin:mine"}}):
        with pytest.raises(
            DataError, match=r"m\.jsonl, line 2: the reward 'plugin:mine:f' is code, and no setting names"
        ):
            load_problems(DataSource(path=path), **settings)
    assert len(load_problems(DataSource(path=path, bad_rows="skip"))) == 1
    for settings in ({"default_reward": mine}, {"plugins": {mine}}):
        assert load_problems(DataSource(path=path), **settings)[1].reward == mine
    assert {p.reward for p in load_problems(DataSource(path=path, reward="choice"))} == {"choice"}


def test_every_source_of_a_configuration_is_asked_for_its_plugins():
    names = [f"plugin:m:f{i}" for i in range(6)]
    data = Data(
        rl=DataSource(task="knights", reward=names[0]), rl_more=[DataSource(task="knights", reward=names[1])],
        sft=DataSource(task="knights", reward=names[2]), sft_more=[DataSource(task="knights", reward=names[3])],
        evaluation=[EvaluationSource(task="knights", reward=names[4]), EvaluationSource(task="knights", reward="math")],
    )  # fmt: skip
    assert plugins_of(Config(data=data, reward=Reward(verifier=names[5]))) == set(names)
    assert plugins_of(Config()) == set()


def test_a_row_that_is_no_program_is_named(tmp_path):
    path = write(tmp_path / "c.jsonl", CODE, {"prompt": "x"})
    with pytest.raises(DataError, match="line 2"):
        load_problems(DataSource(path=path))
    assert len(load_problems(DataSource(path=path, bad_rows="skip"))) == 1


def test_a_task_is_limited_like_a_file():
    whole = load_problems(DataSource(task="knights", size=6, difficulty=(2, 4)))
    assert load_problems(DataSource(task="knights", size=6, limit=2, difficulty=(2, 4))) == whole[:2]
