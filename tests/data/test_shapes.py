"""What a source is, told by more than its first row, and by its choices; no row is garbled, and none is half read."""

from __future__ import annotations

import pytest

from bridge_mcore.config.data_checks import data_problems
from bridge_mcore.config.schema import Config, DataSource
from bridge_mcore.data.notes import Notes
from bridge_mcore.data.prepare.read import open_source, problems_of
from bridge_mcore.data.prepare.recipe import Origin, Recipe
from bridge_mcore.data.problems import load_problems
from bridge_mcore.errors import ConfigError, DataError
from tests.data.test_kept import load, said
from tests.data.test_problems import GSM8K, write

FRUIT = ["stone", "apple", "car", "dog"]
MMLU = {"question": "Which is a fruit?", "choices": FRUIT, "answer": 1}
PRO = {"question": "Which is a fruit?", "options": FRUIT, "answer": "B", "answer_index": 1, "cot_content": ""}
COLUMNS = {"question": "Which is a fruit?", **dict(zip("ABCD", FRUIT, strict=True)), "answer": "B"}


@pytest.mark.parametrize(
    "row",
    [
        MMLU,
        PRO,
        COLUMNS,
        PRO | {"answer": "apple"},
        MMLU | {"choices": dict(zip("ABCD", FRUIT, strict=True)), "answer": "B"},
    ],
)
@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_rows_with_choices_are_read_with_them(tmp_path, row, suffix):
    path = write(tmp_path / f"a{suffix}", [row])
    (found,) = load(path)
    assert found.prompt.startswith("Which is a fruit?\n\nA) stone\nB) apple\nC) car\nD) dog\n")
    assert (found.answer, found.reward, found.trace) == ("B", "choice", None)
    (same,) = load(path, format="choice")
    assert same == found


def test_choices_with_columns_of_other_names_and_with_traces(tmp_path):
    row = {"frage": MMLU["question"], "choices": FRUIT, "lösung": "B", "weg": "An apple is one. \\boxed{B}"}
    path = write(tmp_path / "a.jsonl", [row])
    for form in ("auto", "choice"):
        (found,) = load(path, format=form, prompt_field="frage", answer_field="lösung", trace_field="weg")
        assert (found.answer, found.trace, found.reward) == ("B", row["weg"], "choice")
    (named,) = load(write(tmp_path / "b.jsonl", [MMLU | {"solution": "It is \\boxed{B}"}]))
    assert named.trace == "It is \\boxed{B}"
    gpqa = {"Question": "q?", "Correct Answer": "x", **{f"Incorrect Answer {i}": str(i) for i in (1, 2, 3)}, "why": "t"}
    (hard,) = load(write(tmp_path / "c.jsonl", [gpqa]), trace_field="why")
    assert hard.trace == "t" and hard.reward == "choice"


def test_choices_that_cannot_be_answered_or_are_in_some_rows_only_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"line 1: .*'answer' is 'a tree'; it must be an index"):
        load(write(tmp_path / "a.jsonl", [MMLU | {"answer": "a tree"}]))
    plain = {"question": "1+1?", "answer": "2", "choices": None}
    with pytest.raises(
        DataError, match=r"line 2: it looks like a row of format: choice, .* the first row like one of math"
    ):
        load(write(tmp_path / "b.jsonl", [plain, MMLU]))
    with pytest.raises(DataError, match="line 2: it looks like a row of format: math"):
        load(write(tmp_path / "c.jsonl", [MMLU, plain]))


def test_choices_that_the_question_shows_itself_are_not_shown_twice(tmp_path):
    question = "Which is a fruit?\n" + "\n".join(
        f"({letter}) {text}" for letter, text in zip("ABCD", FRUIT, strict=True)
    )
    (found,) = load(write(tmp_path / "a.jsonl", [PRO | {"question": question}]))
    assert (found.prompt, found.answer, found.reward) == (question, "B", "math")


def test_data_prepare_refuses_rows_with_choices(tmp_path):
    origin = Origin(path=write(tmp_path / "a.jsonl", [MMLU]))
    opened = open_source(Recipe(output=tmp_path / "o", prompts=[origin]), "prompts.0", origin)
    with pytest.raises(DataError, match=r"line 1: data prepare reads no rows of format: choice.*prompts\.0\.format"):
        list(problems_of(opened, streaming=True))


