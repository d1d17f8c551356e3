"""Reading problem sets: formats, what each column becomes, and errors that say file, row and mend."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from bridge_mcore.config.schema import DataSource
from bridge_mcore.data.problems import load_problems, source_name
from bridge_mcore.data.rows import last_boxed
from bridge_mcore.errors import ConfigError, DataError

GSM8K = [
    {"question": "48 and half of it?", "answer": "Half is 48/2 = <<48/2=24>>24.\nAll is <<48+24=72>>72.\n#### 72"},
    {"question": "A big one?", "answer": "It is 1,000 * $1 = $<<1000*1=1000>>1,000.\n#### 1,000"},
    {"question": "A cold one?", "answer": "-3\n#### -3"},
]
MATH = [
    {"problem": "What is $1/2$?", "solution": "It is $\\boxed{\\frac{1}{2}}$.", "answer": "\\frac{1}{2}", "level": 1},
    {"problem": "What is $2^2$?", "solution": "It is 4.", "answer": " 4 ", "level": 2},
]


def write(path: Path, rows: list[dict], encoding: str = "utf-8") -> Path:
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=1), encoding=encoding)
    else:
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding=encoding)
    return path


def load(path: Path, **keys):
    return load_problems(DataSource(path=path, **keys))


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
def test_gsm8k_from_every_kind_of_file(tmp_path, suffix):
    problems = load(write(tmp_path / f"train{suffix}", GSM8K))
    assert [p.answer for p in problems] == ["72", "1000", "-3"]
    assert problems[0].prompt == GSM8K[0]["question"]
    assert problems[0].trace == "Half is 48/2 = 24.\nAll is 72.\nThe answer is \\boxed{72}."
    assert problems[0].source == f"{tmp_path.name}-train"
    assert all(last_boxed(p.trace) == p.answer for p in problems)


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
def test_math_like_rows(tmp_path, suffix):
    half, four = load(write(tmp_path / f"math{suffix}", MATH))
    assert (half.answer, half.trace) == (MATH[0]["answer"], MATH[0]["solution"])
    # A solution without a box gets one: the verifier reads boxes.
    assert (four.answer, four.trace) == ("4", "It is 4.\nThe answer is \\boxed{4}.")


def test_answer_from_the_last_box_of_the_solution(tmp_path):
    rows = [{"problem": "q", "solution": "Not \\boxed{1} but \\boxed{\\{x\\} + \\frac{a}{b}} ", "type": "t"}]
    (problem,) = load(write(tmp_path / "a.jsonl", rows))
    assert problem.answer == "\\{x\\} + \\frac{a}{b}"


@pytest.mark.parametrize(
    ("row", "answer", "trace"),
    [
        ({"question": "q", "answer": "5", "source": "x"}, "5", None),
        ({"prompt": "q", "answer": 7}, "7", None),
        ({"problem": "q", "question": "q", "answer": 2.5}, "2.5", None),
        ({"problem": "q", "question": "q", "answer": 27.0}, "27", None),
        ({"question": "q", "final_answer": ["$2n$"], "solution": ["\\boxed{2n}", "other"]}, "2n", "\\boxed{2n}"),
        ({"question": "q", "final_answer": ["$a$", "$b$"]}, "a, b", None),
        ({"question": "q", "final_answer": "$1$,$2$", "r1_solution_1": "\\boxed{3}"}, "$1$,$2$", "\\boxed{3}"),
        ({"problem": "q", "expected_answer": "1", "generated_solution": " "}, "1", None),
    ],
)
def test_columns_are_found_by_name(tmp_path, row, answer, trace):
    (problem,) = load(write(tmp_path / "a.jsonl", [row]))
    assert (problem.prompt, problem.answer, problem.trace) == ("q", answer, trace)


def test_named_fields(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"in": "q", "out": "1", "how": "so", "answer": "no"}])
    (problem,) = load(path, format="fields", prompt_field="in", answer_field="out", trace_field="how")
    assert (problem.prompt, problem.answer, problem.trace) == ("q", "1", "so")
    with pytest.raises(ConfigError, match="prompt_field and answer_field"):
        load(path, format="fields", prompt_field="in")
    with pytest.raises(DataError, match=r"line 1: no column 'ouz' .*did you mean 'out'.*columns found: in, out, how"):
        load(path, format="fields", prompt_field="in", answer_field="ouz")


def test_unknown_columns_are_listed(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"input": "q", "output": "1"}])
    with pytest.raises(DataError, match=r"columns found: input, output.*Set prompt_field"):
        load(path)
    with pytest.raises(DataError, match=r"which column is the answer.*Set answer_field"):
        load(path, prompt_field="input")
    assert load(path, prompt_field="input", answer_field="output")[0].answer == "1"


def test_ids_are_made_of_content(tmp_path):
    first = load(write(tmp_path / "a.jsonl", GSM8K))
    again = load(write(tmp_path / "b.parquet", list(reversed(GSM8K))))
    assert [p.id for p in first] == [p.id for p in reversed(again)]
    assert len({p.id for p in first}) == 3
    # A known value: ids must not change between versions, records are joined by them.
    (known,) = load(write(tmp_path / "c.jsonl", [{"problem": "1+1?", "answer": 2}]))
    assert known.id == "26078278038d181e"


def test_one_problem_with_several_traces_is_no_repeat(tmp_path):
    rows = [{"problem": "q", "answer": "1", "solution": s} for s in ("a \\boxed{1}", "b \\boxed{1}")]
    one, two = load(write(tmp_path / "a.jsonl", rows))
    assert one.id == two.id and one.trace != two.trace


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ({"question": "q", "answer": "steps without the mark"}, "no answer"),
        ({"question": "q", "answer": "steps #### "}, "no answer"),
        ({"question": "q", "answer": None}, "no answer"),
        ({"question": "q"}, "no answer"),
        ({"question": "  ", "answer": "#### 1"}, "prompt .*empty"),
        ({"question": ["q"], "answer": "#### 1"}, "prompt .*must be text, this is a list"),
        ({"answer": "#### 1"}, "prompt .*nothing"),
        ({"question": "\ud800", "answer": "#### 1"}, "invalid Unicode"),
        (GSM8K[0], "it repeats .*line 1 "),
    ],
)
def test_a_bad_row_is_named_or_skipped(tmp_path, caplog, bad, says):
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in [GSM8K[0], GSM8K[1], bad, GSM8K[2]]))
    with pytest.raises(DataError, match=rf"a\.jsonl, line 3: .*{says}.*bad_rows"):
        load(path)
    assert [p.answer for p in load(path, bad_rows="skip")] == ["72", "1000", "-3"]
    assert "skipped 1 of 4 rows" in caplog.text


@pytest.mark.parametrize("answer", ["", "  ", None, float("nan"), []])
def test_empty_gold_answer(tmp_path, answer):
    path = write(tmp_path / "a.json", [{"problem": "p", "answer": "1"}, {"problem": "q", "answer": answer}])
    with pytest.raises(DataError, match=r"a\.json, row 2: it has no answer"):
        load(path)


@pytest.mark.parametrize("answer", [True, {"value": 1}])
def test_answer_of_a_wrong_type(tmp_path, answer):
    with pytest.raises(DataError, match=r"row 1: its answer .*must be text or a number"):
        load(write(tmp_path / "a.json", [{"problem": "q", "answer": answer}]))


def test_missing_wrong_and_empty_files(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        load(tmp_path / "none.jsonl")
    with pytest.raises(DataError, match=r"ending in '\.csv'; choose from \.jsonl, \.json, \.parquet"):
        load(tmp_path / "a.csv")
    write(tmp_path / "here.jsonl", GSM8K)
    with pytest.raises(DataError, match=r"is a directory; name one file in it: here\.jsonl"):
        load(tmp_path)
    for name in ("empty.jsonl", "empty.json"):
        (tmp_path / name).write_text("\n")
        with pytest.raises(DataError, match="holds no rows"):
            load(tmp_path / name)
    schema = pyarrow.schema([("problem", pyarrow.string()), ("answer", pyarrow.string())])
    pyarrow.parquet.write_table(schema.empty_table(), tmp_path / "empty.parquet")
    with pytest.raises(DataError, match="holds no rows"):
        load(tmp_path / "empty.parquet")
    with pytest.raises(DataError, match="every one of its 1 rows was skipped"):
        load(write(tmp_path / "b.jsonl", [{"problem": "q", "answer": ""}]), bad_rows="skip")


def test_malformed_files(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(GSM8K[0]) + '\n\n{"question": "q", "answ')
    with pytest.raises(DataError, match=r"line 3: invalid JSON: .*column"):
        load(path)
    path.write_text("[1, 2]\n")
    with pytest.raises(DataError, match="line 1: a JSON object is needed, this is a list"):
        load(path)
    path.write_bytes(b'{"question": "\xff\xfe"}')
    with pytest.raises(DataError, match="not UTF-8"):
        load(path)
    other = tmp_path / "a.json"
    other.write_text('[\n{"a": 1},\n{"a": }\n]')
    with pytest.raises(DataError, match="line 3: invalid JSON"):
        load(other)
    other.write_text('{"rows": []}')
    with pytest.raises(DataError, match="holds a JSON dict; a list of objects"):
        load(other)
    parquet = write(tmp_path / "a.parquet", GSM8K)
    whole = parquet.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"not parquet", b""):
        parquet.write_bytes(damaged)
        with pytest.raises(DataError, match=r"a\.parquet is no readable Parquet file"):
            load(parquet)


def test_text_that_splitlines_would_break(tmp_path):
    rows = [{"problem": "a\u2028b\u0085c", "answer": "1"}, {"problem": "ü", "answer": "2"}]
    path = write(tmp_path / "a.jsonl", rows, encoding="utf-8-sig")
    assert [p.prompt for p in load(path)] == ["a\u2028b\u0085c", "ü"]
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert [p.prompt for p in load(path)] == ["a\u2028b\u0085c", "ü"]


def test_json_lines_under_the_suffix_json(tmp_path):
    path = write(tmp_path / "a.jsonl", GSM8K).rename(tmp_path / "a.json")
    assert len(load(path)) == 3


def test_limit_reads_only_the_first_rows(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(GSM8K[0]) + "\n" + json.dumps(GSM8K[1]) + "\nnot JSON")
    assert [p.answer for p in load(path, limit=2)] == ["72", "1000"]


def test_exactly_one_origin(tmp_path):
    with pytest.raises(ConfigError, match="has none"):
        load_problems(DataSource())
    with pytest.raises(ConfigError, match="path and task"):
        load_problems(DataSource(path=tmp_path / "a.jsonl", task="running_sums"))


def test_hub_dataset(tmp_path, monkeypatch):
    import datasets

    asked = {}

    def load_dataset(name, config, *, split, revision):
        asked.update(name=name, config=config, split=split, revision=revision)
        if name == "nobody/none":
            raise ConnectionError("Couldn't reach the Hub")
        return datasets.Dataset.from_list(GSM8K)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    source = DataSource(dataset="openai/gsm8k", dataset_config="main", dataset_revision="abc", split="test", limit=2)
    problems = load_problems(source)
    assert [p.answer for p in problems] == ["72", "1000"]
    assert problems[0].source == "gsm8k-test"
    assert asked == {"name": "openai/gsm8k", "config": "main", "split": "test", "revision": "abc"}
    with pytest.raises(DataError, match=r"nobody/none, split train cannot be loaded.*ConnectionError.*`path` instead"):
        load_problems(DataSource(dataset="nobody/none"))
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match="pip install datasets"):
        load_problems(source)


def test_source_names():
    assert source_name(DataSource(path="x/gsm8k/test.jsonl")) == "gsm8k-test"
    assert source_name(DataSource(path="x/a.jsonl", name="mine")) == "mine"
    assert source_name(DataSource(dataset="a/b", split="train[:10]")) == "b-train-10"
    assert source_name(DataSource(task="running_sums", split="test")) == "running_sums-test"


def test_reading_data_imports_nothing_heavy():
    import subprocess

    code = (
        "import sys, bridge_mcore.data.problems, bridge_mcore.data.templates, bridge_mcore.data.pairs, "
        "bridge_mcore.data.tokenizer, bridge_mcore.data.sampler; "
        "sys.exit(' '.join(m for m in ('torch', 'transformers', 'datasets') if m in sys.modules) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
@pytest.mark.parametrize(
    ("value", "said"),
    [("9" * 5000, "a whole number in it has more than 4300 digits"), ("[" * 100_000, "nested too deeply"),
     ("[" * 300 + "]" * 300, "nested too deeply")],
)  # fmt: skip
def test_numbers_and_nesting_that_no_row_needs(tmp_path, suffix, value, said):
    path = tmp_path / f"data{suffix}"
    path.write_text(f'{{"problem": "q", "answer": "1"}}\n{{"problem": "q", "answer": {value}}}\n')
    with pytest.raises(DataError, match=rf"data{suffix}, line 2: {said}") as error:
        load(path, bad_rows="skip")
    assert len(str(error.value).splitlines()) == 1 and len(str(error.value)) < 400
