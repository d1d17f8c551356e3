"""What data say stays what they say: messages, boxes, golds and numbers are not changed or lost without a word."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy
import pyarrow
import pyarrow.parquet
import pytest

from bridge_mcore.config.schema import DataSource
from bridge_mcore.data.notes import Notes, lines
from bridge_mcore.data.problems import load_problems
from bridge_mcore.errors import DataError
from bridge_mcore.rewards.mixed import Rewards
from bridge_mcore.rewards.protocol import Attempt
from tests.data.test_problems import write

SYSTEM = {"role": "system", "content": "Be brief."}
USER, ASSISTANT = {"role": "user", "content": "6*7?"}, {"role": "assistant", "content": "It is \\boxed{42}"}


def load(path: Path, notes: Notes | None = None, **keys):
    return load_problems(DataSource(path=path, **keys), plugins=[keys.get("reward", "math")], notes=notes)


def said(notes: Notes, traces: bool = True) -> str:
    return "\n".join(lines("data.rl", notes, {"traces": Notes()} if traces else {}))


@pytest.mark.parametrize("form", [list, json.dumps])
@pytest.mark.parametrize("role", ["system", "developer"])
def test_a_system_message_is_kept_or_dropped_by_a_key(tmp_path, form, role):
    rows = [{"prompt": form([SYSTEM | {"role": role}, USER]), "answer": "42"}]
    rows.append({"prompt": "plain?", "answer": "1"})
    path = write(tmp_path / "a.jsonl", rows)
    kept = load(path)
    assert [(p.prompt, p.system) for p in kept] == [("6*7?", "Be brief."), ("plain?", None)]
    notes = Notes()
    dropped = load(path, notes, system_messages="drop")
    assert [(p.prompt, p.system) for p in dropped] == [("6*7?", None), ("plain?", None)]
    assert "1 system messages were left out" in said(notes)
    assert kept[0].id != dropped[0].id and kept[1].id == dropped[1].id  # another prompt is another problem


def test_the_same_question_under_two_system_messages_is_two_problems(tmp_path):
    rows = [{"prompt": [SYSTEM | {"content": text}, USER], "answer": "42"} for text in ("Be brief.", "Be kind.")]
    assert len({p.id for p in load(write(tmp_path / "a.jsonl", rows))}) == 2


def test_a_conversation_in_one_column_gives_question_and_trace(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"messages": [SYSTEM, USER, ASSISTANT], "answer": "42"}])
    (problem,) = load(path, prompt_field="messages", trace_field="messages")
    assert (problem.prompt, problem.system, problem.trace) == ("6*7?", "Be brief.", "It is \\boxed{42}")


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ([USER, ASSISTANT, USER], "2 messages of the user and 1 of the assistant"),
        ([USER, ASSISTANT, USER, ASSISTANT], "2 messages of the user and 2 of the assistant"),
        ([USER, ASSISTANT], "nothing would read; set trace_field: prompt"),
        ([ASSISTANT, USER], "an answer before the question"),
        ([SYSTEM, SYSTEM, USER], "one system message"),
        ([USER, SYSTEM], "one system message, at its beginning"),
        ([USER, {"role": "tool", "content": "7"}], "the role 'tool'"),
        ([USER, {"role": "function", "content": "7"}], "the role 'function'"),
        ([{"role": "user", "content": None}], "must be text, this is a NoneType"),
        ([USER | {"tool_calls": [{"name": "f"}]}], "tool_calls beside its content"),
        ([USER | {"reasoning_content": "hm"}], "reasoning_content beside its content"),
        ([USER | {"content": [{"type": "text", "text": "a"}, {"type": "image", "url": "b"}]}], "the type 'image'"),
        ("[{'role': 'user', 'content': '6*7?'}]", "as Python prints it"),
    ],
)  # fmt: skip
def test_what_would_be_cut_is_refused_and_says_how_to_go_on(tmp_path, messages, says):
    path = write(tmp_path / "a.jsonl", [{"prompt": "1+1?", "answer": "2"}, {"prompt": messages, "answer": "42"}])
    with pytest.raises(DataError, match=rf"line 2: .*{says}.*bad_rows: skip") as error:
        load(path)
    assert "\n" not in str(error.value)
    notes = Notes()
    assert len(load(path, notes, bad_rows="skip")) == 1 and "1 unusable rows were left out" in said(notes)


def test_parts_of_text_are_joined_and_a_text_that_looks_like_a_list_stays(tmp_path):
    parts = [{"role": "user", "content": [{"type": "text", "text": "6"}, {"type": "text", "text": "*7?"}]}]
    texts = ["[1, 2] is what?", '[{"a": 1}] has how many keys?', "[{broken", '[{"role": 1']
    rows = [{"prompt": text, "answer": "1"} for text in (parts, *texts)]
    assert [p.prompt for p in load(write(tmp_path / "a.jsonl", rows))] == ["6*7?", *texts]


@pytest.mark.parametrize("reward", ["plugin:mine.py:judge", "choice", "logic", "gym", "code"])
@pytest.mark.parametrize("answer_column", ["answer", "gsm8k"])
def test_only_a_reward_that_reads_boxes_has_them_added(tmp_path, reward, answer_column):
    solution = "27 + 13 = <<27+13=40>>40.\nAnswer: 40"
    row = {"question": "27 + 13?", "answer": "40", "solution": solution}
    if answer_column == "gsm8k":
        row = {"question": "27 + 13?", "answer": f"{solution}\n#### 40"}
    path = write(tmp_path / "a.jsonl", [row])
    notes = Notes()
    (mine,) = load(path, notes, reward=reward)
    assert mine.trace == row.get("solution", row["answer"]) and mine.answer == "40"
    assert not notes["boxed"] and "box" not in said(notes)
    (math,) = load(path, notes)
    assert math.trace.endswith("The answer is \\boxed{40}.") and notes["boxed"] == 1
    assert "1 of 1 traces got a box with their row's answer at the end" in said(
        Notes(notes | {"rows": 1, "with_trace": 1})
    )
    assert "box" not in said(notes, traces=False)  # where they are not learned from, nothing was done


def test_fields_leaves_traces_as_they_are(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"q": "1+1?", "a": "2", "t": "It is 2."}])
    (problem,) = load(path, format="fields", prompt_field="q", answer_field="a", trace_field="t")
    assert problem.trace == "It is 2."


def test_a_list_of_golds_means_all_or_any(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"problem": "x^2 = 4?", "answer": ["2", "$-2$"]}])
    notes = Notes()
    (every,) = load(path, notes)
    assert every.answer == "2, -2" and "must give all of them (golds: all)" in said(notes)
    notes = Notes()
    (one,) = load(path, notes, golds="any")
    assert "any one of them is right (golds: any)" in said(notes)

    def verdicts(gold: str, noise: bool = True) -> list[str]:
        answers = ["2", "-2", "-2, 2", "3"]
        attempts = [Attempt(gold, f"\\boxed{{{answer}}}", "q", "id", i) for i, answer in enumerate(answers)]
        return [v.verdict for v in rewards.judge(["math"] * 4, attempts, noise)]

    rewards = Rewards()
    assert verdicts(every.answer) == ["incorrect", "incorrect", "correct", "incorrect"]
    assert verdicts(one.answer) == ["correct", "correct", "incorrect", "incorrect"]
    assert sum(rewards.counts.values()) == 8  # one verdict an answer, however many golds
    rewards.close()


@pytest.mark.parametrize("answer", [["1", None], ["1", ""], ["1", ["2"]]])
def test_a_list_of_golds_with_a_hole_is_refused(tmp_path, answer):
    with pytest.raises(DataError, match=r"list of answers .* holds an empty one|list of lists"):
        load(write(tmp_path / "a.jsonl", [{"problem": "q", "answer": answer}]))


@pytest.mark.parametrize("kind", ["float16", "float32", "float64"])
def test_a_float_column_gives_the_shortest_decimal_of_its_own_type(tmp_path, kind, seed):
    rng = random.Random(seed)
    narrow = getattr(numpy, kind)
    digits = 1 if kind == "float16" else 2  # a half has some three digits
    drawn = [f"{rng.uniform(0.1, 99):.{digits}f}" for _ in range(20)]
    texts = ["0.1", "0.2", "2.5", "27", "-0.3", "1000", *(text.rstrip("0").rstrip(".") for text in drawn)]
    texts = list(dict.fromkeys(texts))
    column = pyarrow.array([narrow(text) for text in texts], type=getattr(pyarrow, kind)())
    nested = pyarrow.StructArray.from_arrays([column], names=["ground_truth"])
    questions = pyarrow.array([f"{text}?" for text in texts])
    table = pyarrow.table({"problem": questions, "answer": column, "reward_model": nested})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    for field in ("answer", "reward_model.ground_truth"):
        assert [p.answer for p in load(tmp_path / "a.parquet", answer_field=field)] == texts


@pytest.mark.parametrize(
    ("answer", "text"),
    [(1e-7, "0.0000001"), (1e22, "1" + "0" * 22), (1e23, "1" + "0" * 23), (-0.0, "0"), (3.0, "3"),
     (0.1 + 0.2, "0.30000000000000004")],
)  # fmt: skip
def test_numbers_are_written_without_exponent(tmp_path, answer, text):
    assert load(write(tmp_path / "a.jsonl", [{"problem": "q", "answer": answer}]))[0].answer == text


def test_columns_and_names_that_stand_twice(tmp_path):
    table = pyarrow.Table.from_arrays([pyarrow.array([text]) for text in "qab"], names=["problem", "answer", "answer"])
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(DataError, match="two columns called 'answer'"):
        load(tmp_path / "a.parquet")
    (tmp_path / "a.jsonl").write_text('{"problem": "q", "answer": "1", "answer": "2"}\n')
    with pytest.raises(DataError, match="line 1: the name 'answer' stands twice"):
        load(tmp_path / "a.jsonl")


def test_characters_are_not_changed(tmp_path):
    """White space, line ends and the form of a character are the question's own; around a trace they are taken off."""
    prompt = "  Caf\u00e9 or Cafe\u0301?\r\n\ttab \u00a0 "
    (problem,) = load(
        write(tmp_path / "a.jsonl", [{"problem": prompt, "answer": "1", "solution": f" {prompt}\\boxed{{1}} "}])
    )
    assert problem.prompt == prompt and problem.trace == f"{prompt}\\boxed{{1}}".strip()


def test_repeated_rows_of_what_is_evaluated_are_asked_once(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"problem": f"{n % 2}?", "answer": "1"} for n in range(5)])
    notes = Notes()
    assert len(load_problems(DataSource(path=path), notes=notes, repeats="once")) == 2
    assert "3 rows repeat a problem, which is asked once; the first: " in said(notes)
    with pytest.raises(DataError, match="line 3: it repeats"):
        load(path)
