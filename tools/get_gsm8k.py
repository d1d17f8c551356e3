#!/usr/bin/env python
"""Write GSM8K (MIT licence) as JSONL files, and the calculations in it, with which a small model can begin.

    python tools/get_gsm8k.py [data/gsm8k]

writes train.jsonl (7,473 rows) and test.jsonl (1,319 rows), read from openai/gsm8k on the Hugging Face hub through
`datasets`. Without the hub, put the two files of https://github.com/openai/grade-school-math (folder
grade_school_math/data) there first: they have the same form, and what is there is not fetched again.

train_calculations.jsonl and test_calculations.jsonl are made of them: the single calculations that the worked solutions
note (`<<48/2=24>>`), as problems of the same form ("What is 48/2?"). A small model can begin with these. Notes that
are not one calculation of two numbers, or are wrong, are left out; none of the test file is in the train file.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Iterable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

ROWS = {"train": 7473, "test": 1319}
_NUMBER = r"(\d{1,6}(?:\.\d{1,4})?|\.\d{1,4})"
_NOTE = re.compile(rf"<<\s*{_NUMBER}\s*([-+*/])\s*{_NUMBER}\s*=\s*{_NUMBER}\s*>>")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, nargs="?", default=Path("data/gsm8k"), help="default: data/gsm8k")
    parser.add_argument("--revision", help="branch, tag or commit of the dataset (default: its newest)")
    arguments = parser.parse_args()
    directory: Path = arguments.directory
    missing = [name for name in ROWS if not (directory / f"{name}.jsonl").exists()]
    splits = {name: _read(directory / f"{name}.jsonl") for name in ROWS if name not in missing}
    for name in splits:
        print(f"found {directory / name}.jsonl")
    if missing:
        splits |= _from_hub(missing, arguments.revision, directory)
    directory.mkdir(parents=True, exist_ok=True)
    for name in ROWS:
        rows = splits[name]
        if len(rows) != ROWS[name]:
            print(f"warning: the {name} split has {len(rows)} rows, the published one has {ROWS[name]}")
        if name in missing:
            _write(directory / f"{name}.jsonl", rows)
    held_out = calculations(splits["test"])
    seen = {row["question"] for row in held_out}
    _write(directory / "test_calculations.jsonl", held_out)
    _write(
        directory / "train_calculations.jsonl", [r for r in calculations(splits["train"]) if r["question"] not in seen]
    )


def calculations(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, str]]:
    """The right calculations of two numbers that the rows' solutions note, each once, as rows of GSM8K's form."""
    found: dict[str, dict[str, str]] = {}
    for row in rows:
        for left, sign, right, result in _NOTE.findall(row["answer"]):
            if _is_right(sign, *map(Fraction, (left, right, result))):
                question = f"What is {left}{sign}{right}?"
                answer = f"{left}{sign}{right} = {result}\n#### {result}"
                found.setdefault(question, {"question": question, "answer": answer})
    return [*found.values()]


def _is_right(sign: str, left: Fraction, right: Fraction, result: Fraction) -> bool:
    if sign == "/":
        return right * result == left and right != 0
    return {"+": left + right, "-": left - right, "*": left * right}[sign] == result


def _from_hub(names: Iterable[str], revision: str | None, directory: Path) -> dict[str, list[dict[str, Any]]]:
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        # One question first: without a network `datasets` asks six times, and reports each.
        from huggingface_hub import HfApi, constants

        if not constants.HF_HUB_OFFLINE:
            revision = HfApi().dataset_info("openai/gsm8k", revision=revision, timeout=20).sha
        from datasets import disable_progress_bars, load_dataset

        disable_progress_bars()
        return {name: [*load_dataset("openai/gsm8k", "main", split=name, revision=revision)] for name in names}
    except Exception as error:  # a missing package, no network, an unknown revision: one answer to all
        sys.exit(
            f"error: openai/gsm8k could not be read from the hub ({type(error).__name__}: {error}).\n"
            "Put train.jsonl and test.jsonl of https://github.com/openai/grade-school-math (folder "
            f"grade_school_math/data) into {directory} and run this again; they have the same form."
        )


def _read(path: Path) -> list[dict[str, Any]]:
    try:
        with path.open(encoding="utf-8") as lines:
            rows = [json.loads(line) for line in lines if line.strip()]
        for row in rows:
            if not (isinstance(row["question"], str) and "####" in row["answer"]):
                raise ValueError("its rows need a question, and an answer that ends in '#### n'")
    except (OSError, ValueError, KeyError, TypeError) as error:
        sys.exit(
            f"error: {path} is not GSM8K's file ({type(error).__name__}: {error}); delete it or put the right one there"
        )
    return rows


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    partial = path.with_suffix(".partial")
    with partial.open("w", encoding="utf-8") as file:
        for row in rows:
            line = {"question": row["question"], "answer": row["answer"]}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    partial.replace(path)
    print(f"wrote {path}: {len(rows)} problems")


if __name__ == "__main__":
    main()