def test_code_honours_a_trace_and_refuses_other_fields(tmp_path):
    row = {"text": "Add.", "code": "def add(a, b): return a + b", "test_list": ["assert add(1, 2) == 3"], "why": "So."}
    path = write(tmp_path / "a.jsonl", [row])
    for form in ("auto", "code"):
        (found,) = load(path, format=form, trace_field="why")
        assert (found.trace, found.reward) == ("So.", "code")
    with pytest.raises(ConfigError, match=r"format = code reads .* not prompt_field; remove that"):
        load(path, format="code", prompt_field="why")
    config = Config.model_validate(
        {"method": {"name": "rl_zero"}, "data": {"rl": {"path": path, "format": "code", "answer_field": "code"}}}
    )
    assert any(p.startswith("data.rl: format = code reads") and "answer_field" in p for p in data_problems(config))


@pytest.mark.parametrize(
    ("gold", "answer"),
    [("1,002", "1002"), ("$1,234,567.50", "1234567.50"), ("-12,000", "-12000"), ("(1,2)", "(1,2)"), ("3, 4", "3, 4"),
     ("1,2,3", "1,2,3"), ("(1,200)", "(1,200)"), ("12,34", "12,34"), ("1,000, 2,000", "1000, 2000"), ("72", "72")],
)  # fmt: skip
def test_only_separators_of_thousands_go_from_a_gold_of_gsm8k(tmp_path, gold, answer):
    (found,) = load(write(tmp_path / "a.jsonl", [{"question": "q", "answer": f"So.\n#### {gold}"}]))
    assert found.answer == answer and found.trace == f"So.\nThe answer is \\boxed{{{answer}}}."


def test_a_heading_is_no_mark_of_gsm8k(tmp_path):
    rows = [{"question": "a", "answer": "#### Way\nIt is 5."}, {"question": "b", "answer": "6"}]
    assert [p.answer for p in load(write(tmp_path / "a.jsonl", rows))] == ["#### Way\nIt is 5.", "6"]
    with pytest.raises(DataError, match=r"line 1: it has no answer .the last line of 'answer' must be '#### n'"):
        load(write(tmp_path / "b.jsonl", rows), format="gsm8k")


def test_sources_of_two_kinds_are_refused_not_garbled(tmp_path):
    plain = [{"question": f"{n}?", "answer": str(n)} for n in range(4)]
    late = {"question": "x", "answer": "x <<1+1=2>>2\n#### 1,002"}
    for place, rows in ((5, [*plain, late]), (1, [late, *plain])):
        path = write(tmp_path / "a.jsonl", rows)
        with pytest.raises(DataError, match=rf"line {place}: its answer .* ends in GSM8K's '#### n'.*own.*format"):
            load(path)
        assert [p.answer for p in load(path, bad_rows="skip")] == ["0", "1", "2", "3"]
    with pytest.raises(DataError, match=r"line 1: it has no answer .*must end in '#### n'"):
        load(write(tmp_path / "b.jsonl", [plain[0], *GSM8K]))


@pytest.mark.parametrize(
    ("trace", "boxed"),
    [("<think>\\boxed{3}, no</think>It is 2.", True), ("Maybe \\boxed{3}.</think>It is 2.", True),
     ("<think>\\boxed{3}, no</think>", True), ("<think>\\boxed{3}", False), ("<think>a</think>\\boxed{2}", False),
     ("It is 2.", True), ("\\boxed{2}", False)],
)  # fmt: skip
def test_a_box_in_a_thought_answers_nothing(tmp_path, trace, boxed):
    (found,) = load(write(tmp_path / "a.jsonl", [{"problem": "1+1?", "answer": "2", "solution": trace}]))
    assert found.trace == trace + ("\nThe answer is \\boxed{2}." if boxed else "")


def test_a_column_that_the_first_row_lacks_is_found(tmp_path):
    rows = [{"problem": "a", "answer": "1"}, {"problem": "b", "answer": "2", "solution": "\\boxed{2}"}]
    path = write(tmp_path / "a.jsonl", rows)
    for field in (None, "solution"):
        assert [p.trace for p in load(path, trace_field=field)] == [None, "\\boxed{2}"]
    with pytest.raises(DataError, match=r"line 1: no column 'solutions' \(trace_field\)"):
        load(path, trace_field="solutions")


def test_an_answer_that_is_taken_from_the_trace_is_counted(tmp_path):
    rows = [{"problem": "a", "answer": None, "solution": "\\boxed{1}"}, {"problem": "b", "answer": "2"}]
    notes = Notes()
    assert [p.answer for p in load(write(tmp_path / "a.jsonl", rows), notes)] == ["1", "2"]
    assert "1 of 2 rows have an empty answer, and take the last box of their trace" in said(notes)


def test_a_source_without_an_answer_column_says_nothing_of_it(tmp_path):
    notes = Notes()
    load_problems(
        DataSource(path=write(tmp_path / "a.jsonl", [{"problem": "a", "solution": "\\boxed{1}"}])), notes=notes
    )
    assert not notes["answer_of_trace"]
