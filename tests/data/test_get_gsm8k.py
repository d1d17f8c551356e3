"""The tool that brings GSM8K: its files made of files that are there, and what it says without the hub."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

from bridge_mcore.config.schema import DataSource
from bridge_mcore.data.problems import load_problems

TOOL = Path(__file__).resolve().parents[2] / "tools" / "get_gsm8k.py"


def call(directory: Path) -> subprocess.CompletedProcess[str]:
    # An address where nobody listens stands for a machine without the hub.
    away = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(directory / "hf"), "NO_PROXY": "127.0.0.1"}
    command = [sys.executable, str(TOOL), str(directory)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=os.environ | away)


def row(length: int, answer: int) -> dict[str, str]:
    """A row whose worked solution has `length` characters beside a calculator note, as GSM8K writes them."""
    steps = "She has 2+3=<<2+3=5>>5 apples. "
    solution = steps + "x" * (length - len("She has 2+3=5 apples. "))
    return {"question": f"How many are {length} and {answer}?", "answer": f"{solution}\n#### {answer}"}


def test_short_problems_are_those_with_solutions_of_100_characters(tmp_path, seed):
    rng = random.Random(seed)
    lengths = [30, 100, 101, 250, *(rng.randrange(24, 300) for _ in range(20))]
    for name in ("train", "test"):
        rows = [row(length, number) for number, length in enumerate(lengths)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    done = call(tmp_path)
    assert done.returncode == 0, done.stderr
    assert "warning: the train split has 24 rows, the published one has 7473" in done.stdout
    short = [number for number, length in enumerate(lengths) if length <= 100]
    for name in ("train", "test"):
        problems = load_problems(DataSource(path=tmp_path / f"{name}_short.jsonl", format="gsm8k"))
        assert [problem.answer for problem in problems] == [str(number) for number in short]
        assert all("<<" not in str(problem.trace) for problem in problems)
    assert {path.name for path in tmp_path.glob("*")} == {
        f"{name}{kind}.jsonl" for name in ("train", "test") for kind in ("", "_short")
    }


def test_without_the_hub_it_says_at_once_what_to_do(tmp_path):
    done = call(tmp_path / "data")
    assert done.returncode == 1 and done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 2 and lines[0].startswith("error: openai/gsm8k could not be read from the hub (")
    assert f"into {tmp_path / 'data'} and run this again" in lines[1]
    assert not (tmp_path / "data").exists()


def test_another_file_under_that_name_is_refused(tmp_path):
    for name in ("train", "test"):
        (tmp_path / f"{name}.jsonl").write_text('{"question": "1+1?", "answer": "2"}\n')
    done = call(tmp_path)
    assert done.returncode == 1 and done.stderr.startswith(f"error: {tmp_path / 'train.jsonl'} is not GSM8K's file")
    assert len(done.stderr.splitlines()) == 1 and not (tmp_path / "train_short.jsonl").exists()
