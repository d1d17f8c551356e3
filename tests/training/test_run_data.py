"""What was done to a run's data is said at its start and kept in data.json; `data preview` says the same."""

from __future__ import annotations

import json

import pytest

from bridge_mcore.config.load import load_config
from bridge_mcore.data.tokenizer import task_tokenizer, task_vocabulary
from bridge_mcore.errors import DataError
from bridge_mcore.training.run_preview import preview_run
from tests.data.test_problems import write
from tests.models import save_tiny
from tests.training.test_runs import run

CONFIG = """
run: {{directory: {folder}/run}}
model: {{path: {folder}/model}}
method: {{name: sft}}
training: {{steps: 1, traces_per_step: 2}}
data:
  template: plain
  sft: {{path: {folder}/train.jsonl}}
  evaluation: [{{path: {folder}/test.jsonl}}]
evaluation: {{before: false, max_new_tokens: 4}}
checkpoint: {{export: false}}
monitoring: {{tensorboard: false, figure: false}}
"""
ROWS = [
    {"problem": "Q:a1b2A:", "answer": "3", "solution": "1a3b\\boxed{3}"},
    {"problem": "Q:a1b2A:", "answer": "4", "solution": "1a4b\\boxed{4}"},
    {"problem": "Q:a2b2A:", "answer": "4", "solution": "2a4b"},
    {"problem": "Q:a3b2A:", "answer": "5", "solution": "3a5b\\boxed{6}"},
    {"problem": "Q:a4b2A:", "answer": "6", "solution": "4a6b\\boxed{6}<eos>"},
    {"problem": "Q:a5<eos>b2A:", "answer": "7", "solution": "5a7b\\boxed{7}"},
]


def test_a_run_says_what_was_done_to_its_data(tmp_path):
    save_tiny("qwen2", tmp_path / "model", vocab=len(task_vocabulary()))
    task_tokenizer("running_sums").save_pretrained(tmp_path / "model")
    write(tmp_path / "train.jsonl", ROWS)
    write(tmp_path / "test.jsonl", [{"problem": "Q:a9b1A:", "answer": "10"}] * 3)
    (tmp_path / "run.yaml").write_text(CONFIG.format(folder=tmp_path))
    said = run(tmp_path / "run.yaml")
    previewed = preview_run(load_config(tmp_path / "run.yaml"), None, 1, None, None).remarks
    assert len(previewed) >= 7 and all(remark in said for remark in previewed)
    begun = [remark.partition(";")[0] for remark in previewed]
    assert "· data.sft: 1 of 6 rows ask what another row asks, with another right answer" in begun
    assert "· data.sft: 1 of 6 traces end in another answer than their row's" in begun
    assert "· data.sft: 1 of 6 prompts spell control tokens, 1 in all, which are read as text" in begun
    assert "· data.evaluation.0: 2 rows repeat a problem, which is asked once" in begun
    kept = json.loads((tmp_path / "run/data.json").read_text())
    assert kept["data.sft"]["rows"] == {
        "rows": 6, "with_trace": 6, "boxed": 1, "two_golds": 1, "contradicting_traces": 1
    }  # fmt: skip
    assert kept["data.sft"]["traces"]["ended_traces"] == kept["data.sft"]["traces"]["control_prompts"] == 1
    assert kept["data.evaluation.0"]["rows"]["repeated"] == 2
    with pytest.raises(DataError, match=r"data\.sft has 1 rows that ask what another row asks"):
        preview_run(load_config(tmp_path / "run.yaml", ["data.contradictions=error"]), None, 1, None, None)
