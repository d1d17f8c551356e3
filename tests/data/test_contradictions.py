"""One question with two golds, a trace with another answer than its row's: counted, said, refused by a key."""

from __future__ import annotations

import json

import pytest

from bridge_mcore.config.schema import Config, DataSource
from bridge_mcore.data.contradictions import note_contradictions
from bridge_mcore.data.notes import Notes
from bridge_mcore.data.problem import ANY_OF, Problem
from bridge_mcore.errors import DataError
from bridge_mcore.rewards.mixed import Rewards
from bridge_mcore.training.data_record import DataRecord
from tests.data.test_problems import write


@pytest.fixture(scope="module")
def rewards():
    made = Rewards()
    yield made
    made.close()


def problem(prompt: str, answer: str, trace: str | None = None, reward: str = "math", **rest) -> Problem:
    return Problem(f"{prompt}{answer}", prompt, answer, trace, "test", reward, **rest)


def noted(rewards: Rewards, *problems: Problem) -> Notes:
    notes = Notes()
    found = [(notes, p) for p in problems]
    note_contradictions(found, found, rewards.judge)
    return notes


@pytest.mark.parametrize(
    ("reward", "one", "other", "count"),
    [
        ("math", "6", "7", 1),
        ("math", "0.5", "\\frac{1}{2}", 0),
        ("math", "1, 2", "2, 1", 0),
        ("math", f"6{ANY_OF}7", "7", 0),
        ("choice", "C", "C/4", 0),
        ("choice", "C/4", "B/4", 1),
        ("plugin:a.py:f", "six", "seven", 1),
        ("code", '{"tests": 1}', '{"tests": 2}', 0),
    ],
)
def test_one_question_with_two_golds(rewards, reward, one, other, count):
    notes = noted(
        rewards,
        problem("q?", one, reward=reward),
        problem("r?", one, reward=reward),
        problem("q?", other, reward=reward),
    )
    assert notes["two_golds"] == count
    if count:
        assert one[:8] in notes.first["two_golds"] and other[:8] in notes.first["two_golds"]


def test_another_system_message_asks_another_question(rewards):
    assert not noted(rewards, problem("q?", "6"), problem("q?", "7", system="Count from one."))["two_golds"]


@pytest.mark.parametrize(
    ("reward", "answer", "trace", "key"),
    [
        ("math", "8", "Surely \\boxed{9}", "contradicting_traces"),
        ("math", "8", "First \\boxed{9}, no: \\boxed{8.0}", None),
        ("math", "0.25", "\\boxed{\\dfrac14}", None),
        ("math", f"8{ANY_OF}9", "\\boxed{9}", None),
        ("math", "8", "It is 8.", "unboxed"),
        ("choice", "C", "<answer>B</answer>", "contradicting_traces"),
        ("choice", "C", "\\boxed{C}", None),
        ("choice", "C", "It is C.", None),
        ("plugin:a.py:f", "8", "\\boxed{9}", None),
    ],
)
def test_a_trace_with_another_answer(rewards, reward, answer, trace, key):
    notes = noted(rewards, problem("q?", answer, trace, reward))
    assert dict(notes) == ({key: 1} if key else {})
    assert not noted(rewards, problem("q?", answer, trace, reward, finished=False))


ROWS = [{"problem": f"{n}+{n}?", "answer": f"{2 * n}", "solution": f"It is \\boxed{{{2 * n}}}"} for n in range(5)]


def record_of(tmp_path, rewards, policy: str, traces: bool = True, held_out: list[dict] = ()) -> DataRecord:
    rows = [*ROWS, {**ROWS[3], "answer": "7", "solution": "\\boxed{7}"}, {**ROWS[4], "solution": "Hm, \\boxed{9}"}]
    source = DataSource(path=write(tmp_path / "a.jsonl", rows))
    record = DataRecord(Config.model_validate({"data": {"contradictions": policy}}))
    record.load("data.rl", source)
    record.counts("data.rl", "traces" if traces else "prompts")["kept"] = len(rows)
    if held_out:
        record.load("data.evaluation.0", DataSource(path=write(tmp_path / "e.jsonl", list(held_out))))
    record.check_contradictions(rewards.judge)
    return record


def test_a_run_counts_and_says_them(tmp_path, rewards):
    record = record_of(tmp_path, rewards, "report")
    found = "\n".join(record.lines())
    assert "data.rl: 1 of 7 rows ask what another row asks, with another right answer; the first: " in found
    assert "data.rl: 1 of 7 traces end in another answer than their row's; the first: " in found
    assert json.loads(record.text())["data.rl"]["rows"] == {
        "rows": 7, "with_trace": 7, "two_golds": 1, "contradicting_traces": 1
    }  # fmt: skip
    alone = "\n".join(record_of(tmp_path, rewards, "report", traces=False).lines())
    assert "another right answer" in alone and "traces" not in alone  # of RL alone


def test_what_was_done_to_a_mixed_source_is_said_of_that_source(tmp_path, rewards):
    one = DataSource(path=write(tmp_path / "a.jsonl", ROWS))
    more = DataSource(path=write(tmp_path / "b.jsonl", [{"problem": "7?", "answer": "7", "solution": "It is 7."}]))
    record = DataRecord(Config())
    assert len(record.load("data.rl", one, more)) == 6
    record.counts("data.rl", "traces")["kept"] = 6
    record.check_contradictions(rewards.judge)
    assert [line.partition(" (")[0] for line in record.lines()] == [
        "· data.rl_more.0: 1 of 1 traces got a box with their row's answer at the end, for the reward reads boxes"
    ]
    assert json.loads(record.text())["data.rl_more.0"]["rows"]["boxed"] == 1


def test_a_run_refuses_them_by_a_key(tmp_path, rewards):
    with pytest.raises(
        DataError, match=r"data\.rl has 1 rows .*: 6 and 7\. Mend the rows, or set data\.contradictions"
    ):
        record_of(tmp_path, rewards, "error")


def test_evaluation_sets_are_looked_at_alone(tmp_path, rewards):
    """What training and evaluation share is refused elsewhere; two golds within a set are said of the set."""
    held_out = [
        {"problem": "9+9?", "answer": "18"},
        {"problem": "9+9?", "answer": "19"},
        {"problem": "1+1?", "answer": "3"},
    ]
    found = "\n".join(record_of(tmp_path, rewards, "report", held_out=held_out).lines())
    assert "data.evaluation.0: 1 of 3 rows ask what another row asks" in found
