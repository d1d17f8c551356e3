"""Chat data in another form is refused by its name; nothing beside messages is lost, and an empty one is one."""

from __future__ import annotations

import json

import pytest

from bridge_mcore.config.schema import Config, DataSource
from bridge_mcore.data.problems import load_problems
from bridge_mcore.errors import ConfigError, DataError
from bridge_mcore.training.data_record import DataRecord
from tests.data.test_control import QWEN, problem, render, traced
from tests.data.test_kept import USER, load
from tests.data.test_problems import write
from tests.data.test_templates import CHATML, byte_level

SHARE = [{"from": "human", "value": "6*7?"}, {"from": "gpt", "value": "42"}]


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        (SHARE, r"ShareGPT's form \(from, value\)"),
        (json.dumps(SHARE), r"ShareGPT's form \(from, value\)"),
        (json.dumps([USER])[:-4], "chat messages as JSON that cannot be read"),
        (json.dumps(SHARE)[:-4], "chat messages as JSON that cannot be read"),
        (json.dumps(USER), "one chat message as JSON"),
        ('[{"role": "user", "content": "a", "content": "b"}]', "the name 'content' stands twice"),
        ([USER | {"name": "Ann"}], "has name beside its content"),
    ],
)
def test_messages_in_another_form_are_refused(tmp_path, prompt, says):
    with pytest.raises(DataError, match=rf"line 1: .*{says}") as error:
        load(write(tmp_path / "a.jsonl", [{"prompt": prompt, "answer": "42"}]))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("column", ["images", "tools"])
def test_what_stands_beside_messages_is_refused(tmp_path, column):
    row = {"prompt": [USER], "answer": "42", column: ["x"]}
    with pytest.raises(DataError, match=rf"line 1: '{column}' beside its messages"):
        load(write(tmp_path / "a.jsonl", [row]))
    assert load(write(tmp_path / "b.jsonl", [row | {column: []}]))


def test_an_empty_system_message_says_that_there_is_none(tmp_path):
    row = {"prompt": [{"role": "system", "content": ""}, USER], "answer": "42"}
    (asked,) = load(write(tmp_path / "a.jsonl", [row]))
    assert asked.system == ""
    tokenizer = byte_level(QWEN, "{% if messages[0]['role'] != 'system' %}Default.{% endif %}" + CHATML)
    for template in ("chat", "qwen-boxed"):
        text = tokenizer.decode(render(tokenizer, template, asked))
        assert text.startswith("<|im_start|>system\n<|im_end|>") and "Default" not in text
    assert tokenizer.decode(render(tokenizer, "plain", asked)) == "6*7?"


@pytest.mark.parametrize("change", ["| lower", "| upper", "[:6]", "[:0]"])
def test_a_chat_template_that_changes_the_question_is_refused(change):
    tokenizer = byte_level(QWEN, CHATML.replace("m['content']", f"m['content'] {change}"))
    with pytest.raises(ConfigError, match="changes or leaves out what the user says"):
        traced(tokenizer, problem())


def test_a_gold_for_ones_own_reward_stays_as_it_is(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"q": "2+3?", "a": "$5$"}])
    fields = {"format": "fields", "prompt_field": "q", "answer_field": "a"}
    assert load(path, **fields, reward="plugin:mine.py:judge")[0].answer == "$5$"
    assert load(path, **fields)[0].answer == "5"


def test_one_problem_with_several_traces_is_evaluated_once(tmp_path):
    rows = [{"problem": "q", "answer": "1", "solution": s} for s in ("a \\boxed{1}", "b \\boxed{1}")]
    source = DataSource(path=write(tmp_path / "a.jsonl", rows))
    assert len(load_problems(source, repeats="once")) == 1 and len(load_problems(source)) == 2


def test_rows_that_two_sources_hold_are_said(tmp_path):
    rows = [{"problem": f"{n}?", "answer": "1"} for n in range(3)]
    one, two = (
        write(tmp_path / "a.jsonl", rows),
        write(tmp_path / "b.jsonl", [*rows[1:], {"problem": "x", "answer": "1"}]),
    )
    data = {"rl": {"path": one}, "rl_more": [{"path": two}]}
    made = Config.model_validate({"method": {"name": "rl_zero"}, "data": data})
    record = DataRecord(made)
    assert len(record.load("data.rl", made.data.rl, *made.data.rl_more)) == 6
    (line,) = record.lines()
    assert line.startswith("· data.rl_more.0: 2 of 3 rows are in an earlier source of the same list too")
