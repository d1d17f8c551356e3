#!/usr/bin/env python
"""Write GSM8K (MIT licence) as JSONL files, and the part of it that a small model can begin with.

    python tools/get_gsm8k.py [data/gsm8k]

writes train.jsonl (7,473 rows) and test.jsonl (1,319 rows), read from openai/gsm8k on the Hugging Face hub through
`datasets`. Without the hub, put the two files of https://github.com/openai/grade-school-math (folder
grade_school_math/data) there first: they have the same form, and what is there is not fetched again.

train_short.jsonl (752 rows) and test_short.jsonl (120 rows) are made of them: the problems whose worked solutions have
at most 100 characters, calculator notes (`<<48/2=24>>`) not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

ROWS = {"train": 7473, "test": 1319}
SHORT = 100  # characters
_NOTE = re.compile(r"<<[^<>]*>>")


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
        _write(directory / f"{name}_short.jsonl", [row for row in rows if is_short(row)])


def is_short(row: Mapping[str, Any]) -> bool:
    """Whether the worked solution (without its notes and the answer behind `####`) has at most SHORT characters."""
    return len(_NOTE.sub("", row["answer"].rpartition("####")[0]).strip()) <= SHORT


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
