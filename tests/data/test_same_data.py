"""What a resume notices of its data and of the code that judges it; rows without traces are no SFT data."""

from __future__ import annotations

import pytest

from bridge_mcore.config.schema import Config
from bridge_mcore.data.tokenizer import task_tokenizer
from bridge_mcore.errors import ConfigError, DataError
from bridge_mcore.training.data_record import DataRecord
from bridge_mcore.training.run_data import read_prompts, read_traces
from bridge_mcore.training.same_run import SameRun
from tests.data.test_control import QWEN, problem, said, traced
from tests.data.test_problems import write
from tests.data.test_templates import CHATML, byte_level

ROWS = [{"problem": f"Q:a{n}b1A:", "answer": str(n + 1), "trace": f"{n}a{n + 1}b\\boxed{{{n + 1}}}"} for n in range(3)]


def config(path, **reward) -> Config:
    rl = {"path": str(path)}
    return Config.model_validate(
        {"method": {"name": "bridge"}, "data": {"template": "plain", "rl": rl}, "reward": reward}
    )


def resumed(before: Config, entries: dict, now: Config, other: dict) -> SameRun:
    first = SameRun(before, None, 0)
    first.inputs(entries, {}, {})
    run = SameRun(now, first.record, 2)
    run.check_settings()
    run.inputs(other, {}, {})
    return run


def entries(made: Config) -> dict:
    record = DataRecord(made)
    record.load("data.rl", made.data.rl)
    return record.entries


def test_a_trace_that_is_marked_as_cut_is_another_trace(tmp_path):
    path = tmp_path / "a.jsonl"
    made = config(write(path, ROWS))
    whole = entries(made)
    write(path, [ROWS[0], ROWS[1] | {"finished": False}, ROWS[2]])
    cut = entries(made)
    assert whole["data.rl"]["sha256"] == cut["data.rl"]["sha256"] and whole["data.rl"]["cut_traces"] is None
    with pytest.raises(ConfigError, match=r"which traces of data\.rl are cut .* was none, now it is \w{12}"):
        resumed(made, whole, made, cut)
    assert not resumed(made, cut, made, cut).changes
    made.run.resume_changes = "allow"
    assert resumed(made, whole, made, cut).lines()
    made.run.resume_changes = "refuse"
    older = SameRun(made, None, 0)
    older.inputs(whole, {}, {})
    del older.record["data"]["data.rl"]["cut_traces"]  # of a version that did not record it
    run = SameRun(made, older.record, 2)
    run.inputs(cut, {}, {})
    assert not run.changes


def test_changed_code_of_a_reward_is_refused(tmp_path):
    plugin = tmp_path / "mine.py"
    plugin.write_text("def judge(response, answer): return response == answer\n")
    made = config(write(tmp_path / "a.jsonl", ROWS), verifier=f"plugin:{plugin}:judge")
    before = SameRun(made, None, 0)
    plugin.write_text("def judge(response, answer): return True\n")
    with pytest.raises(ConfigError, match=r"(?s)the code of plugin:.*mine\.py:judge was \w{12}….*resume_changes=allow"):
        SameRun(made, before.record, 2).check_settings()
    older = {key: value for key, value in before.record.items() if key != "plugins"}
    SameRun(made, older, 2).check_settings()
    made.run.resume_changes = "allow"
    run = SameRun(made, before.record, 2)
    run.check_settings()
    assert len(run.changes) == 1 and "the code of" in run.lines()[0]


def test_rows_of_rl_without_a_trace_are_no_sft_data(tmp_path):
    rows = [{key: row[key] for key in ("problem", "answer")} for row in ROWS]
    made = config(write(tmp_path / "a.jsonl", [rows[0], ROWS[1], ROWS[2] | {"trace": ""}]))
    record, tokenizer = DataRecord(made), task_tokenizer("running_sums")
    assert len(read_prompts(made, tokenizer, 1 << 20, record)) == 3
    (only,) = read_traces(made, tokenizer, 1 << 20, record)
    assert only.problem.prompt == ROWS[1]["problem"]
    assert "· data.rl: 2 rows have no trace, and SFT does not learn from them; the first: " in "\n".join(record.lines())
    made = config(write(tmp_path / "b.jsonl", rows))
    with pytest.raises(
        DataError, match=r"data\.rl has no trace in any of its 3 rows; .*data\.rl\.trace_field.*data\.sft"
    ):
        read_traces(made, tokenizer, 1 << 20, DataRecord(made))


def test_a_template_that_writes_the_date_is_said():
    dated = CHATML + "{% if false %}{{ strftime_now('%d %b %Y') }}{% endif %}"
    _, notes = traced(byte_level(QWEN, dated), problem())
    assert "1 of 1 prompts may hold the day's date" in said(notes)
    assert "date" not in said(traced(byte_level(QWEN, CHATML), problem())[1])
