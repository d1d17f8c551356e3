"""Columns inside columns, chat messages, rewards, and directories of files."""

from __future__ import annotations

import pytest

from bridge_mcore.config.schema import DataSource
from bridge_mcore.data.problems import load_problems
from bridge_mcore.data.rows import column_of
from bridge_mcore.data.sources import files_of, read_path
from bridge_mcore.errors import DataError
from tests.data.test_problems import write

VERL = {
    "prompt": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "1+1?"}],
    "target": [{"role": "assistant", "content": "It is \\boxed{2}"}],
    "reward_model": {"ground_truth": "2", "style": "rule"},
}


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_messages_and_nested_answers_are_found_by_name(tmp_path, suffix):
    path = write(tmp_path / f"a{suffix}", [VERL])
    (problem,) = load_problems(DataSource(path=path))
    assert (problem.prompt, problem.answer, problem.trace) == ("1+1?", "2", "It is \\boxed{2}")
    named = {"prompt_field": "prompt", "answer_field": "reward_model.ground_truth", "trace_field": "target"}
    assert load_problems(DataSource(path=path, format="fields", **named)) == [problem]
    parts = VERL | {"prompt": [{"role": "user", "content": [{"type": "text", "text": "1+1?"}]}]}
    assert load_problems(DataSource(path=write(tmp_path / "p.jsonl", [parts])))[0].prompt == "1+1?"


def test_a_target_that_is_no_trace(tmp_path):
    row = {"problem": "q", "answer": "2", "target": "a column of something else"}
    assert load_problems(DataSource(path=write(tmp_path / "a.jsonl", [row])))[0].trace is None


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        ([{"role": "user", "content": "a"}, {"role": "user", "content": "b"}], "2 messages of the user"),
        ([{"role": "system", "content": "a"}], "0 messages of the user"),
        ([{"role": "user", "content": 5}], "must be text, this is a int"),
        ([{"role": "user", "content": " "}], "is empty"),
    ],
)
def test_messages_that_are_no_problem(tmp_path, prompt, says):
    path = write(tmp_path / "a.jsonl", [VERL, VERL | {"prompt": prompt}])
    with pytest.raises(DataError, match=f"line 2: .*{says}"):
        load_problems(DataSource(path=path))


def test_columns():
    row = {"a": {"b": [{"c": 5}], "d.e": 6}, "x.y": 7, "x": {"y": 8}}
    assert column_of(row, "a.b.0.c") == 5 and column_of(row, "x.y") == 7  # a column's own name comes first
    assert [column_of(row, name) for name in ("a.b.1", "a.b.c", "q", "a.d.e", "x.y.z")] == [None] * 5


def test_a_misspelt_inner_column(tmp_path):
    path = write(tmp_path / "a.jsonl", [VERL])
    with pytest.raises(DataError, match=r"no column 'reward_model\.truth'"):
        load_problems(DataSource(path=path, answer_field="reward_model.truth"))


def test_a_row_names_its_reward(tmp_path):
    rows = [{"problem": f"q{i}", "answer": "1", "reward": reward} for i, reward in enumerate(["code", None, 0.5, " "])]
    found = load_problems(DataSource(path=write(tmp_path / "a.jsonl", rows)))
    assert [problem.reward for problem in found] == ["code", "math", "math", "math"]


def test_directories_are_read_file_by_file_in_order(tmp_path):
    (tmp_path / "b").mkdir()
    write(tmp_path / "b" / "2.jsonl", [{"n": 3}])
    write(tmp_path / "b" / "1.parquet", [{"n": 2}])
    write(tmp_path / "a.json", [{"n": 1}])
    (tmp_path / "readme.txt").write_text("no data")
    (tmp_path / ".cache").mkdir()
    write(tmp_path / ".cache" / "x.jsonl", [{"n": 0}])
    assert [row["n"] for _, row in read_path(tmp_path)] == [1, 2, 3]
    assert [row["n"] for _, row in read_path(tmp_path, 2)] == [1, 2]
    assert files_of(tmp_path / "a.json") == [tmp_path / "a.json"]
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match=r"holds no \.jsonl, \.json, \.parquet files"):
        files_of(tmp_path / "none")
