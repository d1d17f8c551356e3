"""The tool that brings GSM8K: its files made of files that are there, and what it says without the hub."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from operator import add, mul, sub
from pathlib import Path

from bridge_mcore.config.schema import DataSource
from bridge_mcore.data.problems import load_problems

TOOL = Path(__file__).resolve().parents[2] / "tools" / "get_gsm8k.py"


def call(directory: Path) -> subprocess.CompletedProcess[str]:
    # An address where nobody listens stands for a machine without the hub.
    away = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(directory / "hf"), "NO_PROXY": "127.0.0.1"}
    command = [sys.executable, str(TOOL), str(directory)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=os.environ | away)


def write(directory: Path, name: str, notes: list[str]) -> None:
    """A split whose solutions hold these calculator notes, as GSM8K writes them."""
    rows = [
        {"question": f"{name} {number}?", "answer": f"So it is $<<{note}>>{note.split('=')[-1]}.\n#### 1"}
        for number, note in enumerate(notes)
    ]
    (directory / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_calculations_are_the_right_ones_of_two_numbers_each_once_and_apart(tmp_path, seed):
    rng = random.Random(seed)
    signs: dict[str, Callable[[int, int], int]] = {"+": add, "-": sub, "*": mul}
    right = set()
    for _ in range(60):
        left, sign, number = rng.randrange(2, 500), rng.choice([*signs]), rng.randrange(2, 500)
        right.add((f"{left}{sign}{number}", signs[sign](left, number)))
    right = {(text, result) for text, result in right if result >= 0}  # notes hold no signs
    wrong = [f"{text}={result + 1}" for text, result in right]
    others = ["3+4+5=12", "2*(3+4)=14", "7=7", "5/0=0", "1/3=0.33", "x+1=2", "__import__('os')=1"]
    notes = [f"{text}={result}" for text, result in right] + wrong + others + ["9/2=4.5", ".5*18=9.00"]
    write(tmp_path, "train", [*notes, *rng.sample(notes, 20), "6*7=42"])
    write(tmp_path, "test", ["6*7=42", "8/2=4", "8/2=5"])
    done = call(tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"warning: the train split has {len(notes) + 21} rows, the published one has 7473" in done.stdout
    train, test = (
        load_problems(DataSource(path=tmp_path / f"{name}_calculations.jsonl", format="gsm8k"))
        for name in ("train", "test")
    )
    assert {(p.prompt, p.answer) for p in test} == {("What is 6*7?", "42"), ("What is 8/2?", "4")}
    kept = {(f"What is {text}?", str(result)) for text, result in right} | {
        ("What is 9/2?", "4.5"), ("What is .5*18?", "9.00")
    }  # fmt: skip
    assert {(p.prompt, p.answer) for p in train} == kept - {("What is 6*7?", "42"), ("What is 8/2?", "4")}
    assert len(train) == len({p.prompt for p in train})
    assert all(p.trace == f"{p.prompt[8:-1]} = {p.answer}\nThe answer is \\boxed{{{p.answer}}}." for p in train)


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
    assert len(done.stderr.splitlines()) == 1 and not (tmp_path / "train_calculations.jsonl").exists()
