"""`data prepare` loses no trace of a list, makes no cut trace whole, and calls two golds of one question two."""

from __future__ import annotations

import pytest

from bridge_mcore.config.schema import DataSource
from bridge_mcore.data.problems import load_problems
from tests.data.test_prepare import lines, recipe_file, run
from tests.data.test_problems import write

QUESTION = "How many apples are left of twelve when three have been eaten?"


@pytest.mark.parametrize("policy", ["drop", "cut"])
def test_a_trace_that_came_cut_stays_so(tmp_path, policy):
    rows = [{"problem": QUESTION, "answer": "9", "trace": "It is \\boxed{9} as", "finished": False}]
    rows.append({"problem": "How many are two and two?", "answer": "4", "trace": "It is \\boxed{4}."})
    path = str(write(tmp_path / "a.jsonl", rows))
    for traces in ([], [{"path": path, "name": "t"}]):
        keys = {"prompts": [{"path": path, "name": "p"}], "traces": traces}
        card, out = run(recipe_file(tmp_path, limit={"length": 999, "policy": policy}, **keys), force=True)
        made = lines(out / "train_sft.jsonl")
        assert [row.get("finished") for row in made] == [False, None] and card["counts"]["cut_traces"] == 1
        read = load_problems(DataSource(path=out / "train_sft.jsonl"))
        assert [p.finished for p in read] == [False, True]


def test_each_trace_of_a_list_is_tried(tmp_path):
    listed = ["It is \\boxed{8}.", "", "So \\boxed{9}.", "Or \\boxed{9}!"]
    path = str(write(tmp_path / "a.jsonl", [{"problem": QUESTION, "answer": "9", "solution": listed}]))
    for keep, kept in (("first", ["So \\boxed{9}."]), ("all", ["So \\boxed{9}.", "Or \\boxed{9}!"])):
        keys = {"prompts": [{"path": path, "name": "p"}], "pairing": {"keep": keep}}
        card, out = run(recipe_file(tmp_path, **keys), force=True)
        assert [row["trace"] for row in lines(out / "train_sft.jsonl")] == kept
        assert card["counts"]["traces"] == {"wrong answer": 1, "verified": 2}
        assert card["sources"][0]["done"] == {"several_traces": 1}


def test_one_question_with_two_golds_is_called_so(tmp_path):
    golds = ["9", "10", "9.0", "\\frac{18}{2}", "9"]
    path = str(write(tmp_path / "a.jsonl", [{"problem": QUESTION, "answer": gold} for gold in golds]))
    card, out = run(recipe_file(tmp_path, prompts=[{"path": path, "name": "p"}]))
    assert card["counts"]["prompts"]["p"] == {
        "kept": 1, "repeated": 1, "repeated, with another answer": 1, "repeated, answer spelt otherwise": 2
    }  # fmt: skip
    (other,) = [row for row in lines(out / "dropped.jsonl") if row["stage"] == "repeated, with another answer"]
    assert other["reason"] == "answer 10, and 9 of the one before" and other["place"].endswith("line 2")
