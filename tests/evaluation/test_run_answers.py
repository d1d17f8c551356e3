"""`bridge-mcore scores RUN`: the newest evaluation of each of a run's sets."""

from __future__ import annotations

import json

import pytest

from bridge_mcore.errors import DataError
from bridge_mcore.evaluation.command import run_scores
from bridge_mcore.evaluation.records import Record, write_records
from bridge_mcore.evaluation.run_answers import read_run_answers


def record(set_: str, id_: str, sample: int, verdict: str) -> Record:
    return Record(set_, id_, sample, "1+1?", "2", "it is 2", "2", verdict, "", 3, True)


def test_of_each_set_the_newest(tmp_path, capsys):
    run = tmp_path / "run"
    (run / "evaluations").mkdir(parents=True)
    write_records(
        run / "evaluations/step_00000010.jsonl",
        [record("sums", "a", 0, "incorrect"), record("other", "b", 0, "correct"), record("other", "c", 0, "incorrect")],
    )
    write_records(
        run / "evaluations/step_00000020.jsonl",
        [record("sums", "a", 1, "correct"), record("sums", "a", 0, "incorrect"), record("sums", "d", 0, "correct")],
    )
    said: list[str] = []
    answered, samples = read_run_answers(run, said.append)
    assert samples == {"sums": 2, "other": 1}
    assert [(r.id, r.sample, r.verdict) for r in answered["sums"]] == [("a", 0, "incorrect"), ("a", 1, "correct")]
    assert said == [
        "· run, sums: 1 problems, after step 20; 1 have answers missing",
        "· run, other: 2 problems, after step 10",
    ]
    run_scores([run], "json", 0, 1)
    (model,) = json.loads(capsys.readouterr().out)["models"]
    accuracies = {name: found["accuracy"]["value"] for name, found in model["benchmarks"].items()}
    assert accuracies == {"sums": 0.5, "other": 0.5}


def test_a_run_without_evaluations_is_refused(tmp_path):
    with pytest.raises(DataError, match="holds no evaluation"):
        run_scores([tmp_path], "text", 0, 1)
    with pytest.raises(DataError, match="no evaluation of this run yet"):
        read_run_answers(tmp_path, print)
